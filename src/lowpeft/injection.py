"""Attaching adapters to a model and taking them out: the only writer.

Everything that an adapted model needs to be put back is in one `Record` on the root module.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from .adding import added_to_random_features, base_of, change_of
from .attach import can_checkpoint, facets_of, set_facets
from .blocks import block_problem
from .describe import facts_of
from .errors import PlanError
from .facts import RECORD, Facts
from .families import SLOT, base_modules, base_parameters, get_block
from .fingerprint import digests, fingerprint
from .kinds import Adapter, FeatureAdapter, RootPart, WeightAdapter
from .planning import Plan, check_plan
from .record import Record, check_name, module_of, record_of, root_of, unwrap
from .sites import Site, build
from .slots import Slot, drop, group_in, pieces_in, slot_of, slots
from .views import MultiViewModel, StereoModel


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
        The same object, or, for a recipe whose adapters mix views, a model of so many views (`StereoModel` for two)
        whose `backbone` is that object.

    Raises:
        PlanError: The plan is of another network, or of this one as it was before adapters were attached or replaced;
            or the adapters cannot be built. The model is unchanged.
    """
    return attach_plan(model, plan)


def attach_plan(model: object, plan: Plan, found: dict[str, str] | None = None) -> nn.Module:
    """As `inject`; `found` are the digests of the base's tensors, where they are known already."""
    root = root_of(model)
    check_plan(root, plan)
    modules = dict(base_modules(root))
    first = RECORD not in root.__dict__
    built = build_adapters(root, plan)
    record = _record(root, plan.facts, found) if first else record_of(root)
    attached = [piece for _, _, piece in pieces(root)]
    mode = any(piece.training for piece in attached) if attached else root.training
    root.__dict__[RECORD] = record
    record.plans[plan.name] = plan
    told, record.facts = record.facts, plan.facts
    try:
        for site, adapter in built:
            _attach(modules[site.path], plan.name, site, adapter, record.forwards.get(site.path))
        _set_root_facets(root, record)
    except BaseException:
        record.facts = told
        restore(root, name=plan.name)
        raise
    for _, parameter in base_parameters(root):
        parameter.requires_grad_(False)
    root.train(mode)
    if facets_of(root).views == 1 or isinstance(module_of(model), MultiViewModel):
        return module_of(model)
    return _of_views(root, facets_of(root).views, plan.facts)


def _of_views(root: nn.Module, views: int, facts: Facts) -> MultiViewModel:
    if views == 2:
        return StereoModel(root, output=facts.output, channels=facts.channels)
    return MultiViewModel(root, views=views, output=facts.output, channels=facts.channels)


def _set_root_facets(root: nn.Module, record: Record) -> None:
    recipes = [p.recipe for p in record.plans.values()]
    parts = [p for _, _, p in pieces(root) if isinstance(p, RootPart)]
    set_facets(
        root,
        root=bool(recipes) and all(r.freeze_statistics for r in recipes),
        live_input=bool(recipes) and can_checkpoint(root),
        acts=any(p.acts for p in parts),
        views=max([r.views for r in recipes], default=1),
    )


def build_adapters(root: nn.Module, plan: Plan, *, shared: bool = False) -> list[tuple[Site, Adapter]]:
    """A new adapter for every site of a plan, started from the frozen weights; not attached.

    Args:
        root: The network.
        plan: The sites.
        shared: Join the shared parts that are attached under the plan's name, where the plan has none of its own.

    Raises:
        PlanError: An adapter cannot be built.
    """
    modules = dict(base_modules(root))
    built = [(site, _new_adapter(root, modules[site.path], plan, site)) for site in plan.sites]
    attached = [p for _, _, p in pieces(root, plan.name)] if shared else []
    parts = {p.kind: p for p in attached if isinstance(p, RootPart)}
    parts |= {site.config.kind: adapter for site, adapter in built if isinstance(adapter, RootPart)}
    with torch.no_grad():
        for site, adapter in built:
            if site.config.kind in parts and not isinstance(adapter, RootPart):
                adapter.join(parts[site.config.kind])
            if isinstance(adapter, WeightAdapter) and type(adapter).start is not WeightAdapter.start:
                base = base_of(modules[site.path], adapter)
                adapter.start({name: tensor.clone() for name, tensor in base.items()})
        _refuse_changing_starts(modules, built)
    return built


def _refuse_changing_starts(modules: dict[str, nn.Module], built: list[tuple[Site, Adapter]]) -> None:
    """Refuse a kind whose new adapters change the network; one adapter of each config and shape is asked."""
    asked: set[tuple[object, ...]] = set()
    for site, adapter in built:
        key = (site.config, site.shape, site.layer, site.attachment.form)
        if key not in asked and (problem := start_problem(modules[site.path], site, adapter)):
            where = f"{site.path}: " if site.path else ""
            raise PlanError(f"{where}a new {site.config.kind} adapter must add nothing, and this one {problem}")
        asked.add(key)


def start_problem(module: nn.Module, site: Site, adapter: Adapter) -> str | None:
    """What an adapter adds, as the end of a sentence; None if that is nothing, as for a new one.

    Features to ask a feature adapter about are random.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if isinstance(adapter, WeightAdapter):
            changes = [change_of(module, name, adapter) for name in adapter.attachment.tensors]
        elif isinstance(adapter, FeatureAdapter) and not adapter.reads_only:
            changes = [added_to_random_features(adapter, site.shape[0])]
        else:
            return None
    return "changes the network" if any(bool(change.any()) for change in changes) else None


def replace_adapters(root: nn.Module, plan: Plan, built: list[tuple[Site, Adapter]]) -> None:
    """Put new adapters in place of those at the same sites, and the plan in place of the one of its name."""
    for site, adapter in built:
        group = root.get_submodule(site.path)._modules[SLOT]._modules[plan.name]  # type: ignore[union-attr]
        old = cast(Adapter, group._modules[site.key])  # type: ignore[union-attr]
        adapter.train(old.training)
        adapter.strength, adapter.enabled = old.strength, old.enabled
        dtype = next((p.dtype for p in old.parameters()), None)
        if dtype is not None:
            adapter.to(dtype)
        if not any(p.requires_grad for p in old.parameters()):
            adapter.requires_grad_(False)
        group._modules[site.key] = adapter  # type: ignore[union-attr]
    record_of(root).plans[plan.name] = plan


def _new_adapter(root: nn.Module, module: nn.Module, plan: Plan, site: Site) -> Adapter:
    """A new adapter on the device of its module (or, if that has no parameters, of the network), in float32.

    A float64 base gets float64 adapters.
    """
    parameters = itertools.chain(module.parameters(), root.parameters())
    tensor = next((p for p in parameters if p.is_floating_point()), None)
    dtype = torch.float64 if tensor is not None and tensor.dtype == torch.float64 else torch.float32
    adapter = build(site.config, site.shape, site.layer, site.attachment.form).to(dtype)
    adapter.attachment = site.attachment
    adapter.adapter_name = plan.name
    if isinstance(adapter, RootPart):
        adapter.output = plan.facts.output
    return adapter if tensor is None else adapter.to(tensor.device)


def _record(root: nn.Module, facts: Facts, found: dict[str, str] | None = None) -> Record:
    tensors = digests(root) if found is None else found
    return Record(
        facts=facts,
        requires_grad=frozenset(path for path, p in base_parameters(root) if p.requires_grad),
        training=frozenset(path for path, m in base_modules(root) if m.training),
        base=fingerprint(root, tensors),
        digests=tensors,
    )


def _attach(module: nn.Module, name: str, site: Site, adapter: Adapter, forward: str | None) -> None:
    slot = slot_of(module)
    if slot is None:
        slot = Slot()
        module.add_module(SLOT, slot)
    if name not in slot._modules:
        slot.add_module(name, nn.ModuleDict())
    group = slot.get_submodule(name)
    group.add_module(site.key, adapter)
    _set_module_facets(module, slot, forward=forward)


def _set_module_facets(module: nn.Module, slot: Slot | None, *, forward: str | None = None) -> None:
    """Give a module the class that its adapters need.

    Args:
        module: Any module.
        slot: Its adapters.
        forward: Name of the block forward that it has whatever its adapters.
    """
    acts = [p.attachment for p in pieces_in(slot)] if slot is not None else []
    set_facets(
        module,
        output=any(a.form == "output" for a in acts),
        block=forward or next((a.block for a in acts if a.block is not None), None),
        tensors=frozenset(t for a in acts for t in a.tensors),
    )


def install_forwards(model: object, forwards: Mapping[str, str]) -> None:
    """Give blocks another forward, with or without adapters in them; `restore` takes it out again.

    Args:
        model: A network, adapted or not.
        forwards: Name of a block forward by the path of the block.

    Raises:
        PlanError: A block does not compute what its forward computes (up to `blocks.CLOSE` for one that is not exact),
            or adapters sit at ports that it does not have. Nothing is changed.
    """
    root = root_of(model)
    modules, problems = dict(base_modules(root)), []
    for path, name in forwards.items():
        if path not in modules:
            problems.append(f"there is no module {path}")
        elif problem := block_problem(modules[path], get_block(name)):
            problems.append(f"{path} {problem}")
        else:
            slot = slot_of(modules[path])
            used = {p.attachment.port for p in pieces_in(slot) if p.attachment.port} if slot is not None else set()
            problems += [
                f"{path} has adapters at the port {p}, which {name} has not" for p in used - get_block(name).ports
            ]
    if problems:
        raise PlanError("these blocks cannot get another forward:", problems=problems)
    record = root.__dict__.get(RECORD) or _record(root, facts_of(model))
    root.__dict__[RECORD] = record
    for path, name in forwards.items():
        record.forwards[path] = name
        _set_module_facets(modules[path], slot_of(modules[path]), forward=name)


def restore(model: object, name: str | None = None) -> nn.Module:
    """Take adapters out again.

    Args:
        model: An adapted model, or a model of several views.
        name: Take only this adapter out; None takes all, and the forwards that `optimize` installed.

    Returns:
        The object that was adapted, with its own classes; without adapters left it is as before `adapt`: bit-equal
        weights and buffers, `requires_grad` and train/eval flags as they were. (A shallow copy, `copy.copy`, shares its
        modules with the original: what is taken out of one is taken out of both. Use `copy.deepcopy`.)

    Raises:
        PlanError: The model holds no adapters, or none of that name.
    """
    root = unwrap(model)
    record = record_of(root)
    if name is not None:
        check_name(root, name)
    for gone in [name] if name is not None else list(record.plans):
        del record.plans[gone]
        record.calibrated.discard(gone)
        for path, module, slot in list(slots(root)):
            slot._modules.pop(gone, None)
            _trim(module, slot, record.forwards.get(path))
    if name is None:
        for path in list(record.forwards):
            del record.forwards[path]
            module = root.get_submodule(path)
            _set_module_facets(module, slot_of(module))
    _set_root_facets(root, record)
    if record.plans or record.forwards:
        return root
    del root.__dict__[RECORD]
    for path, parameter in root.named_parameters():
        parameter.requires_grad_(path in record.requires_grad)
    for path, module in root.named_modules():
        module.training = path in record.training
    return root


def drop_merged(root: nn.Module, merged: set[Adapter]) -> None:
    """Take out adapters that have become part of the base's weights; the base is another one from now on.

    What is left keeps its flags: whether parameters require gradients, and which modules are in training mode.
    """
    record = record_of(root)
    training = {path for path, module in base_modules(root) if module.training}
    gradients = {path for path, parameter in base_parameters(root) if parameter.requires_grad}
    for name, plan in list(record.plans.items()):
        here = {(path, key): piece for path, _, slot in slots(root) for key, piece in group_in(slot, name)}
        left = [s for s in plan.sites if here[s.path, s.key] not in merged]
        kinds = {s.config.kind for s in left if s.attachment.form != "root"}
        acting = {at for at, piece in here.items() if isinstance(piece, RootPart) and piece.acts}
        # A shared part goes with the last of its sites, unless it acts on its own.
        left = [s for s in left if s.config.kind in kinds or (s.path, s.key) in acting]
        record.plans[name] = replace(plan, sites=tuple(left))
        kept = {(s.path, s.key) for s in left}
        for path, module, slot in list(slots(root)):
            drop(slot, name, [key for key, _ in group_in(slot, name) if (path, key) not in kept])
            _trim(module, slot, record.forwards.get(path))
    record.digests = digests(root)
    record.base = fingerprint(root, record.digests)
    for name in [n for n, plan in record.plans.items() if not plan.sites]:
        restore(root, name)
    for path, module in base_modules(root):
        module.training = path in training
    for path, parameter in base_parameters(root):
        parameter.requires_grad_(path in gradients)


def _trim(module: nn.Module, slot: Slot, forward: str | None) -> None:
    """Drop what no adapter of the module needs any more."""
    _set_module_facets(module, slot, forward=forward)
    if not len(slot._modules):
        del module._modules[SLOT]
