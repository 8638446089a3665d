"""Attaching adapters to a model and taking them out: the only writer.

Everything that an adapted model needs to be put back is in one `Record` on the root module.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import nn

from .attach import Slot, facets_of, set_facets, slot_of, slots
from .facts import Facts
from .families import SLOT, base_modules, base_parameters
from .fingerprint import digests, fingerprint
from .kinds import Adapter
from .planning import Plan
from .record import RECORD, Record, check_name, record_of, root_of, unwrap
from .sites import Site, build
from .views import StereoModel


def pieces(root: nn.Module, name: str | None = None) -> list[tuple[str, str, Adapter]]:
    """Every adapter module as (adapter name, path of its module + key, adapter), in the order of the modules.

    Args:
        root: An adapted root.
        name: Only those of this adapter.

    Raises:
        PlanError: There is no adapter of that name.
    """
    if name is not None:
        check_name(root, name)
    return [
        (group_name, f"{path}.{key}" if path else key, piece)
        for path, _, slot in slots(root)
        for group_name, group in slot.named_children()
        if name in (None, group_name)
        for key, piece in group.named_children()
        if isinstance(piece, Adapter)
    ]


def inject(model: object, plan: Plan) -> nn.Module:
    """Carry out a plan: freeze the base, attach the adapters.

    Args:
        model: The one that was planned on.
        plan: From `lowpeft.plan`.

    Returns:
        The same object, or, for a recipe with stereo adapters, a `StereoModel` whose `backbone` is that object.

    Raises:
        PlanError: The adapters cannot be built; the model is as it was.
    """
    root = root_of(model)
    modules = dict(base_modules(root))
    built = [(modules[s.path], s, _new_adapter(root, modules[s.path], s)) for s in plan.sites]
    first = RECORD not in root.__dict__
    record = _record(root, plan.facts) if first else record_of(root)
    mode = root.training if first else any(p.training for _, _, p in pieces(root))
    root.__dict__[RECORD] = record
    record.plans[plan.name] = plan
    try:
        for module, site, adapter in built:
            _attach(module, plan.name, site, adapter)
        _set_root_facets(root, record)
    except BaseException:
        restore(root, name=plan.name)
        raise
    for _, parameter in base_parameters(root):
        parameter.requires_grad_(False)
    root.train(mode)
    if isinstance(model, StereoModel):
        return model
    return StereoModel(root, output=plan.facts.output) if facets_of(root).views else root


def _set_root_facets(root: nn.Module, record: Record) -> None:
    recipes = [p.recipe for p in record.plans.values()]
    set_facets(
        root,
        root=bool(recipes) and all(r.freeze_statistics for r in recipes),
        live_input=bool(recipes) and any(_checkpoints(m) for _, m in base_modules(root)),
        views=any(r.multi_view for r in recipes),
    )


def _checkpoints(module: nn.Module) -> bool:
    """Whether the module runs parts of itself under activation checkpointing (SwinIR's and transformers' switches)."""
    return any(getattr(module, switch, False) is True for switch in ("use_checkpoint", "gradient_checkpointing"))


def _new_adapter(root: nn.Module, module: nn.Module, site: Site) -> Adapter:
    """A new adapter on the device of its module (or, if that has no parameters, of the network), in float32.

    A float64 base gets float64 adapters.
    """
    parameters = itertools.chain(module.parameters(), root.parameters())
    tensor = next((p for p in parameters if p.is_floating_point()), None)
    dtype = torch.float64 if tensor is not None and tensor.dtype == torch.float64 else torch.float32
    adapter = build(site.config, site.shape).to(dtype)
    adapter.attachment = site.attachment
    return adapter if tensor is None else adapter.to(tensor.device)


def _record(root: nn.Module, facts: Facts) -> Record:
    tensors = digests(root)
    return Record(
        facts=facts,
        requires_grad=frozenset(path for path, p in base_parameters(root) if p.requires_grad),
        training=frozenset(path for path, m in base_modules(root) if m.training),
        base=fingerprint(root, tensors),
        digests=tensors,
    )


def _attach(module: nn.Module, name: str, site: Site, adapter: Adapter) -> None:
    slot = slot_of(module)
    if slot is None:
        slot = Slot()
        module.add_module(SLOT, slot)
    if name not in slot._modules:
        slot.add_module(name, nn.ModuleDict())
    group = slot.get_submodule(name)
    group.add_module(site.key, adapter)
    facets = facets_of(module)
    if site.attachment.form == "weight":
        set_facets(module, tensors=facets.tensors | {site.attachment.tensor})
    elif site.attachment.form == "branch":
        set_facets(module, branch=site.attachment.branch)
    else:
        set_facets(module, feature=True)


def restore(model: object, *, name: str | None = None) -> nn.Module:
    """Take adapters out again.

    Args:
        model: An adapted model or `StereoModel`.
        name: Take only this adapter out; None takes all.

    Returns:
        The object that was adapted, with its own classes; without adapters left it is as before `adapt`: bit-equal
        weights and buffers, `requires_grad` and train/eval flags as they were.

    Raises:
        PlanError: The model holds no adapters, or none of that name.
    """
    root = unwrap(model)
    record = record_of(root)
    if name is not None:
        check_name(root, name)
    for gone in [name] if name is not None else list(record.plans):
        del record.plans[gone]
        for _, module, slot in list(slots(root)):
            slot._modules.pop(gone, None)
            _trim(module, slot)
    _set_root_facets(root, record)
    if record.plans:
        return root
    del root.__dict__[RECORD]
    for path, parameter in root.named_parameters():
        parameter.requires_grad_(path in record.requires_grad)
    for path, module in root.named_modules():
        module.training = path in record.training
    return root


def drop_merged(root: nn.Module, merged: set[Adapter]) -> None:
    """Take out adapters that have become part of the base's weights; the base is another one from now on."""
    record = record_of(root)
    for path, module, slot in list(slots(root)):
        for name, group in list(slot.named_children()):
            for key, piece in list(group.named_children()):
                if piece in merged:
                    del group._modules[key]
                    plan = record.plans[name]
                    left = tuple(s for s in plan.sites if (s.path, s.key) != (path, key))
                    record.plans[name] = replace(plan, sites=left)
            if not len(group._modules):
                del slot._modules[name]
        _trim(module, slot)
    record.digests = digests(root)
    record.base = fingerprint(root, record.digests)
    for name, plan in list(record.plans.items()):
        if not plan.sites:
            restore(root, name=name)


def _trim(module: nn.Module, slot: Slot) -> None:
    """Drop what no adapter of the module needs any more."""
    left = [p.attachment for p in slot.pieces()]
    set_facets(
        module,
        feature=any(a.form == "feature" for a in left),
        branch=next((a.branch for a in left if a.branch), None),
        tensors=frozenset(a.tensor for a in left if a.tensor),
    )
    if not len(slot._modules):
        del module._modules[SLOT]
