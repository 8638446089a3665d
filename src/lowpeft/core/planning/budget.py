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

MET = 0.15
"""Largest difference from a budget, as a share of it, at which it counts as met."""
COVERED = 0.5
"""Least share of the adapted parameters that a size chosen for a budget keeps."""
AROUND = 3
"""Number of values on each side of the last one that are tried too."""


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
    fixed = sum(_count(network, config)[0] for i, config in enumerate(adapters) if i not in sized)
    total, chosen = fixed, f"the size of {' and '.join(config.kind for config in adapters)} is fixed"
    if sized:
        config = adapters[sized[0]]
        field, values = config.sizes or ("", ())
        count_at = functools.cache(functools.partial(_sized_count, network, config))
        if all(count_at(value) is None for value in (values[0], values[-1])):
            _count(network, config)  # where no size fits, the reason is often another one: it raises that
        value, count = _nearest(values, allowed - fixed, count_at)
        adapters[sized[0]] = config.resized(value)
        total, chosen = fixed + count, f"{config.kind} has {field}={_shown(value)}"
    met = abs(total - allowed) <= MET * allowed
    network.notes[
        f"budget of {allowed:,.0f} parameters ({_percent(allowed, base)}){'' if met else ' NOT MET'}: {chosen}, "
        f"{total:,} trained ({_percent(total, base)})"
        + ("; name fewer places with target= for fewer" if sized and total > allowed and not met else "")
    ] = None
    return dataclasses.replace(recipe, adapters=tuple(adapters), budget=None)


def _nearest(
    values: Sequence[float], wanted: float, count: Callable[[float], tuple[int, int] | None]
) -> tuple[float, int]:
    """Return the value whose count is nearest to the wanted one, and its count; counts rise from value to value.

    Values at which the adapters fit nowhere (None) are at the end if the first value fits, else at the beginning. A
    larger size may leave out layers: one that adapts less than `COVERED` of what the first value adapts is too large.
    Where a layer drops out the count falls, so the values around the last one are looked at too. Of two equally near
    counts, the smaller is taken.
    """
    first = count(values[0])
    least = 0.0 if first is None else COVERED * first[1]
    end = math.inf if first is not None else -math.inf

    def number_at(index: int) -> float:
        found = count(values[index])
        return end if found is None else math.inf if found[1] < least else found[0]

    low, high = 1, len(values) - 1
    middle = min(7, high)  # small sizes are the common ones
    tried = {0}
    while low <= high:
        tried.add(middle)
        low, high = (middle + 1, high) if number_at(middle) < wanted else (low, middle - 1)
        middle = (low + high) // 2
    tried.update(index for index in range(middle - AROUND, middle + AROUND + 1) if 0 <= index < len(values))
    found = [(abs(n - wanted), n, index) for index in tried if math.isfinite(n := number_at(index))]
    if not found:
        raise PlanError(f"the adapters fit nowhere at the sizes {values[0]!r} to {values[-1]!r}")
    _, number, index = min(found)
    return values[index], int(number)


def _sized_count(network: Network, config: AdapterConfig, value: float) -> tuple[int, int] | None:
    """Return what `_count` gives for a config at one size; None if it fits nowhere at this size."""
    try:
        return _count(network, config.resized(value))
    except PlanError:
        return None


def _count(network: Network, config: AdapterConfig) -> tuple[int, int]:
    """Return the number of parameters that a config trains, and that it adapts; the notes of the choice are dropped."""
    notes = dict(network.notes)
    try:
        sites = choose_sites(network, config)
    finally:
        network.notes = notes
    return sum(s.parameters for s in sites), sum(math.prod(s.shape) for s in sites if s.attachment.form != "root")


def _shown(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _percent(number: float, base: int) -> str:
    return f"{100 * number / max(1, base):.3g} %"
