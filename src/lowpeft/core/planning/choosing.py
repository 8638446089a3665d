"""Choice of sites: the modules and weights of a network that an adapter config selects. Never changes the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...errors import PlanError
from ...kinds import (
    LAYERS,
    AdapterConfig,
    Kind,
    Layer,
    Surroundings,
    WeightAdapter,
    get_kind,
)
from ...kinds.matrices import table_groups
from ...ports.attachment import Attachment, Spot
from ...ports.base import base_parameters, original_class
from ...ports.patterns import Candidate, around, as_tuple, select
from ..observation.doubling import doubles_with_its_weight
from .feature_sites import feature_sites
from .parametrised import how_to_fold
from .sites import Network, Site, make_site

FEW = 0.1
"""Least share of the layers that adapters which go to all layers must fit."""


def choose_sites(network: Network, config: AdapterConfig) -> list[Site]:
    """Return the sites that a config's target selects, or else the default places of its kind.

    If the kind has a part that all sites share, its site (path "") comes first.

    Raises:
        PlanError: The target matches nothing, or the kind does not fit the matches.
    """
    kind = get_kind(config.kind)
    sites = (_weight_sites if kind.on_weights else feature_sites)(network, config, kind)
    part = kind.module.root_part_class
    if part is None:
        return sites
    around_it = Surroundings(network.facts, lambda: [network.pixels_per_position(site.path) for site in sites])
    shape = part.shape_on(around_it, config, [s.layer or s.shape[0] for s in sites])
    return [make_site(network, config, Spot(path="", attachment=Attachment(form="root"), shape=shape)), *sites]


# --- weights ---------------------------------------------------------------------------------------------------------


def _weight_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    spots = list(_weight_spots(network, cast(type[WeightAdapter], kind.module), config))
    by_default = config.target is None and LAYERS in config.places
    if config.target is None and not by_default:
        raise PlanError(f"{kind.name} adapters need a target; '**' selects all {len(spots)} parameters that they fit")
    target = "**" if config.target is None else config.target
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
    scales = cast(type[WeightAdapter], kind.module).scales_outputs
    for spot in _without_derived(network, kind, chosen):
        if scales and not doubles_with_its_weight(network.modules[spot.path]):
            name = original_class(network.modules[spot.path]).__name__
            problems.append(f"{spot.tensors[0]}: the output of {name} does not go with its weight")
            continue
        try:
            sites.append(make_site(network, config, spot))
        except PlanError as error:
            problems.append(f"{spot.tensors[0]}: {error}")
    if problems and (not by_default or not sites):
        raise PlanError(f"{kind.name} adapters do not fit {len(problems)} of the chosen parameters:", problems=problems)
    _refuse_few(kind, config, sites, problems)
    if problems:
        network.notes[f"{kind.name}: left out {len(problems)} layers that it does not fit, e.g. {problems[0]}"] = None
    _note_passed_over(network, kind, target, spots)
    return sites


def _refuse_few(kind: Kind, config: AdapterConfig, sites: Sequence[Site], problems: Sequence[str]) -> None:
    """Refuse a size that leaves out nearly every layer, which nobody means who names none."""
    layers = len(sites) + len(problems)
    if config.sizes is not None and len(sites) < FEW * layers:
        raise PlanError(
            f"{kind.name} adapters with {config.settings} fit only {len(sites)} of {layers} layers; choose another "
            "size, or name layers with target=:",
            problems=problems,
        )


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
                within=tuple(paths) if by_name else (*around(path), *paths),
                stage=stage,
                block=block,
                attachment=Attachment(form="weight", tensors=names),
                shape=layer.shape(layer.main),
                layer=layer,
            )


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
    candidate = Candidate(path=path, within=around(path))
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
