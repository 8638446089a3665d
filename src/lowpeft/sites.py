"""Choosing sites: which modules and weights an adapter config means on a network. Reads, never writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .attach import original_class
from .blocks import check_block
from .errors import PlanError
from .facts import Facts
from .families import (
    SLOT,
    TOKENS,
    FoundPlace,
    Place,
    Recognised,
    base_modules,
    find_places,
    get_block,
    recognise,
)
from .kinds import (
    Adapter,
    AdapterConfig,
    Attachment,
    FeatureAdapter,
    Kind,
    Layer,
    TokenAdapter,
    WeightAdapter,
    get_kind,
)
from .layouts import Layout
from .patterns import Candidate, select
from .probe import first_that_works, observe, probe_places, tokens_layout

Built = TypeVar("Built")


@dataclass(frozen=True, kw_only=True)
class Site(Candidate):
    """One adapter that would be attached.

    Attributes:
        config: Config of the adapter; its type is the kind.
        key: The adapter's name within its module's slot: the kind, followed by the port of a block, by the parameters
            of a layer, or by `root` for the part that all sites share.
        module: Class name of the adapted module.
        shape: (channels,) of the features, the shape of the (first) weight, or what the shared part is built for.
        layer: The parameters that a weight adapter changes.
        attachment: How it acts on its module.
        parameters: Number of parameters that the adapter trains here.
    """

    config: AdapterConfig
    key: str
    module: str
    shape: tuple[int, ...]
    layer: Layer | None = None
    attachment: Attachment
    parameters: int


class Network:
    """What planning learns of one network, each thing once."""

    def __init__(self, root: nn.Module, facts: Facts) -> None:
        self.root = root
        self.facts = facts
        self.modules = dict(base_modules(root))
        self.recognised: Recognised | None = recognise(root)
        self.checked_blocks: set[tuple[object, ...]] = set()

    @functools.cached_property
    def probed(self) -> dict[str, tuple[FoundPlace, ...]]:
        """Places that were found by running the network."""
        return probe_places(self.root, self.facts)

    def find(self, name: str) -> tuple[FoundPlace, ...]:
        """The family's places of that name, or those found by running the network; empty if there are none."""
        return find_places(self.root, self.recognised, name) if self.recognised else self.probed.get(name, ())

    def places(self, name: str) -> tuple[FoundPlace, ...]:
        """As `find`.

        Raises:
            PlanError: There are none.
        """
        found = self.find(name)
        if not found:
            known = {p.name for p in self.recognised.family.places} if self.recognised else set(self.probed)
            if name in known:
                raise PlanError(f"no module of this network lies where the family has its place {name!r}")
            title = self.recognised.family.title if self.recognised else f"{original_class(self.root).__name__}"
            raise PlanError(
                f"{title} has no place {name!r}; it has {', '.join(sorted(known))}. Name modules with target=, or "
                "register a family that has it"
            )
        return found

    @functools.cached_property
    def containers(self) -> dict[str, tuple[int | None, int | None]]:
        """Stage and block by the path of the module that is the stage or the block, from the family's places."""
        if self.recognised is None:
            places = [p for found in self.probed.values() for p in found]
        else:
            names = dict.fromkeys(p.name for p in self.recognised.family.places)
            places = [p for name in names for p in find_places(self.root, self.recognised, name)]
        found: dict[str, tuple[int | None, int | None]] = {}
        for place in places:
            if place.block_path is not None:
                found.setdefault(place.block_path, (place.stage, place.block))
        for place in places:
            found.setdefault(place.stage_path or place.path, (place.stage, None))
        return found

    def place_of(self, path: str) -> tuple[int | None, int | None]:
        """Stage and block of a module: those of the innermost block or stage around it."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            if (found := self.containers.get(".".join(parts[:length]))) is not None:
                return found
        return None, None


def choose_sites(network: Network, config: AdapterConfig) -> list[Site]:
    """The sites that a config's target means, or the family's places for its kind, and the part that they share.

    Raises:
        PlanError: The target matches nothing, or the kind does not fit what it matches.
    """
    kind = get_kind(config.kind)
    sites = (_weight_sites if kind.on_weights else _feature_sites)(network, config, kind)
    part = kind.module.root_part_class
    if part is None:
        return sites
    shape = part.shape_for(config, [s.layer or s.shape[0] for s in sites])
    return [_site(network, config, "", Attachment(form="root", views=config.views), shape), *sites]


# --- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Parameters(Candidate):
    """A group of parameters of one module; every parameter is named by its own path."""

    module: str
    names: tuple[str, ...]


def _weight_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    adapter = cast(type[WeightAdapter], kind.module)
    by_place = any("=" in pattern for pattern in config.target or ())
    candidates = []
    for path, module in network.modules.items():
        for names in adapter.groups(module):
            if any(module._parameters.get(name) is None for name in names):
                continue
            stage, block = network.place_of(path) if by_place else (None, None)
            parts = path.split(".") if path else []
            around = tuple(".".join(parts[: i + 1]) for i in range(len(parts)))
            full = [f"{path}.{name}" if path else name for name in names]
            within = (*around, *full[1:])
            candidates.append(
                _Parameters(path=full[0], within=within, stage=stage, block=block, module=path, names=names)
            )
    if not candidates:
        raise PlanError(f"{original_class(network.root).__name__} has no parameter that a {kind.name} adapter fits")
    if config.target is None:
        raise PlanError(f"a {kind.name} adapter needs a target; '**' means every parameter it fits ({len(candidates)})")
    chosen = select(config.target, candidates, what=f"parameters for {kind.name} adapters")
    sites, problems = [], []
    for candidate in chosen:
        layer = layer_of(network.modules[candidate.module], candidate.names)
        try:
            act = Attachment(form="weight", tensors=candidate.names)
            sites.append(_site(network, config, candidate.module, act, layer.shape(layer.main), layer, candidate))
        except PlanError as error:
            problems.append(f"{candidate.path}: {error}")
    if problems:
        raise PlanError(f"{kind.name} adapters do not fit {len(problems)} of the chosen parameters:", problems=problems)
    return sites


def layer_of(module: nn.Module, names: tuple[str, ...]) -> Layer:
    """The description of some of a module's parameters."""
    shapes = tuple((name, tuple(cast(Tensor, module._parameters[name]).shape)) for name in names)
    if isinstance(module, _ConvNd):
        return Layer(shapes=shapes, transposed=bool(module.transposed), groups=int(module.groups))
    return Layer(shapes=shapes)


# --- features --------------------------------------------------------------------------------------------------------


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
    _refuse_other_ports(kind, [chosen[i] for i in keep])
    sites = [_feature_site(network, config, chosen[i]) for i in keep]
    if cast(type[FeatureAdapter], kind.module).needs_rows:
        windows = [s.path for s in sites if s.attachment.layout is Layout.WLC]
        if windows:
            raise PlanError(
                f"a {kind.name} adapter needs image rows, which these windows do not have:", problems=windows
            )
    return sites


def _refuse_other_ports(kind: Kind, chosen: Sequence[Candidate]) -> None:
    """Refuse tokens anywhere but at ports for tokens, and everything else there."""
    gives = issubclass(kind.module, TokenAdapter)
    wrong = [c.path for c in chosen if isinstance(c, FoundPlace) and (c.place.port == TOKENS) != gives]
    if wrong:
        raise PlanError(
            f"a {kind.name} adapter gives attention extra tokens, which these places do not take:"
            if gives
            else f"a {kind.name} adapter adds to features, and these places take extra tokens for attention:",
            problems=wrong,
        )


def _chosen_features(network: Network, config: AdapterConfig, kind: Kind) -> tuple[Candidate, ...]:
    """What the patterns choose among the family's places for this kind and all other modules."""
    named: dict[str, list[FoundPlace]] = {}
    if network.recognised or any("=" in t for t in config.target or ()):
        for name in config.places:
            for place in network.find(name):
                named.setdefault(place.path, []).append(place)
    others = [Candidate(path=p) for p in network.modules if p and p not in named]
    places = [place for found in named.values() for place in found]
    chosen = select(cast(tuple[str, ...], config.target), [*places, *others], what="modules")
    unknown = [c.path for c in chosen if not isinstance(c, FoundPlace)]
    measured = _measure(network, unknown, kind) if unknown else {}
    return tuple(measured.get(c.path, c) for c in chosen)


def _measure(network: Network, paths: list[str], kind: Kind) -> dict[str, FoundPlace]:
    """The layout and channels of modules that no family names, from one run of the network."""
    needs_rows = cast(type[FeatureAdapter], kind.module).needs_rows

    def look(twin: nn.Module, example: Tensor) -> dict[str, FoundPlace]:
        observed, found, problems = observe(twin, example), {}, []
        for path in paths:
            seen = observed.get(path)
            if seen is None or seen.shape is None:
                problems.append(f"{path} ({type(network.modules[path]).__name__}) gave no tensor when the network ran")
            elif seen.layout is None and (needs_rows or len(seen.shape) == 4):
                problems.append(f"{path}: cannot tell rows, columns and channels of its output {seen.shape} apart")
            else:
                layout = seen.layout or tokens_layout(seen.shape)
                square = seen.layout is not None and layout.is_tokens
                place = Place(name="output", path=path, channels="", layout=layout, item=seen.item, square=square)
                stage, block = network.place_of(path) if network.recognised else (None, None)
                found[path] = FoundPlace(path=path, stage=stage, block=block, place=place, channels=seen.channels)
        if problems:
            raise PlanError(f"a {kind.name} adapter cannot go to these modules:", problems=problems)
        return found

    return first_that_works(network.root, look, network.facts)


def _feature_site(network: Network, config: AdapterConfig, candidate: Candidate) -> Site:
    if not isinstance(candidate, FoundPlace):
        raise PlanError(f"{candidate.path} was not measured")
    place = candidate.place
    shape = (candidate.channels,)
    if place.block is not None:
        check_block(network.checked_blocks, candidate.path, network.modules[candidate.path], place.block)
        act = Attachment(form="block", block=place.block, port=place.port, views=config.views)
        return _site(network, config, candidate.path, act, shape, None, candidate)
    act = Attachment(
        form="output",
        layout=place.layout,
        source=place.source,
        item=place.item,
        square=place.square,
        views=config.views,
    )
    path = output_module(network.modules, candidate.path)
    return _site(network, config, path, act, shape, None, candidate)


def output_module(modules: dict[str, nn.Module], path: str) -> str:
    """The module whose output is the output of `path`: the last member of a plain Sequential, recursively.

    A Sequential calls all of its children in turn, so adapters must not become one of them.
    """
    module = modules[path]
    while type(module).forward is nn.Sequential.forward and len(module._modules.keys() - {SLOT}):
        last = [n for n in module._modules if n != SLOT][-1]
        path, module = f"{path}.{last}" if path else last, cast(nn.Module, module._modules[last])
    return path


# --- one site --------------------------------------------------------------------------------------------------------


def _site(
    network: Network,
    config: AdapterConfig,
    path: str,
    act: Attachment,
    shape: tuple[int, ...],
    layer: Layer | None = None,
    where: Candidate | None = None,
) -> Site:
    return Site(
        path=path,
        stage=where.stage if where else None,
        block=where.block if where else None,
        config=config,
        key=site_key(config, shape, layer, act),
        module=original_class(network.modules[path]).__name__,
        shape=shape,
        layer=layer,
        attachment=act,
        parameters=count_parameters(config, shape, layer, act.form),
    )


def site_key(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, act: Attachment) -> str:
    """The name of an adapter within its module's slot.

    Raises:
        PlanError: Kind, shape and attachment do not go together.
    """
    kind = get_kind(config.kind)
    sides = bool(shape) and all(type(n) is int and n > 0 for n in shape)
    if act.form == "root":
        fits = kind.module.root_part_class is not None and sides and layer is None
    elif kind.on_weights:
        fits = act.form == "weight" and layer is not None and layer.names == act.tensors and sides
        fits = fits and shape == layer.shape(layer.main)  # type: ignore[union-attr]
    else:
        fits = act.form in ("output", "block") and layer is None and sides and len(shape) == 1
    if not fits or act.views != (1 if act.form == "weight" else config.views):
        raise PlanError(f"a {config.kind} adapter cannot be a {act.form} of shape {shape}")
    if act.block is not None:
        get_block(act.block)
    suffix = {"weight": act.tensors, "block": (act.port,), "root": ("root",)}.get(act.form, ())
    return "_".join((config.kind, *map(str, suffix)))


def build(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, form: str) -> Adapter:
    """A new adapter for features of (channels,), for parameters of a layer, or the part that a kind's sites share."""
    module: Any = get_kind(config.kind).module
    make: Callable[..., Adapter] = module.root_part_class if form == "root" else module
    return make({"root": shape, "weight": layer}.get(form, shape[0]), config)


@functools.lru_cache(maxsize=4096)
def count_parameters(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, form: str) -> int:
    """The number of parameters that such an adapter has."""
    return sum(p.numel() for p in on_meta(lambda: build(config, shape, layer, form)).parameters())


def on_meta(make: Callable[[], Built]) -> Built:
    """What `make` builds, without memory.

    It builds in a thread of its own, where no interruption can leave torch making everything without memory for good.
    """

    def build_there() -> Built:
        with torch.device("meta"):
            return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build_there).result()
