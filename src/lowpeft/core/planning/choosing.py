"""Choice of sites: the modules and weights of a network that an adapter config selects. Never changes the network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...errors import PlanError
from ...families import TOKENS
from ...kinds import (
    LAYERS,
    AdapterConfig,
    FeatureAdapter,
    Kind,
    Layer,
    TokenAdapter,
    WeightAdapter,
    get_kind,
)
from ...kinds.matrices import table_groups
from ...ports.attachment import Attachment, Spot
from ...ports.base import SLOT, base_parameters
from ...ports.layouts import Layout
from ...ports.patterns import Candidate, as_tuple, select
from ..attachment.specialise import original_class
from ..observation.blocks import check_block
from ..observation.observing import Observed
from ..observation.probe import has_fused_path, spot_at
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
    return [make_site(network, config, Spot(path="", attachment=Attachment(form="root"), shape=shape)), *sites]


# --- weights ---------------------------------------------------------------------------------------------------------


def _weight_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    spots = list(_weight_spots(network, cast(type[WeightAdapter], kind.module), config))
    by_default = config.target is None and LAYERS in config.places
    if config.target is None and not by_default:
        raise PlanError(f"{kind.name} adapters need a target; '**' selects all {len(spots)} parameters that they fit")
    target = config.target or "**"
    if not spots:
        raise PlanError(
            f"{original_class(network.root).__name__} has no parameter that a {kind.name} adapter fits",
            problems=_folds(network, ()),
        )
    try:
        chosen = select(target, spots, what=f"parameters for {kind.name} adapters")
    except PlanError as error:
        if folds := _folds(network, config.target or ()):
            raise PlanError(error.message, problems=[*error.problems, *folds]) from error
        raise
    sites, problems = [], []
    for spot in _without_derived(network, kind, chosen):
        try:
            sites.append(make_site(network, config, spot))
        except PlanError as error:
            problems.append(f"{spot.tensors[0]}: {error}")
    if problems and (not by_default or not sites):
        raise PlanError(f"{kind.name} adapters do not fit {len(problems)} of the chosen parameters:", problems=problems)
    if problems:
        network.notes[f"{kind.name}: left out {len(problems)} layers that it does not fit, e.g. {problems[0]}"] = None
    _note_passed_over(network, kind, target, spots)
    return sites


def _weight_spots(network: Network, adapter: type[WeightAdapter], config: AdapterConfig) -> Iterator[Spot]:
    """Yield every group of parameters that the kind can change; a pattern may match the path of any of them."""
    by_place = any("=" in pattern for pattern in config.target or ())
    for path, module in network.modules.items():
        if _keeps_its_weights(module):
            continue
        groups = [(names, False) for names in adapter.groups(module)]
        groups += [(names, True) for names in adapter.named_groups(module)] if config.target is not None else []
        for names, by_name in groups:
            tensors = [module._parameters.get(name) for name in names]
            if any(t is None or not t.numel() for t in tensors):
                continue
            stage, block = network.stage_and_block(path) if by_place else (None, None)
            paths = [f"{path}.{name}" if path else name for name in names]
            if by_name and isinstance(module, nn.Embedding):
                paths.append(path)
            layer = layer_of(module, names, path)
            yield Spot(
                path=path,
                by_name=by_name,
                within=tuple(paths) if by_name else (*_around(path), *paths),
                stage=stage,
                block=block,
                attachment=Attachment(form="weight", tensors=names),
                shape=layer.shape(layer.main),
                layer=layer,
            )


def _around(path: str) -> tuple[str, ...]:
    """Return the paths of the enclosing modules, outermost first; e.g. "a", "a.b" for "a.b.weight"."""
    parts = path.split(".")
    return tuple(".".join(parts[:i]) for i in range(1, len(parts)))


def _without_derived(network: Network, kind: Kind, chosen: Sequence[Spot]) -> Sequence[Spot]:
    """Leave out weights that the network overwrites in its forward pass, and weights that it reads only to do so."""
    paths = [path for spot in chosen for path in spot.tensors]
    derived = network.trial.derived(paths) if network.may_write_itself and network.trial.runs else set()
    if not derived:
        return chosen
    gone = derived | network.trial.unread(paths)
    kept = [spot for spot in chosen if gone.isdisjoint(spot.tensors)]
    text = (
        f"{kind.name}: passed over {len(gone)} weights that the network overwrites when it runs, or reads only to "
        f"compute those, e.g. {min(gone)}: changes of them would be lost"
    )
    if not kept:
        raise PlanError(text)
    network.notes[text] = None
    return kept


def _note_passed_over(network: Network, kind: Kind, target: str | Sequence[str], fitting: list[Spot]) -> None:
    """Add a note on parameters of two or more dimensions that the patterns match but the kind does not fit."""
    known = {path for spot in fitting for path in spot.tensors}
    folded = tuple(f"{path}." for path, module in network.modules.items() if how_to_fold(module))
    wanted = [p for p in as_tuple(target) if "=" not in p]
    missed = [
        path
        for path, parameter in base_parameters(network.root)
        if path not in known and not path.startswith(folded) and parameter.dim() > 1 and parameter.is_floating_point()
        if _means(wanted, path)
    ]
    if missed:
        text = f"{kind.name}: passed over {len(missed)} parameters that it does not fit, e.g. {missed[0]}"
        network.notes[text] = None
    if not any(f"{spot.path}.".startswith(folded) for spot in fitting):  # otherwise the kind adapts the source tensors
        for text in _folds(network, wanted):
            network.notes[f"{kind.name}: {text}"] = None


def _means(patterns: Sequence[str], path: str) -> bool:
    """Return whether patterns select a parameter; unlike in `select`, a pattern may match nothing."""
    candidate = Candidate(path=path, within=_around(path))
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
    layers: dict[str, list[str]] = {}
    for path, module in network.modules.items():
        if (how := how_to_fold(module)) and (not patterns or _means(patterns, f"{path}.weight")):
            layers.setdefault(how, []).append(path)
    return [
        f"{len(paths)} layers ({paths[0] or 'the network'}, …) compute their weights from other tensors; to adapt them "
        f"too, fold these first: {how}"
        for how, paths in layers.items()
    ]


def _keeps_its_weights(module: nn.Module) -> bool:
    """Return whether a module cannot read changed weights: TorchScript, RNNs (they store them), sparse embeddings."""
    sparse = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
    return isinstance(module, (torch.jit.ScriptModule, nn.RNNBase)) or sparse


PROJECTION = re.compile(r"(?:^|_)(qkv|kv|qk|q|k|v)(?:_|\d|$)")
"""Name of a projection to queries, keys and values, or some of them: the last component of a path, or a parameter."""


def layer_of(module: nn.Module, names: tuple[str, ...], path: str = "") -> Layer:
    """Return the description of the named parameters of a module at this path."""
    shapes = tuple((name, tuple(cast(Tensor, module._parameters[name]).shape)) for name in names)
    conv = isinstance(module, _ConvNd)
    return Layer(
        shapes=shapes,
        transposed=conv and bool(module.transposed),
        groups=int(cast(int, module.groups)) if conv else 1,
        table=names in table_groups(module),
        parts=_parts(module, shapes, path),
    )


def _parts(module: nn.Module, shapes: tuple[tuple[str, tuple[int, ...]], ...], path: str) -> tuple[str, ...]:
    """Return the parts of the rows of a projection to queries, keys and values, read from the name of the layer."""
    name = path.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention):
        first, several = shapes[0][0], sum(name.endswith("_weight") for name, _ in shapes) > 1
        name = "qkv" if first.startswith("in_proj") else "" if several else first
    elif not isinstance(module, (nn.Linear, _ConvNd)) or getattr(module, "transposed", False):
        return ()
    found = PROJECTION.search(name)
    return tuple(found[1]) if found is not None and shapes[0][1][0] % len(found[1]) == 0 else ()


# --- features --------------------------------------------------------------------------------------------------------


def _feature_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    if config.target is None:
        chosen = [spot for name in config.places for spot in network.places(name)]
    else:
        chosen = _chosen_features(network, config, kind)
    kept = [chosen[i] for i in config.thin(len(chosen))]
    if not kept:
        raise PlanError(f"{config} keeps none of the {len(chosen)} selected sites; set a smaller `every`, say every=1")
    _refuse_other_ports(kind, kept)
    sites = [_feature_site(network, config, spot) for spot in kept]
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
            problems.append(f"{site.path}: the first axis of its output {seen[0].shape} is not the batch of images")
    if problems:
        raise PlanError(f"{kind.name} adapters do not fit these modules:", problems=problems)


def _refuse_without_rows(network: Network, kind: Kind, sites: list[Site]) -> None:
    """Refuse windows, and tokens whose rows and columns are unknown."""
    problems = []
    for site in sites:
        layout = site.attachment.layout
        if layout is Layout.WLC:
            problems.append(f"{site.path}: its output consists of windows (windows, tokens, channels)")
        elif layout is not None and layout.is_tokens and network.recognised is None:
            seen = network.trial.seen_at(site.path)
            if not any(s.size for s in seen):
                count = f"{(seen[0].shape or (0, 0))[1 - layout.batch_dim]} " if seen else ""
                problems.append(f"{site.path}: its output is {count}tokens of unknown height and width")
    if problems:
        raise PlanError(
            f"{kind.name} adapters need image rows, which these features do not have. Name modules with target= that "
            "give maps (n, channels, h, w), or tokens and are passed their height and width:",
            problems=problems,
        )


def _refuse_fused(network: Network, kind: Kind, sites: list[Site]) -> None:
    """Refuse features inside nn.TransformerEncoderLayer: in inference it does not call its children."""
    problems = []
    for site in sites:
        fused = (layer for layer in _around(site.path) if has_fused_path(network.modules[layer]))
        problems += [f"{site.path}: name {layer} instead" for layer in fused]
    if problems:
        raise PlanError(
            f"{kind.name} adapters inside nn.TransformerEncoderLayer would act in training only: for inference, torch "
            "computes the layer from its weights without calling its submodules:",
            problems=problems,
        )


def _refuse_other_ports(kind: Kind, chosen: Sequence[Spot]) -> None:
    """Refuse token adapters at places that are not token ports, and other adapters at token ports."""
    gives_tokens = issubclass(kind.module, TokenAdapter)
    wrong = [spot.path for spot in chosen if (spot.attachment.port == TOKENS) != gives_tokens]
    if wrong:
        raise PlanError(
            f"{kind.name} adapters give attention extra tokens, which these places do not take:"
            if gives_tokens
            else f"{kind.name} adapters add to features, but these places take extra tokens for attention:",
            problems=wrong,
        )


def _chosen_features(network: Network, config: AdapterConfig, kind: Kind) -> list[Spot]:
    """Return the spots that the patterns select from the family's places for this kind and all other modules."""
    places: list[Spot] = []
    if network.recognised or any("=" in t for t in config.target or ()):
        found = [spot for name in config.places for spot in network.find(name)]
        order = {path: i for i, path in enumerate(dict.fromkeys(spot.path for spot in found))}
        places = sorted(found, key=lambda spot: order[spot.path])
    known = {spot.path for spot in places}
    others = [Candidate(path=path) for path in network.modules if path and path not in known]
    chosen = select(cast(tuple[str, ...], config.target), [*places, *others], what="modules")
    measured = _measure(network, [c.path for c in chosen if not isinstance(c, Spot)], config, kind)
    return [c if isinstance(c, Spot) else measured[c.path] for c in chosen]


def _measure(network: Network, paths: list[str], config: AdapterConfig, kind: Kind) -> dict[str, Spot]:
    """Measure layout and channels of modules that no family names, in one forward pass; return a spot by path."""
    needs_rows = cast(type[FeatureAdapter], kind.module).needs_rows

    def look(observed: Observed) -> dict[str, Spot]:
        spots, problems = {}, []
        for path in paths:
            seen = observed.item(path, getattr(config, "item", None))
            if seen is None or seen.shape is None:
                problems.append(f"{path} ({type(network.modules[path]).__name__}) gave no tensor when the network ran")
            elif seen.is_ambiguous:
                items = " or ".join(f"item={i}" for i in seen.alike)
                problems.append(f"{path} gives {len(seen.alike)} tensors of the same shape {seen.shape}: set {items}")
            elif seen.layout is None and seen.is_tokens and needs_rows:
                problems.append(f"{path} gives tokens {seen.shape} of unknown height and width")
            elif seen.layout is None and (needs_rows or len(seen.shape) == 4):
                problems.append(
                    f"{path}: cannot tell which axes of its output {seen.shape} are height, width, channels"
                )
            else:
                stage, block = network.stage_and_block(path) if network.recognised else (None, None)
                spots[path] = spot_at(path, seen, observed.example.images, stage=stage, block=block)
        if problems:
            raise PlanError(f"{kind.name} adapters do not fit these modules:", problems=problems)
        return spots

    return network.trial.first(look) if paths else {}


def _feature_site(network: Network, config: AdapterConfig, spot: Spot) -> Site:
    block = spot.attachment.block
    if block is not None:
        check_block(network.checked_blocks, spot.path, network.modules[spot.path], block)
    elif spot.attachment.source == "output":
        spot = dataclasses.replace(spot, path=output_module(network.modules, spot.path))
    return make_site(network, config, spot)


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
        raise PlanError("the number of channels of these features changes with the image size:", problems=problems)


def other_channels(sites: tuple[Site, ...], observed: Observed) -> list[str]:
    """Return the sites whose features had another channel count in a run than the adapter, as lines for people."""
    problems = []
    for site in sites:
        if site.attachment.layout is None:
            continue
        seen = observed.item(site.path, site.attachment.item)
        shape = seen.shape if seen is not None else None
        channels = shape[site.attachment.layout.channel_dim] if shape else None
        if channels != site.shape[0]:
            problems.append(f"{site.path} gives {channels} channels, the adapter is for {site.shape[0]}")
    return problems
