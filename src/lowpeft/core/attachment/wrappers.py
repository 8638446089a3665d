"""What holds a network and passes its input and output on: torch's wrappers, and lowpeft's models of several views."""

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
"""Where torch's wrappers keep the network, by the name of their class; accelerate's `prepare` gives some of these."""

FIXED = {
    "DistributedDataParallel": "it exchanges the gradients of the parameters that it found when it was made",
    "FullyShardedDataParallel": "it holds the parameters in pieces",
}
"""Wrappers that take note of the parameters when they are made, so that adapters must be there before; and why."""

HOLDS = "lowpeft_holds"
"""The class attribute by which a wrapper says under which name it holds the network."""


def _torch_name(module: nn.Module) -> str | None:
    """The name of the class of torch that a module is of; None where it is of none of those that hold a network."""
    for cls in type(module).__mro__:
        if cls.__name__ in HELD.keys() | FIXED.keys() and cls.__module__.partition(".")[0] == "torch":
            return cls.__name__
    return None


def held_by(module: nn.Module) -> nn.Module | None:
    """The network that a wrapper holds; None for any other module."""
    name = getattr(type(module), HOLDS, None) or HELD.get(_torch_name(module) or "")
    return module._modules.get(name) if name is not None else None


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """A module, what it holds if it is a wrapper, what that holds, …; the network comes last."""
    inner: nn.Module | None = module
    while inner is not None:
        yield inner
        inner = held_by(inner)


def network_in(module: nn.Module) -> nn.Module:
    """The network in all wrappers."""
    *_, network = layers(module)
    return network


def refuse_fixed(module: nn.Module) -> None:
    """Refuse to change what a wrapper holds that would not notice.

    Raises:
        PlanError: Saying which wrapper, and what to do.
    """
    for layer in layers(module):
        if why := FIXED.get(_torch_name(layer) or ""):
            raise PlanError(
                f"{type(layer).__name__} cannot be changed inside, because {why}: adapt the network first, and wrap "
                "what `adapt` returns"
            )


def own_forward(module: nn.Module) -> Any:
    """The forward that was put on the instance, in place of that of its class; None if there is none."""
    return module.__dict__.get("forward")
