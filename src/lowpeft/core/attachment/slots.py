"""Slots: the child modules that hold a module's adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from ...kinds import Adapter, FeatureAdapter, RootPart, WeightAdapter
from ...ports.base import SLOT, all_modules
from .running import strengths_in
from .settings import Strength, is_off
from .switches import Switches

SWITCHES = "_lowpeft_switches"

AdapterT = TypeVar("AdapterT", bound=Adapter)


class Slot(nn.Module):
    """Adapters of one module: a child for each adapter name, whose children are that adapter's pieces in the module.

    The network's switches are stored in `__dict__` under a name that no adapter can have. So an adapter may have any
    name that is not an attribute of `nn.Module`.
    """

    def __init__(self, switches: Switches | None = None) -> None:
        super().__init__()
        self.__dict__[SWITCHES] = switches or Switches()

    def forward(self, *args: Any) -> Any:
        """Return what is given: some networks call all of their children in turn."""
        return args[0] if len(args) == 1 else args


class Acting(NamedTuple, Generic[AdapterT]):
    """An adapter that is on, with its strength."""

    adapter: AdapterT
    strength: Strength


def below(path: str, key: str) -> str:
    """Join a module's path and a name in it: `layers.1` and `conv` give `layers.1.conv`, "" and `conv` give `conv`."""
    return f"{path}.{key}" if path else key


def pieces_in(slot: Slot) -> Iterator[Adapter]:
    """Iterate over the adapter modules in a slot."""
    for group in slot.children():
        for piece in group.children():
            if isinstance(piece, Adapter):
                yield piece


def group_in(slot: Slot, name: str) -> list[tuple[str, Adapter]]:
    """Return (key, module) of every piece of one adapter in a slot."""
    group = slot._modules.get(name)
    children = group.named_children() if group is not None else ()
    return [(key, piece) for key, piece in children if isinstance(piece, Adapter)]


def drop(slot: Slot, name: str, keys: list[str]) -> None:
    """Remove pieces of an adapter from a slot, and the adapter's child module if it is empty then."""
    group = slot._modules.get(name)
    for key in keys if group is not None else []:
        del group._modules[key]  # type: ignore[union-attr]
    if group is not None and not len(group._modules):
        del slot._modules[name]


def switches_of(slot: Slot) -> Switches:
    """Return the switches of the network that the slot is part of."""
    switches: Switches = slot.__dict__[SWITCHES]
    return switches


def acting_in(slot: Slot, kind: type) -> list[Acting[Any]]:
    """Return the adapters of one class in a slot that are on now, with their strengths, in order of attachment.

    Adapters that are off are not read, so attaching one does not make `torch.compile` recompile the others.
    """
    groups = slot._modules
    return [
        Acting(piece, strength)
        for name, strength in strengths_in(switches_of(slot)).items()
        if not is_off(strength) and name in groups
        for piece in groups[name].children()  # type: ignore[union-attr]
        if isinstance(piece, kind)
    ]


def on_output(slot: Slot) -> list[Acting[FeatureAdapter]]:
    """Return the active feature adapters on the module's output."""
    return [a for a in acting_in(slot, FeatureAdapter) if a.adapter.attachment.port is None]


def at_ports(slot: Slot) -> dict[str, list[Acting[FeatureAdapter]]]:
    """Return the active feature adapters at ports of the module's block forward, by port."""
    by_port: dict[str, list[Acting[FeatureAdapter]]] = {}
    for acting in acting_in(slot, FeatureAdapter):
        if acting.adapter.attachment.port is not None:
            by_port.setdefault(acting.adapter.attachment.port, []).append(acting)
    return by_port


def on_tensor(slot: Slot, tensor: str) -> list[Acting[WeightAdapter]]:
    """Return the active adapters of a parameter."""
    return [a for a in acting_in(slot, WeightAdapter) if tensor in a.adapter.attachment.tensors]


def root_parts(slot: Slot) -> list[Acting[RootPart]]:
    """Return the active root parts that take part in every forward pass."""
    return [a for a in acting_in(slot, RootPart) if a.adapter.acts]


def slot_of(module: nn.Module) -> Slot | None:
    """Return the module's slot, or None."""
    modules = module._modules
    slot = modules.get(SLOT) if isinstance(modules, dict) else None  # not a dict in TorchScript modules
    return slot if isinstance(slot, Slot) else None


def slots(root: nn.Module) -> Iterator[tuple[str, nn.Module, Slot]]:
    """Iterate over adapted modules (`root` and below) as (path, module, slot)."""
    for path, module in all_modules(root):
        slot = slot_of(module)
        if slot is not None:
            yield path, module, slot
