"""Change fields of a recipe's adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PlanError, did_you_mean
from ..kinds import AdapterConfig, get_kind
from .recipe import Recipe
from .toml_files import check_keys

_OF_THE_RECIPE = ("train_also", "freeze_statistics", "budget")


def override(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some fields changed.

    Args:
        recipe: Recipe to start from.
        overrides: Changes by key. A key is a field of exactly one of the recipe's adapters (`every=1`), a kind with a
            mapping of its fields (`spatial={"reduction": 8}`), `train_also` with patterns, which adds a `full` adapter
            on these modules, or the recipe's own `freeze_statistics` and `budget`.

    Raises:
        PlanError: A key is unknown, several adapters have that field, or a value is rejected; all problems are listed.
    """
    changes = {"freeze_statistics": recipe.freeze_statistics, **overrides}
    adapters, frozen, problems = list(recipe.adapters), changes.pop("freeze_statistics"), []
    if not isinstance(frozen, bool):
        problems.append(f"freeze_statistics must be true or false, not {frozen!r}")
    budget = changes.pop("budget", recipe.budget)
    for key, value in changes.items():
        try:
            _refuse_two_sizes(adapters, key, value, budget)
            if key == "train_also" and isinstance(value, (list, tuple)) and not value:
                continue
            if key == "train_also":
                adapters.append(get_kind("full").config(target=value))
            else:
                index, fields = _addressed(adapters, key, value)
                adapters[index] = dataclasses.replace(adapters[index], **fields)
        except PlanError as error:
            problems.append(str(error))
    try:
        changed = dataclasses.replace(recipe, adapters=tuple(adapters), freeze_statistics=bool(frozen), budget=budget)
    except PlanError as error:
        problems.append(str(error))
    if problems:
        raise PlanError(f"recipe {recipe.name!r} cannot be changed as asked:", problems=problems)
    return changed


def _refuse_two_sizes(adapters: Sequence[AdapterConfig], key: str, value: object, budget: object) -> None:
    """Raise if an override sets the field that the budget would choose."""
    for config in adapters if budget is not None else ():
        field = config.sizes[0] if config.sizes is not None else None
        if field is not None and (
            key == field or (key == config.kind and isinstance(value, Mapping) and field in value)
        ):
            raise PlanError(f"a budget chooses {field} of the {config.kind} adapter: give one of the two")


def _addressed(adapters: Sequence[AdapterConfig], key: str, value: object) -> tuple[int, dict[str, Any]]:
    """Return the index of the adapter that an override changes, and the changed fields."""
    of_kind = [i for i, a in enumerate(adapters) if a.kind == key]
    if of_kind:
        if not isinstance(value, Mapping):
            raise PlanError(f"{key!r} is a kind of adapter; give a mapping of its fields, not {value!r}")
        if len(of_kind) > 1:
            raise PlanError(f"the recipe has {len(of_kind)} {key} adapters; change the recipe itself")
        problems: list[str] = []
        check_keys(value, get_kind(key).fields, f"the {key} adapter", problems)
        if problems:
            raise PlanError("; ".join(problems))
        return of_kind[0], dict(value)
    hits = [i for i, a in enumerate(adapters) if key in get_kind(a.kind).fields]
    if len(hits) == 1:
        return hits[0], {key: value}
    if hits:
        kinds = [adapters[i].kind for i in hits]
        raise PlanError(
            f"{key!r} is a field of several adapters ({', '.join(kinds)}); name one of them: {kinds[0]}={{{key!r}: …}}"
        )
    names = {f for a in adapters for f in get_kind(a.kind).fields} | {a.kind for a in adapters} | {*_OF_THE_RECIPE}
    raise PlanError(
        f"no adapter of the recipe has {key!r}{did_you_mean(key, names)}; known: {', '.join(sorted(names))}"
    )
