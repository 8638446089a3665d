"""What a family is: facts about where a known network has its stages and blocks. No code runs a network here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import PlanError
from ..layouts import Layout
from ..patterns import Candidate, matcher

SLOT = "lowpeft"
"""The reserved name under which a module holds its adapters."""

PlaceName = Literal["attention", "mlp", "parallel", "stage"]
AddDelta = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A family-specific forward of a block, for a site that is a sum which no module outputs.

    Attributes:
        name: Unique, `family.block`.
        forward: `forward(block, delta, *args, **kwargs)` computes what the block's own forward does, and adds
            `delta(features)` (None for nothing) where the residual is.
        example: Arguments for one call of a given block, so that planning can compare the two forwards and refuse a
            copy of the code that has been changed.
    """

    name: str
    forward: Callable[..., Any]
    example: Callable[[nn.Module], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place that a family names, for every stage and block of the network.

    Attributes:
        name: What stands there: `attention` and `mlp` are the contributions that a block adds to its residual stream,
            `parallel` is beside the MLP on its input, `stage` is a group's output before the group's shortcut.
        path: Dotted path of the module, with `{stage}` and `{block}` for the components that count them; `{part}`
            for one that is neither.
        channels: Path, from that module (from the one around it, after a `^`), of a parameter whose first dimension is
            the number of channels.
        layout: Of the features.
        source: Whether the adapter reads the module's output or its first argument; it always adds to the output.
        item: The element of the output that holds the features, for a module that returns a tuple.
        square: Tokens lie on a square grid, and the module is not told its size.
        branch: The name of the family-specific forward, where the site is a sum that no module outputs.
    """

    name: PlaceName
    path: str
    channels: str
    layout: Layout
    source: Literal["output", "input"] = "output"
    item: int | None = None
    square: bool = False
    branch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts about one kind of backbone.

    Attributes:
        name: Lower case.
        title: As the field writes it, for people.
        signature: Alternatives; each is a tuple of patterns over module and parameter paths of which every one must
            match for the network to be of this family. A leading `!` means that nothing may match.
        places: Where the sites are. Their order numbers the stages where several paths name the same place.
        output: The attribute of the network's output that holds the image, where it is not a tensor.
        branches: The family-specific forwards that places name.
        facts: What a network of the family says of itself: values of `lowpeft.facts.Facts` by name, from the module.
            What it leaves out is measured by running the network.
        source: Where the facts are from.
    """

    name: str
    title: str
    signature: tuple[tuple[str, ...], ...]
    places: tuple[Place, ...]
    output: str | None = None
    branches: tuple[Branch, ...] = ()
    facts: Callable[[Any], Mapping[str, Any]] | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class FoundPlace(Candidate):
    """A place in a concrete network: the module's path from the root, its stage and block, its number of channels."""

    place: Place
    channels: int


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A family, and the path below which the network is of that family (usually the root, '')."""

    family: Family
    prefix: str


_FAMILIES: dict[str, Family] = {}
_BRANCHES: dict[str, Branch] = {}


def register_family(family: Family) -> Family:
    """Add a family of backbones.

    Raises:
        PlanError: The name is taken, or a place names a branch that the family does not have.
    """
    branches = {b.name: b for b in family.branches}
    problems = [f"the family {family.name!r} is registered already"] if family.name in _FAMILIES else []
    problems += [f"the branch {b!r} is registered already" for b in branches if b in _BRANCHES]
    problems += [
        f"the place {p.path!r} names a branch {p.branch!r} that the family does not have"
        for p in family.places
        if p.branch is not None and p.branch not in branches
    ]
    if problems:
        raise PlanError("cannot register this family:", problems=problems)
    _FAMILIES[family.name] = family
    _BRANCHES.update(branches)
    return family


def families() -> tuple[Family, ...]:
    """Every registered family, in the order of registration."""
    return tuple(_FAMILIES.values())


def get_branch(name: str) -> Branch:
    """The branch of that name.

    Raises:
        PlanError: No family has it.
    """
    if name not in _BRANCHES:
        raise PlanError(f"no family has a branch {name!r}; known: {', '.join(_BRANCHES)}")
    return _BRANCHES[name]


def base_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`root.named_modules()` without the adapters; a module that has two names comes once, under the first."""
    for path, module in root.named_modules():
        if SLOT not in path.split("."):
            yield path, module


def base_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`root.named_parameters()` without the adapters' own."""
    for path, parameter in root.named_parameters():
        if SLOT not in path.split("."):
            yield path, parameter


def recognise(root: nn.Module) -> Recognised | None:
    """The family of a network, by its structure and names; import paths play no part.

    The network may be held by others (`DataParallel.module`, a user's own wrapper): the shallowest path wins.

    Raises:
        PlanError: Two families fit the same network.
    """
    names = [path for path, _ in (*base_modules(root), *base_parameters(root)) if path]
    for prefix in _prefixes(root):
        lead = f"{prefix}." if prefix else ""
        inner = [n.removeprefix(lead) for n in names if n.startswith(lead)]
        fits = [f for f in _FAMILIES.values() if any(_fits(alternative, inner) for alternative in f.signature)]
        if len(fits) > 1:
            raise PlanError(
                f"the network fits the families {', '.join(f.name for f in fits)}; one of their signatures is too wide"
            )
        if fits:
            return Recognised(family=fits[0], prefix=prefix)
    return None


def _prefixes(root: nn.Module) -> list[str]:
    """The root and the modules up to two levels below it that are not repeated ones, shallowest first."""
    paths = ["", *(p for p, _ in base_modules(root) if p and p.count(".") < 2)]
    plain = [p for p in paths if not any(c.isdigit() for c in p.split("."))]
    return sorted(plain, key=lambda p: p.count(".") + bool(p))


def _fits(signature: tuple[str, ...], names: list[str]) -> bool:
    return all(any(map(matcher(p.removeprefix("!")), names)) != p.startswith("!") for p in signature)


def find_places(root: nn.Module, found: Recognised, name: str) -> tuple[FoundPlace, ...]:
    """Every place of that name in the network, in the order of stages and blocks."""
    modules = dict(base_modules(root))
    lead = found.prefix + "." if found.prefix else ""
    hits: list[tuple[tuple[int, ...], int | None, str, Place]] = []
    stages: dict[tuple[int, ...], None] = {}
    for order, place in enumerate(p for p in found.family.places if p.name == name):
        expression = _expression(lead + place.path)
        for path in modules:
            match = expression.fullmatch(path)
            if match and not _is_empty(modules[path]):
                groups = match.groupdict()
                stage: tuple[int, ...] = (order, int(groups["stage"])) if groups.get("stage") else (order,)
                block = int(groups["block"]) if groups.get("block") else None
                hits.append((stage, block, path, place))
    for stage, *_ in sorted(hits, key=lambda h: h[0]):
        stages.setdefault(stage)
    numbers = {stage: i for i, stage in enumerate(stages)}
    rows = sorted(hits, key=lambda h: (h[0], h[1] if h[1] is not None else -1))
    return tuple(
        FoundPlace(path=path, stage=numbers[s], block=b, place=place, channels=_channels(root, path, place))
        for s, b, path, place in rows
    )


def _is_empty(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) == 0


def _channels(root: nn.Module, path: str, place: Place) -> int:
    around = path.rsplit(".", 1)[0] if place.channels.startswith("^") else path
    module, _, name = f"{around}.{place.channels.removeprefix('^')}".rpartition(".")
    parameter = root.get_submodule(module)._parameters[name]
    if parameter is None:
        raise PlanError(f"{module} has no {name} that would tell the channels of {path}")
    return int(parameter.shape[0])


def _expression(path: str) -> re.Pattern[str]:
    text = re.escape(path)
    for word, group in (("stage", r"(?P<stage>\d+)"), ("block", r"(?P<block>\d+)"), ("part", r"[^.]+")):
        text = text.replace(re.escape("{" + word + "}"), group)
    return re.compile(text)
