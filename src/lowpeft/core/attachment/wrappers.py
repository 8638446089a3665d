"""Finding the network inside wrappers: those of torch, and lowpeft's models of several views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ...errors import PlanError

HELD: dict[str, str] = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Mapping from the class name of a torch wrapper to its attribute with the network; accelerate's `prepare` returns
some of these wrappers."""

FIXED = {
    "DistributedDataParallel": "it only synchronises parameters that existed when it was created",
    "FullyShardedDataParallel": "it splits the parameters into shards",
}
"""Class names of wrappers that register the parameters on creation, so adapters must be attached before; with the
reason for the error message."""

HOLDS = "lowpeft_holds"
"""Name of a wrapper's class attribute whose value is the name of the submodule with the network."""


def _torch_name(module: nn.Module) -> str | None:
    """Return the class name of a torch wrapper, also for instances of subclasses; None for other modules."""
    for cls in type(module).__mro__:
        if cls.__name__ in HELD.keys() | FIXED.keys() and cls.__module__.partition(".")[0] == "torch":
            return cls.__name__
    return None


def held_by(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if the module is not a wrapper."""
    name = getattr(type(module), HOLDS, None) or HELD.get(_torch_name(module) or "")
    return module._modules.get(name) if name is not None else None


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Iterate from a module through all nested wrappers; the network comes last."""
    inner: nn.Module | None = module
    while inner is not None:
        yield inner
        inner = held_by(inner)


def network_in(module: nn.Module) -> nn.Module:
    """Return the network inside all wrappers."""
    *_, network = layers(module)
    return network


def refuse_fixed(module: nn.Module) -> None:
    """Raise if the network is inside a wrapper that would not notice new parameters.

    Raises:
        PlanError: The module is, or contains, such a wrapper; the message names it and says what to do.
    """
    for layer in layers(module):
        if why := FIXED.get(_torch_name(layer) or ""):
            raise PlanError(
                f"a network inside {type(layer).__name__} cannot be changed, because {why}: adapt the network first, "
                "then wrap what `adapt` returns"
            )


def own_forward(module: nn.Module) -> Any:
    """Return the `forward` that was set on the instance, in place of the class's; None if there is none."""
    return module.__dict__.get("forward")
