"""Choosing sites: which modules and weights an adapter config means on a network. Reads, never writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .attach import original_class
from .errors import PlanError
from .families import SLOT, FoundPlace, Place, Recognised, base_modules, find_places, get_branch, recognise
from .kinds import Adapter, AdapterConfig, Attachment, FeatureAdapter, Kind, WeightAdapter, get_kind
from .layouts import Layout
from .patterns import Candidate, select
from .probe import first_that_works, observe, probe_places, twin_of


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


class Network:
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


def choose_sites(network: Network, config: AdapterConfig) -> list[Site]:
    """The sites that a config's target means, or the family's place for its kind.

    Raises:
        PlanError: The target matches nothing, or the kind does not fit what it matches.
    """
    kind = get_kind(config.kind)
    if issubclass(kind.module, WeightAdapter):
        return _weight_sites(network, config, kind)
    return _feature_sites(network, config, kind)


def _weight_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
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


def _feature_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
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


def _chosen_features(network: Network, config: AdapterConfig, kind: Kind) -> tuple[Candidate, ...]:
    """What the patterns choose among the family's places for this kind and all other modules."""
    named: dict[str, FoundPlace] = {}
    if network.recognised or any("=" in t for t in config.target or ()):
        named = {p.path: p for name in config.places for p in network.places(name)}
    others = [Candidate(path=p) for p in network.modules if p and p not in named]
    chosen = select(cast(tuple[str, ...], config.target), [*named.values(), *others], what="modules")
    unknown = [c.path for c in chosen if not isinstance(c, FoundPlace)]
    measured = _measure(network, unknown, kind) if unknown else {}
    return tuple(measured.get(c.path, c) for c in chosen)


def _measure(network: Network, paths: list[str], kind: Kind) -> dict[str, FoundPlace]:
    """The layout and channels of modules that no family names, from one run of the network."""
    pairs = kind.pairs_views

    def look(twin: nn.Module, example: Tensor) -> dict[str, FoundPlace]:
        observed, found, problems = observe(twin, example), {}, []
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


def _feature_site(network: Network, config: AdapterConfig, kind: Kind, candidate: Candidate) -> Site:
    if not isinstance(candidate, FoundPlace):
        raise PlanError(f"{candidate.path} was not measured")
    place = candidate.place
    if place.branch is not None:
        check_branch(network, candidate.path, place.branch)
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


def _site(network: Network, config: AdapterConfig, path: str, act: Attachment, where: FoundPlace | None) -> Site:
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


def check_branch(network: Network, path: str, branch: str) -> None:
    """Refuse a block whose own forward is not the one that the family's adapted forward stands for.

    One block of each class (and shift) is run both ways; a fork that changed the block (a mask also in unshifted
    blocks, say) would otherwise start from another network without a word.
    """
    block = network.modules[path]
    key = (original_class(block), branch, getattr(block, "shift_size", None))
    if key in network.checked_blocks:
        return
    arguments = get_branch(branch).example(block)
    twin = twin_of(block)
    with torch.no_grad():
        own = original_class(block).forward(twin, *arguments)
        ours = get_branch(branch).forward(twin, lambda features: None, *arguments)
    if not torch.equal(own, ours):
        raise PlanError(
            f"{path} ({original_class(block).__module__}.{original_class(block).__name__}) does not compute what the "
            f"family's {branch} block computes (largest difference {(own - ours).abs().max():.3g}): this copy of the "
            "code has been changed. Use placement='mlp', or name modules with target="
        )
    network.checked_blocks.add(key)
