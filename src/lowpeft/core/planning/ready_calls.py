"""Error messages that contain a working call: the requested recipe, with the modules named by `target=`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ...errors import PlanError
from ...kinds import AdapterConfig, get_kind
from ...ports.patterns import matches
from ...recipes import Recipe, bundled
from ..observation.probe import NoStagesError
from .choosing import choose_sites
from .sites import Network


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Arguments of a call of `plan` or `adapt`.

    Attributes:
        recipe: Recipe as given: the name of a bundled recipe, or something else.
        wanted: Recipe with the overrides applied.
        overrides: Fields of the recipe's adapters.
        has_example: True if an example was given.
        name: Name of the adapter.
    """

    recipe: object
    wanted: Recipe
    overrides: Mapping[str, Any]
    has_example: bool
    name: str = "default"

    @property
    def open(self) -> list[AdapterConfig]:
        """Configs without a target whose sites have to be found: those of feature adapters."""
        return [c for c in self.wanted.adapters if c.target is None and not get_kind(c.kind).on_weights]

    def call(self, named: Mapping[str, AdapterConfig]) -> str:
        """Return the call, as code, with the configs in `named` (by kind) replacing those of the recipe."""
        if isinstance(self.recipe, str) and self.recipe in bundled():
            text = _of_bundled(self.recipe, self.wanted, named, self.overrides)
        else:
            configs = (_of_config(named.get(c.kind, c)) for c in self.wanted.adapters)
            text = f"lowpeft.adapt(model, [{', '.join(configs)}]"
        name = f", name={self.name!r}" if self.name != "default" else ""
        return text + name + (", example=example)" if self.has_example else ")")


def with_call(error: NoStagesError, network: Network, asked: Asked) -> PlanError:
    """Return the error for a network whose stages could not be determined, with a tested call if one works."""
    item = error.items[0] if error.items else None
    lost = network.trial.lost(dict.fromkeys(itertools.chain(*error.targets)))
    fitting = ([t for t in choice if t not in lost and _fits(network, asked.open, t, item)] for choice in error.targets)
    targets = next(filter(None, fitting), None)
    if targets is None:
        advice = "Name the modules to adapt with target="
        if not asked.has_example:
            advice += ", or pass the network's arguments as example= if they are not one N,C,H,W tensor"
        return PlanError(f"{error.message}. {advice}", problems=error.problems)
    call = asked.call({c.kind: _named(c, targets, item) for c in asked.open})
    others = "".join(f" (or item={i})" for i in error.items[1:])
    message = f"{error.message}. This call works; it names the nearest modules{others}:\n    {call}"
    return PlanError(message, problems=error.problems)


def with_found_places(error: PlanError, network: Network, asked: Asked) -> PlanError:
    """Return the error for a changed copy of a known network, with a call for the modules found by running it, if any.

    Args:
        error: Original error.
        network: Network, treated as one of no known family.
        asked: Arguments of the user's call.
    """
    try:
        targets = {c.kind: _short(network, [s.path for s in choose_sites(network, c)]) for c in asked.open}
        named = {c.kind: _named(c, targets[c.kind], None) for c in asked.open}
        for config in named.values():
            choose_sites(network, config)
    except NoStagesError as unknown:
        other = with_call(unknown, network, asked)
        return PlanError(f"{error.message}. Without the family, {other.message}", problems=other.problems)
    except PlanError:
        return PlanError(f"{error.message}. Name modules inside it with target=, e.g. target='**.mlp'")
    call = asked.call(named)
    return PlanError(
        f"{error.message}. This call names modules that were found by running it, without the family:\n    {call}"
    )


def _short(network: Network, paths: list[str]) -> list[str]:
    """Return patterns, with `*` for numbers where possible, that match these modules and no others."""
    wanted, patterns = set(paths), []
    for pattern in dict.fromkeys(".".join("*" if p.isdigit() else p for p in path.split(".")) for path in paths):
        means = {path for path in network.modules if path and matches(pattern, path)}
        patterns += [pattern] if means <= wanted else [p for p in paths if p in means]
    return patterns


def _named(config: AdapterConfig, targets: list[str], item: int | None) -> AdapterConfig:
    names = {f.name for f in fields(config)}
    changes = {"every": 1} if "every" in names else {}
    if item is not None and "item" in names:
        changes["item"] = item
    return replace(config, target=tuple(targets), **changes)


def _fits(network: Network, configs: list[AdapterConfig], target: str, item: int | None) -> bool:
    """Return whether all of these adapters can be attached to a module."""
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
    for kind, config in named.items():  # `every=2` would appear twice
        flat = {k: v for k, v in flat.items() if k not in tables[kind] or not hasattr(config, k)}
    return f"lowpeft.adapt(model, {recipe!r}" + "".join(f", {k}={v!r}" for k, v in {**flat, **tables}.items())


def _changes(config: AdapterConfig) -> dict[str, Any]:
    """Return the fields that `_named` has set, as keyword arguments of a call."""
    values = {name: getattr(config, name) for name in ("every", "item") if getattr(config, name, None) is not None}
    return {"target": list(config.target or ()), **values}


def _of_config(config: AdapterConfig) -> str:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    defaults = type(config)()
    changed = {k: v for k, v in values.items() if v != getattr(defaults, k)}
    return f"lowpeft.kinds.{type(config).__name__}(" + ", ".join(f"{k}={v!r}" for k, v in changed.items()) + ")"
