"""Where a module holds its adapters."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .families import SLOT
from .kinds import Adapter, FeatureAdapter, WeightAdapter


class Slot(nn.Module):
    """The adapters of one module: a child per adapter name, which holds that adapter's pieces here.

    It has no attributes of its own, so that an adapter may have any name that torch's modules leave free.
    """


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


def on_output(slot: Slot) -> list[FeatureAdapter]:
    """The active feature adapters on the module's output."""
    found = (p for p in pieces_in(slot) if isinstance(p, FeatureAdapter))
    return [p for p in found if p.active and p.attachment.port is None]


def at_ports(slot: Slot) -> dict[str, list[FeatureAdapter]]:
    """The active feature adapters by the port of the module's block forward."""
    found: dict[str, list[FeatureAdapter]] = {}
    for piece in pieces_in(slot):
        if isinstance(piece, FeatureAdapter) and piece.active and piece.attachment.port is not None:
            found.setdefault(piece.attachment.port, []).append(piece)
    return found


def on_tensor(slot: Slot, tensor: str) -> list[WeightAdapter]:
    """The active adapters of a parameter."""
    found = (p for p in pieces_in(slot) if isinstance(p, WeightAdapter) and p.active)
    return [p for p in found if tensor in p.attachment.tensors]


def slot_of(module: nn.Module) -> Slot | None:
    """The module's adapters, if it has any."""
    slot = module._modules.get(SLOT)
    return slot if isinstance(slot, Slot) else None


def slots(root: nn.Module) -> Iterator[tuple[str, nn.Module, Slot]]:
    """Every adapted module below `root`: its path, itself, its slot."""
    for path, module in root.named_modules():
        slot = slot_of(module)
        if slot is not None:
            yield path, module, slot
