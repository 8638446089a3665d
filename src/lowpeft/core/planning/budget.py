"""Choice of the size of a recipe's adapters (rank, width, share) that comes nearest to a budget of parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from ...errors import PlanError
from ...kinds import AdapterConfig
from ...ports.base import base_parameters
from ...recipes import Recipe
from ...recipes.budget import parameters_of
from .choosing import choose_sites
from .sites import Network


def within_budget(network: Network, recipe: Recipe) -> Recipe:
    """Return a recipe without a budget, whose adapter has the size that comes nearest to it; add a note on the result.

    Adapters of fixed size stay as they are and count.

    Raises:
        PlanError: Several adapters have a size, so the budget does not determine it, or the recipe does not fit.
    """
    if recipe.budget is None:
        return recipe
    base = sum(p.numel() for _, p in base_parameters(network.root))
    allowed = parameters_of(recipe.budget, base)
    sized = [i for i, config in enumerate(recipe.adapters) if config.sizes is not None]
    if len(sized) > 1:
        kinds = ", ".join(recipe.adapters[i].kind for i in sized)
        raise PlanError(
            f"recipe {recipe.name!r} has {len(sized)} adapters with a size ({kinds}), so a budget does not determine "
            "them: set the sizes, or use recipes with one of them"
        )
    adapters = list(recipe.adapters)
    fixed = sum(_count(network, config) for i, config in enumerate(adapters) if i not in sized)
    total, chosen = fixed, f"the size of {' and '.join(config.kind for config in adapters)} is fixed"
    if sized:
        config = adapters[sized[0]]
        field, values = config.sizes or ("", ())
        value, count = _nearest(values, allowed - fixed, functools.partial(_sized_count, network, config, field))
        adapters[sized[0]] = _sized(config, field, value)
        total, chosen = fixed + count, f"{config.kind} has {field}={_shown(value)}"
    network.notes[
        f"budget of {allowed:,.0f} parameters ({_percent(allowed, base)}): {chosen}, {total:,} trained "
        f"({_percent(total, base)})"
    ] = None
    return dataclasses.replace(recipe, adapters=tuple(adapters), budget=None)


def _nearest(values: Sequence[float], wanted: float, count: Callable[[float], int | None]) -> tuple[float, int]:
    """Return the value whose count is nearest to the wanted one, and its count; counts rise from value to value.

    The count of a value that fits nowhere is None: such values are at the end if the first value fits, else at the
    beginning. Of two equally near counts, the smaller is taken.
    """
    counts = {0: count(values[0])}
    end = math.inf if counts[0] is not None else -math.inf
    low, high = 1, len(values) - 1
    while low <= high:
        middle = (low + high) // 2 if len(counts) > 1 else min(7, high)  # small sizes are the common ones
        counts[middle] = number = count(values[middle])
        low, high = (middle + 1, high) if (end if number is None else number) < wanted else (low, middle - 1)
    found = [(abs(number - wanted), number, index) for index, number in counts.items() if number is not None]
    if not found:
        raise PlanError(f"the adapters fit nowhere at the sizes {values[0]!r} to {values[-1]!r}")
    _, number, index = min(found)
    return values[index], number


def _sized(config: AdapterConfig, field: str, value: float) -> AdapterConfig:
    changes: dict[str, float] = {field: value}
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def _sized_count(network: Network, config: AdapterConfig, field: str, value: float) -> int | None:
    """Return the number of parameters of a config at one size; None if it fits nowhere at this size."""
    try:
        return _count(network, _sized(config, field, value))
    except PlanError:
        return None


def _count(network: Network, config: AdapterConfig) -> int:
    """Return the number of parameters that a config trains; the notes of the choice are dropped."""
    notes = dict(network.notes)
    try:
        return sum(site.parameters for site in choose_sites(network, config))
    finally:
        network.notes = notes


def _shown(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _percent(number: float, base: int) -> str:
    return f"{100 * number / max(1, base):.3g} %"
