"""Recognition of a network's family by its structure, and search for its places. Nothing here runs a network."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..errors import PlanError
from ..ports.attachment import Spot
from ..ports.base import base_modules, base_parameters
from ..ports.patterns import literals, matcher
from .base import FAMILIES, Family, Place


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """Family of a network, and the path of the module that belongs to the family (usually the root, '')."""

    family: Family
    prefix: str


def recognise(root: nn.Module) -> Recognised | None:
    """Return the family of a network, by the paths of its modules and parameters, or None; class names do not matter.

    The network may be inside other modules (`DataParallel.module`, a user's wrapper): the shallowest path wins.

    Raises:
        PlanError: Several families fit the same network.
    """
    for prefix, fits in _fitting(root):
        if len(fits) > 1:
            raise PlanError(
                f"the network fits the families {', '.join(f.name for f in fits)}; narrow one of their signatures"
            )
        return Recognised(family=fits[0], prefix=prefix)
    return None


def beside(root: nn.Module, found: Recognised) -> list[Recognised]:
    """Return further networks of known families that a model holds beside the recognised one."""
    others: list[Recognised] = []
    for prefix, fits in _fitting(root) if found.prefix else ():
        if not any(f"{prefix}.".startswith(f"{known.prefix}.") for known in (found, *others)):
            others.append(Recognised(family=fits[0], prefix=prefix))
    return others


def _fitting(root: nn.Module) -> Iterator[tuple[str, list[Family]]]:
    """Yield the prefixes of the root and of modules in it that families fit, with these, shallowest first."""
    names = [path for path, _ in (*base_modules(root), *base_parameters(root)) if path]
    components = {component for name in names for component in name.split(".")}
    families = [f for f in FAMILIES.values() if any(_may_fit(signature, components) for signature in f.signature)]
    for prefix in _prefixes(root):
        lead = f"{prefix}." if prefix else ""
        inner = [n.removeprefix(lead) for n in names if n.startswith(lead)]
        fits = [f for f in families if any(_fits(alternative, inner) for alternative in f.signature)]
        if fits:
            yield prefix, fits


def _prefixes(root: nn.Module) -> list[str]:
    """Return paths of the root and of modules up to two levels below, without numbered ones, shallowest first."""
    paths = ["", *(p for p, _ in base_modules(root) if p and p.count(".") < 2)]
    plain = [p for p in paths if not any(c.isdigit() for c in p.split("."))]
    return sorted(plain, key=lambda p: p.count(".") + bool(p))


def _fits(signature: tuple[str, ...], names: list[str]) -> bool:
    return all(any(map(matcher(p.removeprefix("!")), names)) != p.startswith("!") for p in signature)


def _may_fit(signature: tuple[str, ...], components: set[str]) -> bool:
    """Return whether a network with these components of paths has all that the signature's patterns spell out."""
    return all(literals(pattern) <= components for pattern in signature if not pattern.startswith("!"))


def find_places(root: nn.Module, recognised: Recognised, name: str) -> tuple[Spot, ...]:
    """Return all places with this name in the network, in the order of stages and blocks."""
    return tuple(
        Spot(
            path=hit.path,
            stage=stage,
            block=block,
            attachment=hit.place.attachment,
            shape=(channels,),
        )
        for hit, stage, block in _numbered(_hits(root, recognised, name))
        if (channels := _channels(root, hit.path, hit.place)) is not None
    )


def find_fused(root: nn.Module, recognised: Recognised) -> list[tuple[str, str]]:
    """Return path and name of the block forward of every block that has a fused forward, in the order of modules."""
    lead = recognised.prefix + "." if recognised.prefix else ""
    templates = [(_expression(lead + path), name) for path, name in recognised.family.fused]
    return [(path, name) for path, _ in base_modules(root) for test, name in templates if test.fullmatch(path)]


def find_blocks(root: nn.Module, recognised: Recognised) -> tuple[str, ...]:
    """Return the paths of the blocks for which the family has a block forward."""
    names = {place.name for place in recognised.family.places if place.block is not None}
    spots = [spot for name in sorted(names) for spot in find_places(root, recognised, name)]
    return tuple(dict.fromkeys(spot.path for spot in spots if spot.attachment.block is not None))


def find_containers(root: nn.Module, recognised: Recognised) -> dict[str, tuple[int | None, int | None]]:
    """Return the stage and block numbers of the modules that are a stage (block None) or a block, by path."""
    stages: dict[str, tuple[int | None, int | None]] = {}
    blocks: dict[str, tuple[int | None, int | None]] = {}
    for name in dict.fromkeys(p.name for p in recognised.family.places):
        for hit, stage, block in _numbered(_hits(root, recognised, name)):
            around = _part(hit.template, hit.path, "{stage}") or _around(hit.template, hit.path, "{block}") or hit.path
            stages.setdefault(around, (stage, None))
            if (inside := _part(hit.template, hit.path, "{block}")) is not None:
                blocks.setdefault(inside, (stage, block))
    return {**stages, **blocks}


@dataclass(frozen=True)
class _Hit:
    """Module that matches a place's path, with the numbers in its path."""

    path: str
    template: str
    place: Place
    stage: tuple[int, ...]
    block: tuple[int, ...]


def _hits(root: nn.Module, recognised: Recognised, name: str) -> list[_Hit]:
    """Return the modules at the places with this name, in the order of stages and blocks."""
    modules = dict(base_modules(root))
    lead = recognised.prefix + "." if recognised.prefix else ""
    hits: list[_Hit] = []
    levels: dict[str, int] = {}
    for order, place in enumerate(p for p in recognised.family.places if p.name == name):
        template = lead + place.path
        level = levels.setdefault(_level(template), len(levels))
        expression = _expression(template)
        for path in modules:
            match = expression.fullmatch(path)
            if match and not _is_empty(modules[path]) and _channels(root, path, place) is not None:
                stage, block = _numbers(match, "stage"), _numbers(match, "block")
                hits.append(_Hit(path, template, place, (level, *stage), (order, *block) if block else ()))
    return sorted(hits, key=lambda h: (h.stage, h.block))


def _numbered(hits: list[_Hit]) -> Iterator[tuple[_Hit, int, int | None]]:
    """Yield each module with the numbers of its stage and block, counted from 0 without gaps between stages."""
    stages = {stage: i for i, stage in enumerate(dict.fromkeys(h.stage for h in hits))}
    for hit in hits:
        yield hit, stages[hit.stage], _block_number(hit, [h.block for h in hits if h.stage == hit.stage])


def _numbers(match: re.Match[str], word: str) -> tuple[int, ...]:
    return tuple(int(number) for group, number in match.groupdict().items() if group.startswith(word))


def _block_number(hit: _Hit, blocks: list[tuple[int, ...]]) -> int | None:
    """Return the number in the path, or the rank in the stage if one number does not identify its blocks."""
    if not hit.block:
        return None
    plain = len(hit.block) == 2 and len({block[0] for block in blocks}) == 1
    return hit.block[1] if plain else blocks.index(hit.block)


def _level(template: str) -> str:
    """Return the part of a place's path that identifies its stages, e.g. the part up to the last `{stage}`."""
    return _part(template, template, "{stage}") or _around(template, template, "{block}") or template


def _part(template: str, path: str, word: str) -> str | None:
    """Return the path up to the last component with the word, or None; e.g. `layers.0` for `layers.{stage}.conv`."""
    places = [i for i, component in enumerate(template.split(".")) if word in component]
    return ".".join(path.split(".")[: places[-1] + 1]) if places else None


def _around(template: str, path: str, word: str) -> str | None:
    """Return the path of the parent module of the first component with the word, or None."""
    places = [i for i, component in enumerate(template.split(".")) if word in component]
    return ".".join(path.split(".")[: places[0]]) or None if places else None


def _is_empty(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) == 0


def _channels(root: nn.Module, path: str, place: Place) -> int | None:
    """Return the number of channels; None if the module is another one, without the parameter that gives it."""
    around = path.rsplit(".", 1)[0] if place.channels.startswith("^") else path
    module, _, name = f"{around}.{place.channels.removeprefix('^')}".rpartition(".")
    try:
        parameter = root.get_submodule(module)._parameters.get(name)
    except AttributeError:
        return None
    return None if parameter is None else int(parameter.shape[0])


def _expression(path: str) -> re.Pattern[str]:
    text = re.escape(path).replace(re.escape("{part}"), r"[^.]+")
    count = itertools.count()
    return re.compile(re.sub(r"\\\{(stage|block)\\\}", lambda word: rf"(?P<{word[1]}{next(count)}>\d+)", text))
