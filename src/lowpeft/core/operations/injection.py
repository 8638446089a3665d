"""Attaching adapters to a model and removing them; no other module changes a model's structure.

One `Record` on the root module stores everything that is needed to restore an adapted model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from ...errors import PlanError
from ...families import get_block
from ...kinds import Adapter, RootPart
from ...ports.base import SLOT, base_modules, base_parameters
from ...ports.facts import RECORD, Backbone, Facts
from ..attachment.changes import Undo, change, one_at_a_time, switches_for
from ..attachment.record import Record, check_name, module_of, pieces, record_of, root_of, unwrap
from ..attachment.slots import Slot, drop, group_in, pieces_in, slot_of, slots
from ..attachment.specialise import facets_of
from ..attachment.views import MultiViewModel, StereoModel
from ..attachment.wrappers import layers, refuse_fixed
from ..observation.blocks import block_problem, variant_in
from ..observation.describe import facts_of
from ..observation.fingerprint import digests, fingerprint
from ..observation.generators import kept_generators
from ..planning.conflicts import check_new_name
from ..planning.plan import Plan, check_plan
from ..planning.sites import Site
from .classes import finish, put_flags_back, renew_classes, set_module_class, set_root_class, undo_optimisation
from .new_adapters import build_adapters, fill


def inject(model: object, plan: Plan) -> nn.Module:
    """Carry out a plan: freeze the base, attach the adapters.

    Args:
        model: The model that was passed to `lowpeft.plan`.
        plan: Result of `lowpeft.plan`.

    Returns:
        The same object. For a recipe whose adapters mix n views, a model of n views (`StereoModel` for two) whose
        `backbone` is that object.

    Raises:
        PlanError: The plan is for another network, or is outdated because adapters have been attached or replaced
            since; the base contains NaN or infinity; or the adapters cannot be built. The model is unchanged.
    """
    _refuse_nan(module_of(model))
    return attach_plan(model, plan)


def _refuse_nan(base: nn.Module) -> None:
    """Raise PlanError for parameters that are not finite: everything trained on such a base is lost."""
    checked = ((n, p) for n, p in base.named_parameters() if p.is_floating_point() and p.element_size() > 1)
    if wrong := [
        f"{name} contains NaN or infinity" for name, p in checked if not p.is_meta and not bool(p.isfinite().all())
    ]:
        raise PlanError(f"the weights of this {type(base).__name__} are not finite; load them again:", problems=wrong)


@one_at_a_time
def attach_plan(
    model: object,
    plan: Plan,
    *,
    found: dict[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    calibrated: bool = False,
) -> nn.Module:
    """Carry out a plan like `inject`, optionally with the tensors of a saved adapter.

    Args:
        model: The model that the plan was made for.
        plan: Sites of the adapters.
        found: Digests of the base's tensors; computed by default.
        tensors: Tensors of the adapter, by site and name, which are loaded before the adapters are attached.
        calibrated: True if the adapter has learned its start from data.
    """
    root = root_of(model)
    refuse_fixed(module_of(model))
    check_plan(root, plan)
    with kept_generators(root):
        built = build_adapters(root, plan)
    if tensors is not None:
        fill(built, tensors)
    first = RECORD not in root.__dict__ or not record_of(root).plans
    new = _record(root, plan.facts, found) if first else None

    def attach(undo: Undo) -> None:
        record = record_of(root)
        if new is not None:  # the base may have changed since it got other forwards
            record.requires_grad, record.training = new.requires_grad, new.training
            record.base, record.digests, record.in_files = new.base, new.digests, None
        modules = dict(base_modules(root))
        attached = [piece for _, _, piece in pieces(root)]
        mode = any(piece.training for piece in attached) if attached else root.training
        record.plans[plan.name] = plan
        record.facts = plan.facts
        if isinstance(model, Backbone) and model.making is not None:
            record.making = replace(model.making, anew=None)  # models are pickled, a user's function may not be
        if calibrated:
            record.calibrated.add(plan.name)
        for site, adapter in built:
            _attach(modules[site.path], plan.name, site, adapter, record)
        for _, parameter in base_parameters(root):
            parameter.requires_grad_(False)
        set_root_class(root, record)
        root.train(mode)

    change(root, attach, record=None if RECORD in root.__dict__ else new)
    module, views = module_of(model), facets_of(root).views
    if views == 1 or any(isinstance(layer, MultiViewModel) for layer in layers(module)):
        return module
    return _of_views(module, views, plan.facts)


def _of_views(backbone: nn.Module, views: int, facts: Facts) -> MultiViewModel:
    if views == 2:
        return StereoModel(backbone, output=facts.output, channels=facts.input_channels)
    return MultiViewModel(backbone, views=views, output=facts.output, channels=facts.input_channels)


def replace_adapters(root: nn.Module, plan: Plan, built: list[tuple[Site, Adapter]]) -> None:
    """Replace the adapters at the sites in `built`, and the plan of the same name; call within `changes.change`."""
    for site, adapter in built:
        group = root.get_submodule(site.path)._modules[SLOT]._modules[plan.name]  # type: ignore[union-attr]
        old = cast(Adapter, group._modules[site.key])  # type: ignore[union-attr]
        adapter.train(old.training)
        dtype = next((p.dtype for p in old.parameters()), None)
        if dtype is not None:
            adapter.to(dtype)
        if not any(p.requires_grad for p in old.parameters()):
            adapter.requires_grad_(False)
        group._modules[site.key] = adapter  # type: ignore[union-attr]
    record_of(root).plans[plan.name] = plan
    switches = record_of(root).switches
    switches.owners = {**switches.owners, plan.name: object()}


def _record(root: nn.Module, facts: Facts, found: dict[str, str] | None = None) -> Record:
    tensors = digests(root) if found is None else found
    return Record(
        facts=facts,
        requires_grad=frozenset(path for path, p in base_parameters(root) if p.requires_grad),
        training=frozenset(path for path, m in base_modules(root) if m.training),
        base=fingerprint(root, tensors),
        digests=tensors,
        switches=switches_for(root),
    )


def _attach(module: nn.Module, name: str, site: Site, adapter: Adapter, record: Record) -> None:
    slot = slot_of(module)
    if slot is None:
        slot = Slot(record.switches)
        module.add_module(SLOT, slot)
    if name not in slot._modules:
        slot.add_module(name, nn.ModuleDict())
    group = slot.get_submodule(name)
    group.add_module(site.key, adapter)
    set_module_class(record, site.path, module)


def install_forwards(model: object, forwards: Mapping[str, str]) -> None:
    """Replace the forwards of blocks, with or without adapters in them; `restore` undoes it.

    Args:
        model: A network, adapted or not.
        forwards: Mapping from path of a block to name of a block forward.

    Raises:
        PlanError: The results of a block and its block forward differ (by more than `blocks.CLOSE` if the block forward
            is not exact), or the block has adapters at ports that the block forward does not have, or adapters for
            another forward. Or a path is not a module. The model is unchanged.
    """
    root = root_of(model)
    modules, problems = dict(base_modules(root)), []
    for path, name in forwards.items():
        if path not in modules:
            problems.append(f"the network has no module {path}")
        elif problem := block_problem(modules[path], get_block(name)):
            problems.append(f"{path} {problem}")
        else:
            slot = slot_of(modules[path])
            attachments = [p.attachment for p in pieces_in(slot) if p.attachment.port] if slot is not None else []
            used = {a.port for a in attachments if a.port} - get_block(name).ports
            problems += [f"{path} has adapters at the port {port}, which {name} does not have" for port in used]
            others = {a.block for a in attachments if variant_in(a.block) != variant_in(name)}
            problems += [f"{path} has adapters for {other}, not for {name}" for other in others]
    if problems:
        raise PlanError("the forwards of these blocks cannot be replaced:", problems=problems)
    new = None if RECORD in root.__dict__ else new_record(root, model)

    def install(undo: Undo) -> None:
        for path, name in forwards.items():
            record_of(root).forwards[path] = name
            set_module_class(record_of(root), path, modules[path])
        set_root_class(root, record_of(root))

    change(root, install, record=new)


def new_record(root: nn.Module, model: object) -> Record:
    """Return the record of a network that gets other forwards, but no adapters."""
    return _record(root, facts_of(model))


@one_at_a_time
def restore(model: object, name: str | None = None) -> nn.Module:
    """Remove adapters from a model.

    The call waits for forward passes in other threads. After an interruption the model is either unchanged or fully
    restored. A shallow copy (`copy.copy`) shares its modules with the original, so both lose their adapters; use
    `copy.deepcopy`.

    Args:
        model: An adapted model, or a model of several views.
        name: Name of one adapter; None removes all adapters, forwards that replaced those of blocks, and the changes
            that `optimize` made.

    Returns:
        The object that was adapted, in the wrapper that was passed to `adapt` if there was one. If no adapters are
        left, classes, weights, buffers, `requires_grad` and train/eval flags are the same as before `adapt`, bit for
        bit.

    Raises:
        PlanError: The model has no adapters, or none of that name.
    """
    root = unwrap(model)
    if name is not None:
        check_name(root, name)
    record = record_of(root)
    change(root, lambda undo: _take_out(root, [name] if name is not None else [*record.plans], undo, all=name is None))
    around = [*layers(module_of(model))]
    if around[-1] is not root:  # the network is a submodule of a user's module
        return root
    views = [i for i, layer in enumerate(around) if isinstance(layer, MultiViewModel)]
    return around[views[-1] + 1 if views else 0]


def delete(model: object, name: str) -> nn.Module:
    """Remove one adapter: `restore(model, name)`.

    Args:
        model: An adapted model.
        name: Name of the adapter. After the last one is removed, the network is the same as before `adapt`.

    Returns:
        The object that was adapted.

    Raises:
        PlanError: The model has no adapters, or none of that name.
    """
    return restore(model, name)


@one_at_a_time
def rename(model: object, name: str, new: str) -> None:
    """Rename an adapter: in `using`, in files that are saved later, and in the names of its parameters.

    Parameters stay the same objects, so optimisers and training go on. In a `using` block that is open elsewhere with
    the old name, further forward passes raise.

    Args:
        model: An adapted model.
        name: Current name of the adapter.
        new: New name: letters, digits and underscores; not in use.

    Raises:
        PlanError: No adapter has that name, or the new name is not valid. The model is unchanged.
    """
    root = unwrap(model)
    check_name(root, name)
    if new == name:
        return
    check_new_name(root, new)

    def give(undo: Undo) -> None:
        record = record_of(root)
        for _, _, slot in slots(root):
            groups = [(new if key == name else key, group) for key, group in slot.named_children()]
            slot._modules.clear()
            slot._modules.update(groups)
        plans = [replace(p, name=new) if p.name == name else p for p in record.plans.values()]
        record.plans = {p.name: p for p in plans}
        record.calibrated = {new if n == name else n for n in record.calibrated}
        record.switches.rename(name, new)
        set_root_class(root, record)

    change(root, give)


def _take_out(root: nn.Module, names: list[str], undo: Undo, *, all: bool) -> None:  # noqa: A002  (all of them)
    """Remove adapters, and with `all` the replaced block forwards and optimisation; call within `changes.change`."""
    record = record_of(root)
    for gone in names:
        del record.plans[gone]
        record.calibrated.discard(gone)
        for path, module, slot in list(slots(root)):
            slot._modules.pop(gone, None)
            _trim(record, path, module, slot)
    if names and not record.plans:
        put_flags_back(root)
    if all:
        replaced, record.forwards = set(record.forwards), {}
        undo_optimisation(root, undo)
        renew_classes(root, replaced)
    finish(root)


def drop_merged(root: nn.Module, merged: set[Adapter], undo: Undo) -> None:
    """Remove adapters that were merged into the base's weights, and fingerprint the changed base.

    `requires_grad` and train/eval flags of the base stay unchanged. Call within `changes.change`.
    """
    record = record_of(root)
    training = {path for path, module in base_modules(root) if module.training}
    gradients = {path for path, parameter in base_parameters(root) if parameter.requires_grad}
    for name, plan in list(record.plans.items()):
        here = {(path, key): piece for path, _, slot in slots(root) for key, piece in group_in(slot, name)}
        left = [s for s in plan.sites if here[s.path, s.key] not in merged]
        kinds = {s.config.kind for s in left if s.attachment.form != "root"}
        acting = {at for at, piece in here.items() if isinstance(piece, RootPart) and piece.acts}
        # A shared part is removed with the last of its sites, unless it acts by itself.
        left = [s for s in left if s.config.kind in kinds or (s.path, s.key) in acting]
        record.plans[name] = replace(plan, sites=tuple(left))
        kept = {(s.path, s.key) for s in left}
        for path, module, slot in list(slots(root)):
            drop(slot, name, [key for key, _ in group_in(slot, name) if (path, key) not in kept])
            _trim(record, path, module, slot)
    record.digests = digests(root)
    record.base, record.in_files = fingerprint(root, record.digests), None
    gone = [n for n, plan in record.plans.items() if not plan.sites]
    _take_out(root, gone, undo, all=False)
    for path, module in base_modules(root):
        module.training = path in training
    for path, parameter in base_parameters(root):
        parameter.requires_grad_(path in gradients)


def _trim(record: Record, path: str, module: nn.Module, slot: Slot) -> None:
    """Update a module's class after adapters were removed, and delete its slot if it is empty."""
    set_module_class(record, path, module)
    if not len(slot._modules):
        del module._modules[SLOT]
