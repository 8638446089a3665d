"""An overview of recipes: what each adapts, where, and what share of two published networks it trains."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..kinds import LAYERS, AdapterConfig, get_kind
from ..kinds.matrices import MatrixConfig
from .recipe import Recipe
from .table import RECIPES, bundled, load_recipe

COUNTS = "shares.json"
"""File in this package with the counts; `benchmarks/shares.py` writes it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Parameters that a recipe trains on a network, beside those that the network has."""

    trained: int
    of: int

    def __str__(self) -> str:
        return f"{100 * self.trained / self.of:.2f} %"


@dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """A recipe in the overview.

    Attributes:
        name: Name of the recipe.
        summary: One-line description.
        paper: Paper that the method is from.
        adapters: Kind of each adapter.
        where: Where each adapter goes: the places, or the target patterns.
        shares: What it trains, by network; empty for recipes that were not counted. Recipes that need data were counted
            before calibration, which may move parameters between layers.
        mergeable: True if all adapters can be merged into the weights; None for a recipe without adapters.
        needs_data: True if initial values are learned from data (`lowpeft.calibrate`; training does it).
        views: Number of views of a scene that the adapters mix; 1 for single images.
    """

    name: str
    summary: str
    paper: str
    adapters: tuple[str, ...]
    where: tuple[str, ...]
    shares: Mapping[str, Share]
    mergeable: bool | None
    needs_data: bool
    views: int


def overview() -> tuple[RecipeRow, ...]:
    """Return a row for each recipe: the bundled ones, then those that were registered."""
    return tuple(overview_row(load_recipe(name)) for name in (*bundled(), *RECIPES))


def overview_row(recipe: Recipe) -> RecipeRow:
    """Return the overview's row for a recipe. Only a recipe that equals a bundled one has shares."""
    kinds = [get_kind(config.kind) for config in recipe.adapters]
    known = recipe.name in bundled() and recipe == load_recipe(recipe.name)
    return RecipeRow(
        name=recipe.name,
        summary=recipe.summary,
        paper=recipe.paper,
        adapters=tuple(kind.name for kind in kinds),
        where=tuple(map(_where, recipe.adapters)) or ("whole network",),
        shares=_shares(recipe.name) if known else {},
        mergeable=all(kind.on_weights for kind in kinds) if kinds else None,
        needs_data=any(kind.needs_data(c) for kind, c in zip(kinds, recipe.adapters, strict=True)),
        views=recipe.views,
    )


@functools.cache
def counts() -> Mapping[str, Any]:
    """Return what `benchmarks/shares.py` counted: trained parameters by recipe and network, and how they were had."""
    found: dict[str, Any] = json.loads((resources.files(__package__) / COUNTS).read_text(encoding="utf-8"))
    return found


def _shares(name: str) -> dict[str, Share]:
    counted, of = counts()["recipes"].get(name, {}).get("trained", {}), counts()["networks"]
    return {network: Share(trained=trained, of=of[network]) for network, trained in counted.items()}


def _where(config: AdapterConfig) -> str:
    """Return where an adapter goes, in a few words."""
    if config.target is not None:
        where = ", ".join(config.target)
    else:
        where = " and ".join("all layers that fit" if place == LAYERS else place for place in config.places)
    if (step := config.thin(1 << 20).step) > 1:
        where += f", 1 of {step}"
    return where + (f", rows {config.rows}" if isinstance(config, MatrixConfig) and config.rows else "")
