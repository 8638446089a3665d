"""Choice of sites on features: the places and modules that a feature adapter's config selects. Changes no network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

from torch import nn

from ...errors import PlanError
from ...families import TOKENS
from ...kinds import AdapterConfig, FeatureAdapter, Kind, TokenAdapter
from ...ports.attachment import Spot
from ...ports.base import SLOT, original_class
from ...ports.layouts import Layout
from ...ports.patterns import Candidate, around, select
from ..observation.blocks import check_block
from ..observation.observing import Observed
from ..observation.probe import has_fused_path, spot_at
from .sites import Network, Site, make_site


def feature_sites(network: Network, config: AdapterConfig, kind: Kind) -> list[Site]:
    """Return the sites that a feature adapter's config selects, in the order of its places.

    Raises:
        PlanError: The network lacks a place, the target matches nothing, or the kind does not fit the matches.
    """
    if config.target is None:
        chosen = [spot for name in config.places for spot in network.places(name, config.without_place)]
    else:
        chosen = _chosen_features(network, config, kind)
    chosen = _later(config, _once(network, kind, chosen))
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


def _once(network: Network, kind: Kind, chosen: list[Spot]) -> list[Spot]:
    """Return each spot once: in blocks with one branch, the places of attention and of the MLP are the same."""
    different = list(dict.fromkeys(chosen))
    if len(different) < len(chosen):
        network.notes[
            f"{kind.name}: blocks here are one branch, so attention and MLP are the same place; it gets one adapter"
        ] = None
    return different


def _later(config: AdapterConfig, chosen: list[Spot]) -> list[Spot]:
    """Return the spots without those in the first stages that a config skips (AdapterDrop)."""
    skipped = getattr(config, "skip_stages", None)
    if not skipped:
        return chosen
    if outside := [spot.path for spot in chosen if spot.stage is None]:
        raise PlanError(
            f"{config.kind} adapter: skip_stages={skipped} counts stages, but these modules are in no stage that is "
            "known; leave them out with a '!' pattern in target= instead:",
            problems=outside,
        )
    kept = [spot for spot in chosen if cast(int, spot.stage) >= skipped]
    if not kept:
        last = max(cast(int, spot.stage) for spot in chosen)
        raise PlanError(
            f"{config.kind} adapter: skip_stages={skipped} leaves none of the {len(chosen)} chosen modules: the last "
            f"is in stage {last}, counted from 0"
        )
    return kept


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
        fused = (layer for layer in around(site.path) if has_fused_path(network.modules[layer]))
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
    by_number = any("=" in t for t in config.target or ())
    if network.recognised or by_number:
        found = [spot for name in config.places for spot in network.find(name)]
        if by_number and not found:
            network.places(config.places[0], config.without_place)  # raises, and says which places there are
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

    A Sequential calls all of its children in turn, so adapters must not become one of them. If its last child has other
    places in the network, where they would act too, it stays the Sequential, to which attaching says no.
    """
    module = modules[path]
    while original_class(module).forward is nn.Sequential.forward and len(module._modules.keys() - {SLOT}):
        last = [n for n in module._modules if n != SLOT][-1]
        child = cast(nn.Module, module._modules[last])
        if sum(each is child for parent in modules.values() for each in parent._modules.values()) > 1:
            break
        path, module = f"{path}.{last}" if path else last, child
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
