"""Choice of sites: the modules and weights of a network that an adapter config selects. Never changes the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...errors import PlanError
from ...families import TOKENS, FoundPlace
from ...kinds import (
    LAYERS,
    AdapterConfig,
    Attachment,
    FeatureAdapter,
    Kind,
    Layer,
    TokenAdapter,
    WeightAdapter,
    get_kind,
)
from ...ports.base import SLOT, base_parameters
from ...ports.layouts import Layout
from ...ports.patterns import Candidate, select
from ..attachment.specialise import original_class
from ..observation.blocks import check_block
from ..observation.observing import Observed
from ..observation.probe import has_fused_path, place_at
from .parametrised import how_to_fold
from .sites import Network, Site, make_site


def choose_sites(network: Network, config: AdapterConfig) -> list[Site]:
    """Return the sites that a config's target selects, or else the default places of its kind.

    If the kind has a part that all sites share, its site (path "") comes first.

    Raises:
        PlanError: The target matches nothing, or the kind does not fit the matches.
    """
    kind = get_kind(config.kind)
    sites = (_weight_sites if kind.on_weights else _feature_sites)(network, config, kind)
    part = kind.module.root_part_class
    if part is None:
        return sites
    shape = part.shape_for(config, [s.layer or s.shape[0] for s in sites])
    return [make_site(network, config, "", Attachment(form="root", views=config.views), shape), *sites]


# --- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Parameters(Candidate):
    """Group of parameters of one module that get one adapter; a pattern may match the path of any of them."""

    module: str
    names: tuple[str, ...]

    @property
    def paths(self) -> list[str]:
        """Paths of the parameters."""
        return [f"{self.module}.{name}" if self.module else name for name in self.names]


def _weight_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    by_place = any("=" in pattern for pattern in config.target or ())
    candidates = list(_groups(network, cast(type[WeightAdapter], kind.module), by_place))
    by_default = config.target is None and LAYERS in config.places
    if config.target is None and not by_default:
        raise PlanError(f"a {kind.name} adapter needs a target; '**' means every parameter it fits ({len(candidates)})")
    target = config.target or "**"
    if not candidates:
        raise PlanError(
            f"{original_class(network.root).__name__} has no parameter that a {kind.name} adapter fits",
            problems=_folds(network, ()),
        )
    chosen: Sequence[_Parameters]
    try:
        chosen = select(target, candidates, what=f"parameters for {kind.name} adapters")
    except PlanError as error:
        if folds := _folds(network, config.target or ()):
            raise PlanError(error.message, problems=[*error.problems, *folds]) from error
        raise
    chosen = _without_derived(network, kind, chosen)
    sites, problems = [], []
    for candidate in chosen:
        layer = layer_of(network.modules[candidate.module], candidate.names)
        try:
            act = Attachment(form="weight", tensors=candidate.names)
            site = make_site(network, config, candidate.module, act, layer.shape(layer.main), layer, candidate)
            sites.append(site)
        except PlanError as error:
            problems.append(f"{candidate.path}: {error}")
    if problems and (not by_default or not sites):
        raise PlanError(f"{kind.name} adapters do not fit {len(problems)} of the chosen parameters:", problems=problems)
    if problems:
        network.notes[f"{kind.name}: {len(problems)} layers are too small for it, as {problems[0]}"] = None
    _note_passed_over(network, kind, target, candidates)
    return sites


def _groups(network: Network, adapter: type[WeightAdapter], by_place: bool) -> Iterator[_Parameters]:
    """Yield every group of parameters that the kind can change, with the paths that patterns can match."""
    for path, module in network.modules.items():
        for names in () if isinstance(module, torch.jit.ScriptModule) else adapter.groups(module):
            tensors = [module._parameters.get(name) for name in names]
            if any(t is None or not t.numel() for t in tensors):
                continue
            stage, block = network.place_of(path) if by_place else (None, None)
            full = [f"{path}.{name}" if path else name for name in names]
            within = (*_around(full[0]), *full[1:])
            yield _Parameters(path=full[0], within=within, stage=stage, block=block, module=path, names=names)


def _around(path: str) -> tuple[str, ...]:
    """Return the paths of the enclosing modules, outermost first; e.g. "a", "a.b" for "a.b.weight"."""
    parts = path.split(".")
    return tuple(".".join(parts[:i]) for i in range(1, len(parts)))


def _without_derived(network: Network, kind: Kind, chosen: Sequence[_Parameters]) -> Sequence[_Parameters]:
    """Leave out weights that the network overwrites in its forward pass, and weights that it reads only to do so."""
    paths = [p for c in chosen for p in c.paths]
    derived = network.trial.derived(paths) if network.may_write_itself and network.trial.runs else set()
    if not derived:
        return chosen
    gone = derived | network.trial.unread(paths)
    kept = [c for c in chosen if gone.isdisjoint(c.paths)]
    text = (
        f"{kind.name}: passed over {len(gone)} weights that the network writes itself when it runs, or reads only to "
        f"write others, as {min(gone)}: a change of them would be lost"
    )
    if not kept:
        raise PlanError(text)
    network.notes[text] = None
    return kept


def _note_passed_over(network: Network, kind: Kind, target: str | Sequence[str], fitting: list[_Parameters]) -> None:
    """Add a note on parameters of two or more dimensions that the patterns match but the kind does not fit."""
    known = {p for c in fitting for p in c.paths}
    others = []
    folded = tuple(f"{path}." for path, module in network.modules.items() if how_to_fold(module))
    for path, parameter in base_parameters(network.root):
        known_why = path in known or path.startswith(folded)
        if not known_why and parameter.dim() > 1 and parameter.is_floating_point():
            others.append(Candidate(path=path, within=_around(path)))
    wanted = [p for p in ([target] if isinstance(target, str) else target) if "=" not in p]
    missed = [c.path for c in others if _means(wanted, c)]
    if missed:
        text = f"{kind.name}: passed over {len(missed)} parameters that it does not fit, as {missed[0]}"
        network.notes[text] = None
    if not any(c.module.startswith(folded) for c in fitting):  # otherwise the kind adapts the source tensors
        for text in _folds(network, wanted):
            network.notes[f"{kind.name}: {text}"] = None


def _means(patterns: Sequence[str], candidate: Candidate) -> bool:
    """Return whether patterns select a candidate; unlike in `select`, a pattern may match nothing."""
    takes = [p for p in patterns if not p.startswith("!")] or ["**"]

    def any_of(some: Sequence[str]) -> bool:
        for pattern in some:
            try:
                select(pattern, [candidate], what="")
            except PlanError:
                continue
            return True
        return False

    return any_of(takes) and not any_of([p.removeprefix("!") for p in patterns if p.startswith("!")])


def _folds(network: Network, patterns: Sequence[str]) -> list[str]:
    """Return advice for layers that the patterns match and that compute their weights from other tensors."""
    found: dict[str, list[str]] = {}
    for path, module in network.modules.items():
        if how := how_to_fold(module):
            weight = f"{path}.weight"
            if not patterns or _means(patterns, Candidate(path=weight, within=_around(weight))):
                found.setdefault(how, []).append(path)
    return [
        f"{len(paths)} layers ({paths[0] or 'the network'}, …) compute their weights from other tensors; to adapt them "
        f"too, fold these first: {how}"
        for how, paths in found.items()
    ]


def layer_of(module: nn.Module, names: tuple[str, ...]) -> Layer:
    """Return the description of the named parameters of a module."""
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
    _refuse_fused(network, kind, sites)
    if cast(type[FeatureAdapter], kind.module).needs_rows:
        _refuse_without_rows(network, kind, sites)
    if config.views > 1 and network.recognised is None:
        _refuse_frames(network, kind, sites)
    return sites


def _refuse_frames(network: Network, kind: Kind, sites: list[Site]) -> None:
    """Refuse features with several entries per image on their first axis (e.g. the frames of a video)."""
    problems = []
    for site in sites:
        seen = network.trial.seen_at(site.path)
        if site.attachment.layout is not None and seen and not any(s.by_image for s in seen):
            problems.append(f"{site.path}: the first axis of its output {seen[0].shape} does not count images")
    if problems:
        raise PlanError(f"a {kind.name} adapter cannot go to these modules:", problems=problems)


def _refuse_without_rows(network: Network, kind: Kind, sites: list[Site]) -> None:
    """Refuse windows, and tokens whose rows and columns are unknown."""
    problems = []
    for site in sites:
        act = site.attachment
        if act.layout is Layout.WLC:
            problems.append(f"{site.path}: its first axis counts windows, not images")
        elif act.layout is not None and act.layout.is_tokens and network.recognised is None:
            seen = network.trial.seen_at(site.path)
            if not any(s.size for s in seen):
                count = (seen[0].shape or (0, 0))[1 - act.layout.batch_dim] if seen else "some"
                problems.append(f"{site.path}: it gives {count} tokens, and is not told their rows and columns")
    if problems:
        raise PlanError(
            f"a {kind.name} adapter needs image rows, which these features do not have. If the network has modules "
            "that give maps, or tokens of which they are told the height and width, name them with target=:",
            problems=problems,
        )


def _refuse_fused(network: Network, kind: Kind, sites: list[Site]) -> None:
    """Refuse features inside nn.TransformerEncoderLayer: in inference it does not call its children."""
    problems = []
    for site in sites:
        fused = (layer for layer in _around(site.path) if has_fused_path(network.modules[layer]))
        problems += [f"{site.path}: name {layer} itself" for layer in fused]
    if problems:
        raise PlanError(
            f"a {kind.name} adapter inside nn.TransformerEncoderLayer would act in training, not in inference, where "
            "torch computes the layer from its weights, without calling what is inside:",
            problems=problems,
        )


def _refuse_other_ports(kind: Kind, chosen: Sequence[Candidate]) -> None:
    """Refuse token adapters at places that are not token ports, and other adapters at token ports."""
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
    """Return the candidates that the patterns select from the family's places for this kind and all other modules."""
    named: dict[str, list[FoundPlace]] = {}
    if network.recognised or any("=" in t for t in config.target or ()):
        for name in config.places:
            for place in network.find(name):
                named.setdefault(place.path, []).append(place)
    others = [Candidate(path=p) for p in network.modules if p and p not in named]
    places = [place for found in named.values() for place in found]
    chosen = select(cast(tuple[str, ...], config.target), [*places, *others], what="modules")
    unknown = [c.path for c in chosen if not isinstance(c, FoundPlace)]
    measured = _measure(network, unknown, config, kind) if unknown else {}
    return tuple(measured.get(c.path, c) for c in chosen)


def _measure(network: Network, paths: list[str], config: AdapterConfig, kind: Kind) -> dict[str, FoundPlace]:
    """Measure layout and channels of modules that no family names, in one forward pass; return a place by path."""
    needs_rows = cast(type[FeatureAdapter], kind.module).needs_rows

    def look(observed: Observed) -> dict[str, FoundPlace]:
        found, problems = {}, []
        for path in paths:
            seen = observed.item(path, getattr(config, "item", None))
            if seen is None or seen.shape is None:
                problems.append(f"{path} ({type(network.modules[path]).__name__}) gave no tensor when the network ran")
            elif seen.is_ambiguous:
                items = " or ".join(f"item={i}" for i in seen.alike)
                problems.append(f"{path} gives {len(seen.alike)} tensors of one shape {seen.shape}: say {items}")
            elif seen.layout is None and seen.is_tokens and needs_rows:
                problems.append(f"{path} gives tokens {seen.shape}, and is not told their rows and columns")
            elif seen.layout is None and (needs_rows or len(seen.shape) == 4):
                problems.append(f"{path}: cannot tell rows, columns and channels of its output {seen.shape} apart")
            else:
                stage, block = network.place_of(path) if network.recognised else (None, None)
                place = place_at("output", path, seen, observed.example.images)
                found[path] = FoundPlace(path=path, stage=stage, block=block, place=place, channels=seen.channels)
        if problems:
            raise PlanError(f"a {kind.name} adapter cannot go to these modules:", problems=problems)
        return found

    return network.trial.first(look)


def _feature_site(network: Network, config: AdapterConfig, candidate: Candidate) -> Site:
    if not isinstance(candidate, FoundPlace):
        raise PlanError(f"{candidate.path} was not measured")
    place = candidate.place
    shape = (candidate.channels,)
    if place.block is not None:
        check_block(network.checked_blocks, candidate.path, network.modules[candidate.path], place.block)
        act = Attachment(form="block", block=place.block, port=place.port, views=config.views)
        return make_site(network, config, candidate.path, act, shape, None, candidate)
    act = Attachment(
        form="output",
        layout=place.layout,
        source=place.source,
        item=place.item,
        square=place.square,
        views=config.views,
    )
    reads_input = place.source == "input"
    path = candidate.path if reads_input else output_module(network.modules, candidate.path)
    return make_site(network, config, path, act, shape, None, candidate)


def output_module(modules: dict[str, nn.Module], path: str) -> str:
    """Return the path of the module that gives the output of `path`: the last child of a plain Sequential, recursively.

    A Sequential calls all of its children in turn, so adapters must not become one of them.
    """
    module = modules[path]
    while type(module).forward is nn.Sequential.forward and len(module._modules.keys() - {SLOT}):
        last = [n for n in module._modules if n != SLOT][-1]
        path, module = f"{path}.{last}" if path else last, cast(nn.Module, module._modules[last])
    return path


def refuse_moving_channels(network: Network, sites: list[Site]) -> None:
    """Refuse features whose channel count changes with the image size: another axis was taken for the channels.

    Raises:
        PlanError: Such features were found; the problems list them.
    """
    if network.recognised is not None or not any(s.attachment.form == "output" for s in sites):
        return
    other = network.trial.at_another_size()
    problems = other_channels(tuple(sites), other) if other is not None else []
    if problems:
        raise PlanError("these features have other channels for images of another size:", problems=problems)


def other_channels(sites: tuple[Site, ...], observed: Observed) -> list[str]:
    """Return the sites whose features had another channel count in a run than the adapter, as lines for people."""
    problems = []
    for site in sites:
        if site.attachment.layout is None:
            continue
        seen = observed.item(site.path, site.attachment.item)
        shape = seen.shape if seen is not None else None
        found = shape[site.attachment.layout.channel_dim] if shape else None
        if found != site.shape[0]:
            problems.append(f"{site.path} gives {found} channels, the adapter is for {site.shape[0]}")
    return problems
