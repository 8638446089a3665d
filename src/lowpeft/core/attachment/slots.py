"""Where a module holds its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from ...kinds import Adapter, FeatureAdapter, RootPart, WeightAdapter
from ...ports.base import SLOT
from .running import strengths_in
from .settings import Strength, is_off
from .switches import Switches

SWITCHES = "_lowpeft_switches"

Kind = TypeVar("Kind", bound=Adapter)


class Slot(nn.Module):
    """The adapters of one module: a child per adapter name, which holds that adapter's pieces here.

    Its one attribute, the switches of the network, has a name that no adapter has, so that an adapter may have any name
    that torch's modules leave free.
    """

    def __init__(self, switches: Switches | None = None) -> None:
        super().__init__()
        self.__dict__[SWITCHES] = switches or Switches()


class Acting(NamedTuple, Generic[Kind]):
    """An adapter that is on, and how strongly."""

    adapter: Kind
    strength: Strength


def below(path: str, key: str) -> str:
    """The path of something in the module of a path."""
    return f"{path}.{key}" if path else key


def pieces_in(slot: Slot) -> Iterator[Adapter]:
    """Every adapter module in a slot."""
    for group in slot.children():
        for piece in group.children():
            if isinstance(piece, Adapter):
                yield piece


def group_in(slot: Slot, name: str) -> list[tuple[str, Adapter]]:
    """Key and module of every piece of the adapter of that name in a slot."""
    group = slot._modules.get(name)
    found = group.named_children() if group is not None else ()
    return [(key, piece) for key, piece in found if isinstance(piece, Adapter)]


def drop(slot: Slot, name: str, keys: list[str]) -> None:
    """Take pieces of an adapter out of a slot."""
    group = slot._modules.get(name)
    for key in keys if group is not None else []:
        del group._modules[key]  # type: ignore[union-attr]
    if group is not None and not len(group._modules):
        del slot._modules[name]


def switches_of(slot: Slot) -> Switches:
    """The switches of the network that the slot is part of."""
    switches: Switches = slot.__dict__[SWITCHES]
    return switches


def acting_in(slot: Slot, kind: type) -> list[Acting[Any]]:
    """The adapters of that class in a slot that are on now, in the order in which they were attached.

    Those that are off are not looked at, so that attaching one does not make `torch.compile` compile the others anew.
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
    """The feature adapters on the module's output that are on."""
    return [a for a in acting_in(slot, FeatureAdapter) if a.adapter.attachment.port is None]


def at_ports(slot: Slot) -> dict[str, list[Acting[FeatureAdapter]]]:
    """The feature adapters that are on, by the port of the module's block forward."""
    found: dict[str, list[Acting[FeatureAdapter]]] = {}
    for acting in acting_in(slot, FeatureAdapter):
        if acting.adapter.attachment.port is not None:
            found.setdefault(acting.adapter.attachment.port, []).append(acting)
    return found


def on_tensor(slot: Slot, tensor: str) -> list[Acting[WeightAdapter]]:
    """The adapters of a parameter that are on."""
    return [a for a in acting_in(slot, WeightAdapter) if tensor in a.adapter.attachment.tensors]


def root_parts(slot: Slot) -> list[Acting[RootPart]]:
    """The parts in the root's slot that take part in every forward, and are on."""
    return [a for a in acting_in(slot, RootPart) if a.adapter.acts]


def slot_of(module: nn.Module) -> Slot | None:
    """The module's adapters, if it has any."""
    modules = module._modules
    slot = modules.get(SLOT) if isinstance(modules, dict) else None  # TorchScript's are no dict, and never adapted
    return slot if isinstance(slot, Slot) else None


def slots(root: nn.Module) -> Iterator[tuple[str, nn.Module, Slot]]:
    """Every adapted module below `root`: its path, itself, its slot."""
    for path, module in root.named_modules():
        slot = slot_of(module)
        if slot is not None:
            yield path, module, slot
