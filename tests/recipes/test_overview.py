"""The overview of recipes, and the counts that come with it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import get_args, get_type_hints

import pytest

import lowpeft
import shares
from lowpeft import FullConfig, LoRAConfig, ParallaxConfig, Recipe, SpatialConfig, StereoConfig
from lowpeft.demo import demo_backbone
from lowpeft.kinds import kinds
from lowpeft.recipes import bundled, config_from_dict, counts, load_recipe, overview, overview_row

BUNDLED = pytest.mark.parametrize("name", bundled())


def row(name: str, *adapters: lowpeft.AdapterConfig) -> lowpeft.recipes.RecipeRow:
    return overview_row(Recipe(name=name, adapters=adapters))


def test_every_recipe_has_a_row(registries: None) -> None:
    lowpeft.register_recipe(Recipe(name="mine", adapters=(LoRAConfig(rank=2),), summary="of my own"))
    rows = {each.name: each for each in overview()}
    assert tuple(rows) == (*bundled(), "mine")
    assert (rows["mine"].summary, rows["mine"].shares) == ("of my own", {})


@BUNDLED
def test_the_counts_are_of_the_recipe_as_it_is(name: str) -> None:
    """Else `python benchmarks/shares.py` is to be run again. Fields that a kind got since have their defaults."""
    counted = counts()["recipes"][name]["adapters"]
    assert tuple(map(config_from_dict, counted)) == load_recipe(name).adapters


@BUNDLED
def test_every_network_was_counted(name: str) -> None:
    refused = {"DCTLSA x4"} if name in ("prefix", "vpt") else set()  # DCTLSA has no softmax over tokens
    assert set(counts()["networks"]) == set(shares.NETWORKS)
    assert set(overview_row(load_recipe(name)).shares) == set(shares.NETWORKS) - refused


def test_a_recipe_that_is_changed_has_no_share() -> None:
    lora = load_recipe("lora")
    assert overview_row(lora).shares
    assert not overview_row(dataclasses.replace(lora, adapters=(LoRAConfig(rank=8),))).shares


def test_where_names_places_patterns_parts_and_steps() -> None:
    assert row("x", LoRAConfig(), SpatialConfig(), StereoConfig(every=3)).where == (
        "all layers that fit",
        "attention",
        "stage, 1 of 3",
    )
    assert row("x", LoRAConfig(rows="q,v"), FullConfig(target=["a.*", "b"])).where == (
        "all layers that fit, rows q,v",
        "a.*, b",
    )


def test_only_recipes_for_weights_merge() -> None:
    assert row("x", LoRAConfig(), FullConfig(target="**")).mergeable is True
    assert row("x", LoRAConfig(), SpatialConfig()).mergeable is False
    assert overview_row(load_recipe("scratch")).mergeable is None


def test_recipes_that_need_data_say_so() -> None:
    assert [row("x", c).needs_data for c in (LoRAConfig(), LoRAConfig(start="eva"), ParallaxConfig())] == [
        False,
        True,
        True,
    ]


def choices() -> Iterator[tuple[lowpeft.kinds.Kind, dict[str, str]]]:
    """Every kind, and every choice of a word that its config takes."""
    for kind in kinds():
        yield kind, {}
        for name, hint in get_type_hints(kind.config).items():
            for value in (v for v in get_args(hint) if isinstance(v, str)):
                with contextlib.suppress(lowpeft.PlanError):  # a choice of the base class that the kind refuses
                    kind.config(**{name: value})
                    yield kind, {name: value}


@pytest.mark.parametrize(("kind", "choice"), list(choices()), ids=lambda x: x.name if hasattr(x, "name") else str(x))
@pytest.mark.slow
def test_a_kind_that_needs_data_is_one_with_a_calibrator(kind: lowpeft.kinds.Kind, choice: dict[str, str]) -> None:
    """What a config says without a network is what its adapters do in one."""
    config = kind.config(**choice)
    if kind.name == "full":
        config = dataclasses.replace(config, target="**")
    model = lowpeft.adapt(demo_backbone(), config)
    module = model.backbone if isinstance(model, lowpeft.MultiViewModel) else model
    adapters = [m for m in module.modules() if isinstance(m, kind.module)]
    assert {a.calibrator_class is not None for a in adapters} == {kind.needs_data(config)}


@pytest.mark.slow
def test_a_recount_gives_the_same() -> None:
    network = shares.NETWORKS["DCTLSA x4"]().eval()
    share = overview_row(load_recipe("lora-fa")).shares["DCTLSA x4"]
    assert share.trained == shares.trained(network, load_recipe("lora-fa"))
    assert share.of == sum(p.numel() for p in network.parameters())
