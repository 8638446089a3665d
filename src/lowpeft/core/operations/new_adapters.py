"""Building, checking and filling new adapters for the sites of a plan, without attaching them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...errors import AdapterError, PlanError, did_you_mean
from ...kinds import Adapter, FeatureAdapter, RootPart, WeightAdapter
from ...ports.base import base_modules
from ..attachment.adding import added_to_random_features, base_of, change_of
from ..attachment.record import pieces
from ..attachment.slots import below
from ..observation.generators import kept_generators
from ..planning.plan import Plan
from ..planning.sites import Site, build

MOST_SUGGESTED, MOST_SEARCHED = 5, 2_000
"""Unknown names for which a known one is suggested, and names among which it is searched: both take their time."""


def build_adapters(root: nn.Module, plan: Plan, *, shared: bool = False) -> list[tuple[Site, Adapter]]:
    """Build a new adapter for every site of a plan and initialise it from the frozen weights, without attaching it.

    Args:
        root: The network.
        plan: Plan with the sites.
        shared: True to use the shared parts that are attached under the plan's name, for kinds whose shared part is not
            among the plan's sites.

    Raises:
        PlanError: An adapter cannot be built, or would change the network.
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
    """Raise if a new adapter changes the network; checks one adapter of each config, shape, layer and form."""
    asked: set[tuple[object, ...]] = set()
    for site, adapter in built:
        key = (site.config, site.shape, site.layer, site.attachment.form)
        if key not in asked and (problem := start_problem(modules[site.path], site, adapter)):
            where = f"{site.path}: " if site.path else ""
            raise PlanError(f"{where}a new {site.config.kind} adapter must add nothing, but this one {problem}")
        asked.add(key)


def start_problem(module: nn.Module, site: Site, adapter: Adapter) -> str | None:
    """Return a message (the end of a sentence) if an adapter adds anything but zero, else None.

    Feature adapters are tested with random features.
    """
    with torch.no_grad(), kept_generators(module):
        if isinstance(adapter, WeightAdapter):
            changes = [change_of(module, name, adapter) for name in adapter.attachment.tensors]
        elif isinstance(adapter, FeatureAdapter) and not adapter.reads_only:
            changes = [added_to_random_features(adapter, site.shape[0])]
        else:
            return None
    changed = [change for change in changes if bool(change.any())]
    if not all(bool(change.isfinite().all()) for change in changed):
        return "gives NaN or infinity: the frozen weights, or the start values, are not finite or too large"
    return "changes the network" if changed else None


def _new_adapter(root: nn.Module, module: nn.Module, plan: Plan, site: Site) -> Adapter:
    """Build an adapter in float32 (float64 for a float64 base), on the device of its module.

    For a module without parameters, the device is that of the network.
    """
    parameters = itertools.chain(module.parameters(), root.parameters())
    tensor = next((p for p in parameters if p.is_floating_point()), None)
    dtype = torch.float64 if tensor is not None and tensor.dtype == torch.float64 else torch.float32
    device = None if tensor is None else tensor.device
    adapter = build(site.config, site.shape, site.layer, site.attachment.form).to(device, dtype)
    adapter.attachment = site.attachment
    if isinstance(adapter, RootPart):
        adapter.output = plan.facts.output
    return adapter


def tensors_of(adapters: Iterable[tuple[str, Adapter]]) -> dict[str, Tensor]:
    """Return every tensor of some adapters, buffers included, keyed by path + kind + the adapter's own tensor name.

    E.g. `layers.1.conv.stereo.beta`.

    Args:
        adapters: Path of the module with the adapter's key (`layers.1.conv.stereo`), and adapter.
    """
    return {f"{at}.{key}": t for at, adapter in adapters for key, t in adapter.state_dict(keep_vars=True).items()}


def fill(built: list[tuple[Site, Adapter]], tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a saved adapter into new adapters.

    Raises:
        AdapterError: Tensors are missing, unknown or do not fit; all problems are listed.
    """
    wanted = tensors_of((below(site.path, site.key), adapter) for site, adapter in built)
    check_tensors(wanted, tensors, "the adapter")
    copy_tensors(wanted, tensors)
    check_values((below(site.path, site.key), adapter) for site, adapter in built)


def check_tensors(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], adapter: str) -> None:
    """Raise if tensors cannot be loaded into the tensors of an adapter.

    Raises:
        AdapterError: Tensors are missing, unknown or do not fit; all problems are listed.
    """
    if problems := tensor_problems(wanted, given) or not_finite(given):
        raise AdapterError(f"these tensors do not fit {adapter}:", problems=problems)


def check_values(adapters: Iterable[tuple[str, Adapter]]) -> None:
    """Raise if the tensors that were loaded into adapters do not have values that their kind can use.

    Raises:
        AdapterError: Values are invalid; all problems are listed.
    """
    if problems := [f"{at} {problem}" for at, adapter in adapters if (problem := adapter.problem()) is not None]:
        raise AdapterError("the values of the adapter's tensors are not valid:", problems=problems)


@torch.no_grad()
def copy_tensors(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy checked tensors into those of the same keys."""
    for key, tensor in wanted.items():
        tensor.copy_(given[key])


def tensor_problems(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return every reason but values why `given` cannot be loaded into `wanted`, one readable line each.

    Both may be on the meta device.
    """
    problems = [f"missing: {k}" for k in wanted if k not in given]
    unknown = [k for k in given if k not in wanted]
    suggested = MOST_SUGGESTED if len(wanted) <= MOST_SEARCHED else 0
    problems += [f"unknown: {k}{did_you_mean(k, wanted, most=1)}" for k in unknown[:suggested]]
    problems += [f"unknown: {k}" for k in unknown[suggested:]]
    for key, tensor in given.items():
        if key not in wanted:
            continue
        if not isinstance(tensor, Tensor):
            problems.append(f"{key} is a {type(tensor).__name__}, not a tensor")
        elif tensor.shape != wanted[key].shape:
            problems.append(f"{key} has shape {tuple(tensor.shape)}, the model needs {tuple(wanted[key].shape)}")
        elif tensor.is_floating_point() != wanted[key].is_floating_point():
            problems.append(f"{key} is {tensor.dtype}, the model needs {wanted[key].dtype}")
    return problems


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that contains NaN or infinity."""
    return [f"{key} contains NaN or infinity" for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
