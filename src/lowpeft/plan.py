"""Planning: what an adapter would change, as a value. Reads the model, never writes it; every refusal is here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attach import Slot, original_class, slot_of
from .backbones import Backbone
from .errors import PlanError
from .families import (
    SLOT,
    FoundPlace,
    Place,
    Recognised,
    base_modules,
    base_parameters,
    find_places,
    get_branch,
    recognise,
)
from .kinds import Adapter, AdapterConfig, Attachment, FeatureAdapter, Kind, WeightAdapter, get_kind
from .layouts import Layout
from .patterns import Candidate, select
from .probe import Observation, evaluating, first_that_works, observe, probe_places
from .recipes import Recipe, load_recipe, override
from .stereo_model import StereoModel


@dataclass(frozen=True, kw_only=True)
class Site(Candidate):
    """One adapter that would be attached.

    Attributes:
        config: Of the adapter; its type is the kind.
        key: The adapter's name within its module's slot: the kind, for weights followed by the parameter.
        module: Class name of the adapted module.
        shape: (channels,) of the features, or the shape of the weight.
        attachment: How it acts on its module.
        parameters: How many the adapter trains here.
    """

    config: AdapterConfig
    key: str
    module: str
    shape: tuple[int, ...]
    attachment: Attachment
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `adapt` would do; printing it gives a table.

    Attributes:
        model: Class name of the network.
        family: Of the network, or None where its stages were found by running it or the sites were named.
        name: The adapter's name.
        recipe: What was asked for.
        sites: Where the adapters go.
        base_parameters: Of the frozen network.
    """

    model: str
    family: str | None
    name: str
    recipe: Recipe
    sites: tuple[Site, ...] = field(repr=False)
    base_parameters: int

    @property
    def parameters(self) -> int:
        """How many parameters the adapters train."""
        return sum(s.parameters for s in self.sites)

    def __str__(self) -> str:
        share = 100 * self.parameters / max(1, self.base_parameters)
        heading = (
            f"{self.recipe.name!r} on {self.model} ({self.family or 'no known family'}): {len(self.sites)} sites, "
            f"{self.parameters:,} trained of {self.base_parameters:,} frozen parameters ({share:.2f} %)"
        )
        rows = [("kind", "stage", "site", "class", "shape", "parameters")]
        rows += [
            (
                s.config.kind,
                "" if s.stage is None else str(s.stage),
                s.path + (f" [{s.attachment.tensor}]" if s.attachment.tensor else ""),
                s.module,
                "x".join(map(str, s.shape)),
                f"{s.parameters:,}",
            )
            for s in self.sites
        ]
        widths = [max(len(r[i]) for r in rows) for i in range(6)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join([heading, *lines])


def backbone_of(model: object) -> nn.Module:
    """The module to adapt, from a module, a `StereoModel`, or a `Backbone`.

    Raises:
        PlanError: `model` is none of these.
    """
    inner = model.module if isinstance(model, Backbone) else model
    inner = inner.backbone if isinstance(inner, StereoModel) else inner
    if not isinstance(inner, nn.Module):
        hint = "; a spandrel descriptor holds the trainable network in `.model`" if hasattr(model, "model") else ""
        raise PlanError(f"lowpeft adapts a torch.nn.Module or a Backbone, not {type(model).__name__}{hint}")
    return inner


def plan(
    model: object,
    recipe: str | Path | Recipe | AdapterConfig | Sequence[AdapterConfig] = "stereo",
    *,
    name: str = "default",
    **overrides: Any,
) -> Plan:
    """What `adapt` with the same arguments would do. The model is not changed.

    Args:
        model: A network, a `Backbone`, or an adapted network or `StereoModel` that gets one more adapter.
        recipe: A bundled name, a path to a TOML recipe, a `Recipe`, or adapter configs.
        name: Of the adapter; one base can hold several.
        overrides: Fields of the recipe's adapters (`every=1`, `spatial={"reduction": 8}`), or `train_also=[patterns]`
            for layers of the base that are trained too.

    Raises:
        PlanError: Anything at all that would keep the adapters from being attached.
    """
    root = backbone_of(model)
    wanted = override(load_recipe(recipe), overrides)
    network = _Network(root)
    sites = [site for config in wanted.adapters for site in _sites(network, config)]
    return _checked_plan(network, name, wanted, sites)


def plan_sites(root: nn.Module, recipe: Recipe, sites: tuple[Site, ...], *, name: str, measure: bool = False) -> Plan:
    """A plan from recorded sites (those of an adapter file), checked against a network.

    Args:
        root: The network.
        recipe: That the sites belong to.
        sites: Where the adapters go.
        name: Of the adapter.
        measure: Run the network once and compare the channels of its features, where it is not known to be the same.

    Raises:
        PlanError: A module or parameter is not there or has another class or shape, or the adapters cannot be
            attached; the model is not changed.
    """
    network = _Network(root)
    problems = []
    for site in sites:
        module = network.modules.get(site.path)
        tensor = module._parameters.get(site.attachment.tensor or "") if module is not None else None
        if module is None:
            problems.append(f"there is no module {site.path}")
        elif original_class(module).__name__ != site.module:
            problems.append(f"{site.path} is a {original_class(module).__name__}, the adapter is for a {site.module}")
        elif site.attachment.tensor is not None and (tensor is None or tuple(tensor.shape) != site.shape):
            problems.append(f"{site.path} has no parameter {site.attachment.tensor} of shape {site.shape}")
        elif site.attachment.branch is not None:
            _check_branch(network, site.path, site.attachment.branch)
    if not problems and measure:
        problems = first_that_works(root, lambda example: _other_channels(sites, observe(root, example)))
    if problems:
        raise PlanError(f"the adapter does not fit this {original_class(root).__name__}:", problems=problems)
    return _checked_plan(network, name, recipe, sites)


def _other_channels(sites: tuple[Site, ...], observed: dict[str, Observation]) -> list[str]:
    problems = []
    for site in sites:
        if site.attachment.form == "weight":
            continue
        shape = observed[site.path].shape if site.path in observed else None
        found = shape[site.attachment.layout.channel_dim] if shape else None
        if found != site.shape[0]:
            problems.append(f"{site.path} gives {found} channels, the adapter is for {site.shape[0]}")
    return problems


def _checked_plan(network: _Network, name: str, recipe: Recipe, sites: Sequence[Site]) -> Plan:
    if not name.isidentifier() or not name.isascii():
        raise PlanError(f"an adapter's name must be letters, digits and underscores, not {name!r}")
    _refuse_conflicts(network, name, sites)
    root = network.root
    return Plan(
        model=original_class(root).__name__,
        family=network.recognised.family.name if network.recognised else None,
        name=name,
        recipe=recipe,
        sites=tuple(sites),
        base_parameters=sum(p.numel() for _, p in base_parameters(root)),
    )


class _Network:
    """What planning learns of one network, each thing once."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = dict(base_modules(root))
        self.recognised: Recognised | None = recognise(root)
        self.checked_blocks: set[tuple[object, ...]] = set()

    @functools.cached_property
    def probed(self) -> dict[str, tuple[FoundPlace, ...]]:
        return probe_places(self.root)

    def places(self, name: str) -> tuple[FoundPlace, ...]:
        """The family's places of that name, or those found by running the network."""
        found = find_places(self.root, self.recognised, name) if self.recognised else self.probed.get(name, ())
        if not found:
            known = {p.name for p in self.recognised.family.places} if self.recognised else set(self.probed)
            title = self.recognised.family.title if self.recognised else f"{original_class(self.root).__name__}"
            raise PlanError(f"{title} has no place {name!r}; it has {', '.join(sorted(known))}")
        return found


def _sites(network: _Network, config: AdapterConfig) -> list[Site]:
    kind = get_kind(config.kind)
    if issubclass(kind.module, WeightAdapter):
        return _weight_sites(network, config, kind)
    return _feature_sites(network, config, kind)


def _weight_sites(network: _Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    adapter = cast(type[WeightAdapter], kind.module)
    candidates = []
    for path, module in network.modules.items():
        parts = path.split(".")
        around = tuple(".".join(parts[:i]) for i in range(1, len(parts)))
        for tensor in adapter.tensors(module):
            if module._parameters.get(tensor) is None:
                continue
            names = (*around, path) if path else ()
            candidates.append((Candidate(path=f"{path}.{tensor}" if path else tensor, within=names), path, tensor))
    if not candidates:
        raise PlanError(f"{original_class(network.root).__name__} has no parameter that a {kind.name} adapter fits")
    if config.target is None:
        raise PlanError(f"a {kind.name} adapter needs a target; '**' means every parameter it fits ({len(candidates)})")
    chosen = set(select(config.target, [c for c, _, _ in candidates], what=f"parameters for {kind.name} adapters"))
    sites, problems = [], []
    for candidate, path, tensor in candidates:
        if candidate in chosen:
            try:
                sites.append(_site(network, config, path, Attachment(form="weight", tensor=tensor), None))
            except PlanError as error:
                problems.append(f"{candidate.path}: {error}")
    if problems:
        raise PlanError(f"{kind.name} adapters do not fit {len(problems)} of the chosen parameters:", problems=problems)
    return sites


def _feature_sites(network: _Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    if config.target is None:
        chosen: Sequence[Candidate] = [p for name in config.places for p in network.places(name)]
    else:
        chosen = _chosen_features(network, config, kind)
    keep = config.thin(len(chosen))
    if not keep:
        raise PlanError(
            f"every={getattr(config, 'every', None)} keeps none of the {len(chosen)} chosen sites; use every=1"
        )
    return [_feature_site(network, config, kind, chosen[i]) for i in keep]


def _chosen_features(network: _Network, config: AdapterConfig, kind: Kind) -> tuple[Candidate, ...]:
    """What the patterns choose among the family's places for this kind and all other modules."""
    named: dict[str, FoundPlace] = {}
    if network.recognised or any("=" in t for t in config.target or ()):
        named = {p.path: p for name in config.places for p in network.places(name)}
    others = [Candidate(path=p) for p in network.modules if p and p not in named]
    chosen = select(cast(tuple[str, ...], config.target), [*named.values(), *others], what="modules")
    unknown = [c.path for c in chosen if not isinstance(c, FoundPlace)]
    measured = _measure(network, unknown, kind) if unknown else {}
    return tuple(measured.get(c.path, c) for c in chosen)


def _measure(network: _Network, paths: list[str], kind: Kind) -> dict[str, FoundPlace]:
    """The layout and channels of modules that no family names, from one run of the network."""
    pairs = kind.pairs_views

    def look(example: Tensor) -> dict[str, FoundPlace]:
        observed, found, problems = observe(network.root, example), {}, []
        for path in paths:
            seen = observed.get(path)
            if seen is None or seen.shape is None:
                problems.append(f"{path} ({type(network.modules[path]).__name__}) gave no tensor when the network ran")
            elif seen.layout is None and (pairs or len(seen.shape) == 4):
                problems.append(f"{path}: cannot tell rows, columns and channels of its output {seen.shape} apart")
            else:
                layout = seen.layout or Layout.NLC
                place = Place(
                    name="stage", path=path, channels="", layout=layout, item=seen.item, square=layout.is_tokens
                )
                found[path] = FoundPlace(path=path, place=place, channels=seen.channels)
        if problems:
            raise PlanError(f"a {kind.name} adapter cannot go to these modules:", problems=problems)
        return found

    return first_that_works(network.root, look)


def _feature_site(network: _Network, config: AdapterConfig, kind: Kind, candidate: Candidate) -> Site:
    if not isinstance(candidate, FoundPlace):
        raise PlanError(f"{candidate.path} was not measured")
    place = candidate.place
    if place.branch is not None:
        _check_branch(network, candidate.path, place.branch)
    act = Attachment(
        form="feature" if place.branch is None else "branch",
        layout=place.layout,
        source=place.source,
        item=place.item,
        square=place.square,
        branch=place.branch,
    )
    path = candidate.path if place.branch else output_module(network.modules, candidate.path)
    return _site(network, config, path, act, candidate)


def output_module(modules: dict[str, nn.Module], path: str) -> str:
    """The module whose output is the output of `path`: the last member of a plain Sequential, recursively.

    A Sequential calls all of its children in turn, so adapters must not become one of them.
    """
    module = modules[path]
    while type(module).forward is nn.Sequential.forward and len(module._modules.keys() - {SLOT}):
        last = [n for n in module._modules if n != SLOT][-1]
        path, module = f"{path}.{last}" if path else last, cast(nn.Module, module._modules[last])
    return path


def _site(network: _Network, config: AdapterConfig, path: str, act: Attachment, where: FoundPlace | None) -> Site:
    module = network.modules[path]
    weight = module._parameters.get(act.tensor or "")
    shape = (where.channels,) if where is not None else tuple(cast(Tensor, weight).shape)
    return Site(
        path=path,
        stage=where.stage if where else None,
        block=where.block if where else None,
        config=config,
        key=site_key(config, shape, act),
        module=original_class(module).__name__,
        shape=shape,
        attachment=act,
        parameters=count_parameters(config, shape),
    )


def site_key(config: AdapterConfig, shape: tuple[int, ...], act: Attachment) -> str:
    """The name of an adapter within its module's slot: its kind, for weights followed by the parameter.

    Raises:
        PlanError: Kind, shape and attachment do not go together.
    """
    on_weight = issubclass(get_kind(config.kind).module, WeightAdapter)
    sides = all(type(n) is int and n > 0 for n in shape)
    if on_weight != (act.form == "weight") or not sides or not shape or (not on_weight and len(shape) != 1):
        raise PlanError(f"a {config.kind} adapter cannot be a {act.form} of shape {shape}")
    if act.branch is not None:
        get_branch(act.branch)
    return f"{config.kind}_{act.tensor}" if on_weight else config.kind


def build(config: AdapterConfig, shape: tuple[int, ...]) -> Adapter:
    """A new adapter for features of (channels,) or a weight of that shape."""
    kind = get_kind(config.kind)
    if issubclass(kind.module, FeatureAdapter):
        return cast(Callable[[int, AdapterConfig], Adapter], kind.module)(shape[0], config)
    return cast(Callable[[Tensor, AdapterConfig], Adapter], kind.module)(torch.empty(shape, device="meta"), config)


@functools.lru_cache(maxsize=4096)
def count_parameters(config: AdapterConfig, shape: tuple[int, ...]) -> int:
    """How many parameters an adapter for features of (channels,) or a weight of that shape has."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config, shape).parameters())


# --- refusals --------------------------------------------------------------------------------------------------------


def _refuse_conflicts(network: _Network, name: str, sites: Iterable[Site]) -> None:
    problems: list[str] = []
    taken: set[tuple[str, str]] = set()
    for site in sites:
        module = network.modules[site.path]
        slot = slot_of(module)
        if (site.path, site.key) in taken:
            problems.append(f"{site.path} would get two {site.config.kind} adapters of one name")
        taken.add((site.path, site.key))
        if slot is None and hasattr(module, SLOT):
            problems.append(f"{site.path} has an attribute {SLOT!r} of its own")
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            problems.append(f"{site.path} is a container ({type(module).__name__}); name the layer inside it")
        if isinstance(module, torch.jit.ScriptModule):
            problems.append(f"{site.path} is a TorchScript module, whose class cannot be specialised")
    if hasattr(Slot(), name):
        problems.append(f"every torch module has an attribute {name!r}, so an adapter cannot have that name")
    elif _holds(network.root, name):
        problems.append(f"an adapter named {name!r} is attached already; choose another name=, or restore() first")
    if problems:
        raise PlanError("the adapters cannot be attached:", problems=list(dict.fromkeys(problems)))


def _holds(root: nn.Module, name: str) -> bool:
    return any(slot is not None and name in slot._modules for slot in map(slot_of, root.modules()))


def _check_branch(network: _Network, path: str, branch: str) -> None:
    """Refuse a block whose own forward is not the one that the family's adapted forward stands for.

    One block of each class (and shift) is run both ways; a fork that changed the block (a mask also in unshifted
    blocks, say) would otherwise start from another network without a word.
    """
    block = network.modules[path]
    key = (original_class(block), branch, getattr(block, "shift_size", None))
    if key in network.checked_blocks:
        return
    arguments = get_branch(branch).example(block)
    with evaluating(block):
        own = original_class(block).forward(block, *arguments)
        ours = get_branch(branch).forward(block, lambda features: None, *arguments)
    if not torch.equal(own, ours):
        raise PlanError(
            f"{path} ({original_class(block).__module__}.{original_class(block).__name__}) does not compute what the "
            f"family's {branch} block computes (largest difference {(own - ours).abs().max():.3g}): this copy of the "
            "code has been changed. Use placement='mlp', or name modules with target="
        )
    network.checked_blocks.add(key)
