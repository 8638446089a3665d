"""A refusal that names a call which works: the recipe that was asked for, with the modules named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from .choosing import choose_sites
from .errors import PlanError
from .kinds import AdapterConfig, get_kind
from .probe import NoStagesError
from .recipes import Recipe, bundled
from .sites import Network


def with_call(
    error: NoStagesError,
    network: Network,
    recipe: object,
    wanted: Recipe,
    overrides: Mapping[str, Any],
    has_example: bool,
) -> PlanError:
    """The refusal of a network whose stages could not be told, with a call that was tried out, if there is one.

    Args:
        error: The refusal.
        network: The network.
        recipe: As it was given: a bundled name, or something else.
        wanted: The recipe, with the overrides.
        overrides: Of the recipe's adapters.
        has_example: Whether an example was given.
    """
    open_ = [c for c in wanted.adapters if c.target is None and not get_kind(c.kind).on_weights]
    item = error.items[0] if error.items else None
    fitting = ([t for t in choice if _fits(network, open_, t, item)] for choice in error.targets)
    targets = next(filter(None, fitting), None)
    if targets is None:
        advice = "Name the modules whose outputs are to be adapted, with target="
        if not has_example:
            advice += ", or say with example= what the network is called with, if that is not one N,C,H,W tensor"
        return PlanError(f"{error.message}. {advice}", problems=error.problems)
    named = {c.kind: _named(c, targets, item) for c in open_}
    if isinstance(recipe, str) and recipe in bundled():
        text = _of_bundled(recipe, wanted, named, overrides)
    else:
        text = f"lowpeft.adapt(model, [{', '.join(_of_config(named.get(c.kind, c)) for c in wanted.adapters)}]"
    text += ", example=example)" if has_example else ")"
    others = "".join(f" (or item={i})" for i in error.items[1:])
    message = f"{error.message}. This call works, and names what comes nearest{others}:\n    {text}"
    return PlanError(message, problems=error.problems)


def _named(config: AdapterConfig, targets: list[str], item: int | None) -> AdapterConfig:
    names = {f.name for f in fields(config)}
    changes = {"every": 1} if "every" in names else {}
    if item is not None and "item" in names:
        changes["item"] = item
    return replace(config, target=tuple(targets), **changes)


def _fits(network: Network, configs: list[AdapterConfig], target: str, item: int | None) -> bool:
    """Whether all of these adapters can go to a module."""
    try:
        for config in configs:
            choose_sites(network, _named(config, [target], item))
    except PlanError:
        return False
    return True


def _of_bundled(recipe: str, wanted: Recipe, named: Mapping[str, AdapterConfig], overrides: Mapping[str, Any]) -> str:
    if len(wanted.adapters) == 1 and len(named) == 1:
        changes = {**overrides, **_changes(next(iter(named.values())))}
        return f"lowpeft.adapt(model, {recipe!r}" + "".join(f", {k}={v!r}" for k, v in changes.items())
    flat = {k: v for k, v in overrides.items() if k not in named}
    tables = {kind: {**dict(overrides.get(kind, {})), **_changes(config)} for kind, config in named.items()}
    for kind, config in named.items():  # `every=2` alone would be said twice
        flat = {k: v for k, v in flat.items() if k not in tables[kind] or not hasattr(config, k)}
    return f"lowpeft.adapt(model, {recipe!r}" + "".join(f", {k}={v!r}" for k, v in {**flat, **tables}.items())


def _changes(config: AdapterConfig) -> dict[str, Any]:
    item = {"item": config.item} if getattr(config, "item", None) is not None else {}  # type: ignore[attr-defined]
    return {"target": list(config.target or ()), **({"every": 1} if hasattr(config, "every") else {}), **item}


def _of_config(config: AdapterConfig) -> str:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    defaults = type(config)()
    changed = {k: v for k, v in values.items() if v != getattr(defaults, k)}
    return f"lowpeft.kinds.{type(config).__name__}(" + ", ".join(f"{k}={v!r}" for k, v in changed.items()) + ")"
