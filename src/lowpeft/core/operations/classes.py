"""Which class and which layout has each module? As its record says; called within `changes.change`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ...kinds import Adapter, RootPart, WeightAdapter
from ...ports.base import base_modules, base_parameters
from ...ports.facts import RECORD
from ...ports.layouts import Layout
from ..attachment.changes import Undo, lay_out
from ..attachment.record import Optimised, Record, pieces, record_of
from ..attachment.root_forwards import can_checkpoint
from ..attachment.slots import pieces_in, slot_of
from ..attachment.specialise import set_facets
from ..observation.blocks import variant_in


def set_module_class(record: Record, path: str, module: nn.Module) -> None:
    """Update a module's class to its adapters, its replaced forward and its optimisation."""
    slot, optimised = slot_of(module), record.optimised
    attachments = [p.attachment for p in pieces_in(slot)] if slot is not None else []
    block = record.forwards.get(path) or next((a.block for a in attachments if a.block is not None), None)
    tensors = frozenset(t for a in attachments for t in a.tensors)
    fused = None if optimised is None else optimised.fused.get(path)
    set_facets(
        module,
        output=any(a.form == "output" for a in attachments),
        block=block or fused,
        lean=optimised is not None and path in optimised.lean and not tensors,
        memory=optimised.memory if optimised is not None and path in optimised.blocks else None,
        tensors=tensors,
    )


def renew_classes(root: nn.Module, paths: Iterable[str]) -> None:
    """Update the classes of these modules of the base, and of the root."""
    wanted = set(paths)
    for path, module in base_modules(root):
        if path in wanted:
            set_module_class(record_of(root), path, module)
    set_root_class(root, record_of(root))


def set_root_class(root: nn.Module, record: Record) -> None:
    """Update the root's class and its switches to the attached adapters."""
    recipes = [p.recipe for p in record.plans.values()]
    attached = pieces(root)
    whole = frozenset(name for name, _, piece in attached if _acts_on_whole_batches(piece))
    record.switches.attach(record.plans, whole, record.views)
    set_facets(
        root,
        root=bool(recipes) and all(r.freeze_statistics for r in recipes),
        live_input=bool(recipes) and can_checkpoint(root),
        acts=any(isinstance(p, RootPart) and p.acts for _, _, p in attached),
        views=record.views,
        switched=record.in_use,
    )


def _acts_on_whole_batches(piece: Adapter) -> bool:
    """Return whether an adapter cannot have one strength per image: it changes weights, or sees windows."""
    at = piece.attachment
    return isinstance(piece, WeightAdapter) or at.layout is Layout.WLC or variant_in(at.block) is not None


def finish(root: nn.Module) -> None:
    """Update the root's class, and remove the record if it says nothing more."""
    record = record_of(root)
    set_root_class(root, record)
    if not record.in_use:
        del root.__dict__[RECORD]


def put_flags_back(root: nn.Module) -> None:
    """Give the base the flags that it had before the first adapter was attached."""
    record = record_of(root)
    for path, parameter in base_parameters(root):
        parameter.requires_grad_(path in record.requires_grad)
    for path, module in base_modules(root):
        module.training = path in record.training


def install_optimisation(root: nn.Module, found: Optimised, undo: Undo) -> None:
    """Change forwards and layouts as `planning.optimised` found; call within `changes.change`."""
    record = record_of(root)
    record.optimised = found
    renew_classes(root, found.blocks | found.lean)
    parameters = dict(base_parameters(root))
    undo.keep_layouts(parameters[path] for path in found.relaid)
    with torch.inference_mode(False):  # made in it, weights could not be trained afterwards
        for path in found.relaid:
            parameters[path].data = parameters[path].data.contiguous(memory_format=torch.channels_last)


def undo_optimisation(root: nn.Module, undo: Undo) -> None:
    """Put forwards and layouts back as they were before `optimize`, if it was called."""
    record = record_of(root)
    found, record.optimised = record.optimised, None
    if found is None:
        return
    renew_classes(root, found.blocks | found.lean)
    now = dict(base_parameters(root))  # the user may have replaced layers
    same = {p: now[p] for p, (shape, _) in found.relaid.items() if p in now and now[p].shape == shape}
    undo.keep_layouts(same.values())
    for path, parameter in same.items():
        lay_out(parameter, found.relaid[path][1])
