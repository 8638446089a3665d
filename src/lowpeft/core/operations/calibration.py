"""Calibration: learning the start values of adapters from data, in one pass over batches for all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...kinds import Adapter, Calibrator, FeatureAdapter, WeightAdapter
from ...ports.base import SLOT
from ..attachment.adding import base_of
from ..attachment.changes import Undo, change, one_at_a_time
from ..attachment.copies import copy_in_force
from ..attachment.record import check_name, module_of, pieces, record_of, uncalibrated, unwrap
from ..attachment.settings import Setting, is_off
from ..attachment.slots import below
from ..observation.generators import kept_generators
from ..observation.usable import refuse_inference_mode
from ..planning.plan import Plan
from ..planning.sites import Site, count_parameters
from .injection import replace_adapters
from .listening import listen
from .new_adapters import build_adapters, start_problem

Batch = Tensor | tuple[Any, ...] | list[Any]
LossFunction = Callable[[Any, Any], Tensor]


def needs_calibration(model: object) -> bool:
    """Return whether a trainable adapter is attached that learns its start from data and has not been calibrated."""
    return bool(uncalibrated(unwrap(model)))


def calibrate(
    model: object, batches: Iterable[Batch], *, loss: LossFunction | None = None, name: str | None = None
) -> dict[str, int]:
    """Let new adapters learn their start values from data, for the kinds that do so.

    A copy of the network runs once over the batches, in eval mode. Each kind sees the data that it asks for at all of
    its sites. It may choose other shapes (ranks, numbers of entries) and fills new adapters with start values. These
    replace the old adapters all at once, so create the optimiser afterwards: one that was made before would train
    nothing. They still add exactly zero. The start
    values are saved with the adapter. `lowpeft.restoration.training.train` calls this itself.

    Args:
        model: An adapted model, before its adapters are trained.
        batches: Inputs of one call each: a tensor, or a tuple of the call's arguments (the views of a scene). With
            `loss`, pairs (inputs, target).
        loss: Function of the model's output and the target that returns one number, for kinds that ask for gradients.
            It is called for one image (or scene) at a time.
        name: Name of one adapter, which is calibrated even if it was before. None means all trainable adapters that
            have not been calibrated.

    Returns:
        Number of sites that got a new start, by kind; empty if no kind learns from data, or all adapters have been
            calibrated before.

    Raises:
        PlanError: The model has no adapters, an adapter has already been trained, there are no batches, a kind asks for
            gradients and there is no `loss`, a kind has not seen enough data, or inference mode is on. The model is
            unchanged.
    """
    runs = observed(model, batches, loss=loss, name=name)
    return _finish(model, runs) if runs else {}


def observed(
    model: object, batches: Iterable[Batch], *, loss: LossFunction | None = None, name: str | None = None
) -> list[Calibration]:
    """Show the data to the calibrators of new adapters, with the arguments and errors of `calibrate`.

    Returns:
        The calibrators with their sites; nothing is settled yet, and the model is unchanged.
    """
    refuse_inference_mode()
    twin, runs = _begin(model, name)
    if not runs:
        return []
    wanted = {want for run in runs for want in run.calibrator.wants}
    if "gradients" in wanted and loss is None:
        kinds = sorted({run.kind for run in runs if "gradients" in run.calibrator.wants})
        raise PlanError(
            f"the kinds {', '.join(kinds)} start from gradients, so give loss= and batches of (inputs, target)"
        )
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        found = type(batches).__name__
        raise PlanError(f"batches must be a sequence of batches, e.g. a list of tensors, not a {found}")
    _observe(twin, runs, batches, loss, gradients="gradients" in wanted)
    return runs


@one_at_a_time
def _begin(model: object, name: str | None) -> tuple[nn.Module, list[Calibration]]:
    """Return a copy of the model to run on the data, and the runs; without runs, the root itself and an empty list."""
    root = unwrap(model)
    record = record_of(root)
    if name is not None:
        check_name(root, name)
    runs = [r for n in ([name] if name is not None else uncalibrated(root)) for r in _runs(root, record.plans[n])]
    _refuse_trained(root, runs)
    if not runs:
        return root, []
    twin = copy_in_force(module_of(model)).eval()
    switches = record_of(unwrap(twin)).switches
    setting = switches.default
    off = {run.name: 1.0 for run in runs if is_off(setting.values.get(run.name))}  # feature adapters would see nothing
    switches.default = Setting({**setting.values, **setting.by_image, **off})
    return twin, runs


@one_at_a_time
def _finish(model: object, runs: list[Calibration]) -> dict[str, int]:
    """Replace the old adapters by new ones with the learned start values."""
    root = unwrap(model)
    record = record_of(root)
    if any(record.plans.get(run.name) is not run.plan for run in runs):
        raise PlanError("adapters were removed, renamed or calibrated by another call during the calibration")
    _refuse_trained(root, runs)  # meanwhile, by another thread
    built, started = _start(root, record.plans, runs)

    def replace_all(undo: Undo) -> None:
        for plan, new in built:
            replace_adapters(root, plan, new)
            record.calibrated.add(plan.name)

    change(root, replace_all)
    return started


class Calibration:
    """Calibration of the sites of one kind and one calibrator in one adapter, by path and key."""

    def __init__(self, plan: Plan, kind: str, sites: Mapping[str, Site], adapters: Mapping[str, Adapter]) -> None:
        self.plan, self.name, self.kind, self.sites = plan, plan.name, kind, dict(sites)
        make = cast(type[Calibrator], next(iter(adapters.values())).calibrator_class)
        self.calibrator = make(adapters, {at: site.config for at, site in sites.items()})


def _runs(root: nn.Module, plan: Plan) -> list[Calibration]:
    adapters = {at: piece for _, at, piece in pieces(root, plan.name)}
    by_kind: dict[tuple[str, type[Calibrator]], dict[str, Site]] = {}
    for site in plan.sites:
        at = below(site.path, site.key)
        if (calibrator := adapters[at].calibrator_class) is not None:
            by_kind.setdefault((site.config.kind, calibrator), {})[at] = site
    return [Calibration(plan, kind, sites, {at: adapters[at] for at in sites}) for (kind, _), sites in by_kind.items()]


def _refuse_trained(root: nn.Module, runs: list[Calibration]) -> None:
    """Raise if an adapter adds anything but zero: calibration would discard what it was trained to."""
    for run in runs:
        for at, adapter in run.calibrator.adapters.items():
            site = run.sites[at]
            if start_problem(root.get_submodule(site.path), site, adapter):
                raise PlanError(f"{at} is already trained; calibrate before training")


# --- the pass over the data ------------------------------------------------------------------------------------------


def _observe(
    twin: nn.Module, runs: list[Calibration], batches: Iterable[Batch], loss: LossFunction | None, *, gradients: bool
) -> None:
    root = unwrap(twin)
    for run in runs:
        for at, site in run.sites.items():
            _listen(root, run, at, site)
    count = 0
    with kept_generators(twin):
        for batch in batches:
            arguments, target = _checked(batch, loss)
            count += 1
            if not gradients:
                _run(twin, arguments)
                continue
            for i in range(len(arguments[0])):
                _backward(
                    twin, tuple(a[i : i + 1].clone() for a in arguments), _image(target, i), cast(LossFunction, loss)
                )
                _show_gradients(root, runs)
    if not count:
        raise PlanError("there are no batches to calibrate on; give one or more")


def _run(twin: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    try:
        with torch.no_grad():
            twin(*(a.clone() for a in arguments))
    except TypeError as error:
        raise PlanError(
            f"the network cannot be called with the {len(arguments)} tensors of a batch: {error}. If the batches are "
            "pairs (inputs, target), give loss=, or pass the inputs alone"
        ) from error


def _checked(batch: object, loss: LossFunction | None) -> tuple[tuple[Tensor, ...], Any]:
    """Split a batch into the arguments of one call and the target (None without `loss`).

    Raises:
        PlanError: The batch does not have the form that `calibrate` takes.
    """
    inputs, target = batch, None
    if loss is not None:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise PlanError(f"with loss=, a batch must be a pair (inputs, target), not a {type(batch).__name__}")
        inputs, target = batch
    arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not arguments or not all(isinstance(a, Tensor) and a.dim() and len(a) and not a.is_meta for a in arguments):
        raise PlanError(
            "the inputs of a batch must be a tensor or a tuple of tensors, with at least one image, and with values"
        )
    targets = target if isinstance(target, (tuple, list)) else (target,)
    if loss is not None and not all(isinstance(t, Tensor) and t.dim() and len(t) == len(arguments[0]) for t in targets):
        raise PlanError(f"the target of a batch must have its {len(arguments[0])} images: one tensor, or one per view")
    return cast(tuple[Tensor, ...], arguments), target


def _listen(root: nn.Module, run: Calibration, at: str, site: Site) -> None:
    """Make a site of the copy pass its features, or its module's input and output, to the run's calibrator."""
    adapter = root.get_submodule(_slot_path(site, run.name))
    if isinstance(adapter, FeatureAdapter):
        listen(adapter, lambda features: run.calibrator.see_features(at, features))
        return

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        outputs = output[0] if isinstance(output, (tuple, list)) and output else output
        if inputs is not None and isinstance(outputs, Tensor):
            run.calibrator.see(at, inputs, outputs)

    module = root.get_submodule(site.path)
    run.calibrator.see_parameters(at, base_of(module, cast(WeightAdapter, adapter)))
    module.register_forward_hook(hook, with_kwargs=True)
    if "gradients" in run.calibrator.wants:
        for name in site.attachment.tensors:
            cast(nn.Parameter, module._parameters[name]).requires_grad_(True)


def _image(target: Any, index: int) -> Any:
    """Return the part of a target for one image: a tensor, or a tuple with one tensor for each view."""
    return target[index : index + 1] if isinstance(target, Tensor) else tuple(_image(t, index) for t in target)


def _slot_path(site: Site, name: str) -> str:
    return ".".join(filter(None, (site.path, SLOT, name, site.key)))


def _backward(twin: nn.Module, inputs: tuple[Tensor, ...], target: Any, loss: LossFunction) -> None:
    for parameter in twin.parameters():
        parameter.grad = None
    with torch.enable_grad():
        value = loss(twin(*inputs), target)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise PlanError("loss= must return one number, as a tensor that depends on the model's output")
        if not torch.isfinite(value).all():
            raise PlanError(f"the loss of an image is {value.item()}, not a finite number")
        torch.autograd.backward(value)


def _show_gradients(root: nn.Module, runs: list[Calibration]) -> None:
    for run in runs:
        if "gradients" not in run.calibrator.wants:
            continue
        for at, site in run.sites.items():
            parameters = root.get_submodule(site.path)._parameters
            gradients = {name: cast(nn.Parameter, parameters[name]).grad for name in site.attachment.tensors}
            run.calibrator.see_gradients(at, {n: g for n, g in gradients.items() if g is not None})


# --- the new start ---------------------------------------------------------------------------------------------------


def _start(
    root: nn.Module, plans: Mapping[str, Plan], runs: list[Calibration]
) -> tuple[list[tuple[Plan, list[tuple[Site, Adapter]]]], dict[str, int]]:
    """Build and fill new adapters from the settled configs.

    Returns:
        Updated plans, each with its new adapters, and the number of these by kind.
    """
    started: dict[str, int] = {}
    updated = {run.name: plans[run.name] for run in runs}
    built: dict[str, list[tuple[Site, Adapter]]] = {run.name: [] for run in runs}
    for run in runs:
        settled = run.calibrator.settle()
        if settled.keys() != run.sites.keys():
            raise PlanError(f"the calibrator of {run.kind} returned other sites than it was given")
        sites = {at: _settled(site, settled[at]) for at, site in run.sites.items()}
        plan = updated[run.name]
        plan = replace(plan, notes=(*plan.notes, *(f"{run.kind}: {note}" for note in run.calibrator.notes)))
        new = build_adapters(root, replace(plan, sites=tuple(sites.values())), shared=True)
        with torch.no_grad():
            for site, adapter in new:
                at = below(site.path, site.key)
                run.calibrator.fill(at, adapter)
                _keep_frozen(run.calibrator.adapters[at], adapter)
        _refuse_change(root, run, new)
        updated[run.name] = replace(plan, sites=tuple(sites.get(below(s.path, s.key), s) for s in plan.sites))
        built[run.name] += new
        started[run.kind] = started.get(run.kind, 0) + len(new)
    return [(plan, built[name]) for name, plan in updated.items()], started


def _keep_frozen(old: Adapter, new: Adapter) -> None:
    """Freeze the parameters of a new adapter that were frozen in the old one."""
    frozen = {name for name, parameter in old.named_parameters() if not parameter.requires_grad}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _settled(site: Site, config: Any) -> Site:
    if type(config) is not type(site.config):
        raise PlanError(f"the calibrator of {site.config.kind} returned a {type(config).__name__} as config")
    count = count_parameters(config, site.shape, site.layer, site.attachment.form)
    return replace(site, config=config, parameters=count)


def _refuse_change(root: nn.Module, run: Calibration, built: list[tuple[Site, Adapter]]) -> None:
    for site, adapter in built:
        if start_problem(root.get_submodule(site.path), site, adapter):
            raise PlanError(f"the start values of {run.kind} on {site.path} change the network; they must add zero")
