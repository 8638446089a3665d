"""What a family is: facts about where a known network has its stages and blocks. No code runs a network here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from ..errors import PlanError, did_you_mean
from ..ports.layouts import ExtraTokens, Layout, Size
from ..ports.patterns import Candidate, matcher

SLOT = "lowpeft"
"""The reserved name under which a module holds its adapters."""


class Ports(Protocol):
    """The adapters of one block during one call, as a block forward sees them."""

    def wants(self, port: str) -> bool:
        """Whether an adapter sits at the port, for forwards that would have to compute its features."""

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        """The sum of what the adapters at the port add to these features, in their shape; None for nothing.

        Args:
            port: Name of the port.
            values: The features that the adapters read.
            layout: Layout of `values`.
            size: Height and width in positions.
        """

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Sequence[ExtraTokens]:
        """The extra keys and values of each adapter at the port, for attention that reads these features.

        Args:
            port: Name of the port.
            values: The features that attention reads.
            layout: Layout of `values`.
            size: Height and width in positions.
        """


@dataclass(frozen=True, kw_only=True)
class BlockForward:
    """A forward of a block that lowpeft wrote, with named places to add to.

    Ports of the bundled blocks (their names are open):

    * `attention`: reads the whole contribution of attention, adds to it before the residual;
    * `mlp`: the same for the MLP;
    * `parallel_attention`, `parallel`: read the input of attention, or of the MLP, after its norm (where the block
      has one there), and add to its contribution;
    * `parallel_attention_raw`, `parallel_raw`: the same before the norm;
    * `tokens`: gives attention extra keys and values (`families/tokens.py`), for a `kinds.TokenAdapter` alone.

    Attributes:
        name: Unique, `family.block`.
        forward: `forward(block, ports, *args, **kwargs)` computes what the block's own forward does, and adds what
            `ports.delta` returns.
        ports: Names of the ports that `forward` serves.
        example: Arguments for one call of a given block, so that planning can compare the two forwards and refuse a
            copy of the code that has been changed.
        exact: Without adapters the result is bit-equal to the block's own; otherwise close (within 1e-5), and such a
            forward runs with or without adapters once it is installed.
        variant_of: Name of another block forward, with the same ports, from which this one differs on purpose while an
            adapter in the block is on. The block itself is compared with that one.
    """

    name: str
    forward: Callable[..., Any]
    ports: frozenset[str]
    example: Callable[[Any], tuple[Any, ...]]
    exact: bool = True
    variant_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place that a family names, for every stage and block of the network: a port of a block, or a module's output.

    Attributes:
        name: Any name; kinds go to `attention`, `mlp`, `parallel`, … (see `BlockForward`), and to `stage`, a group's
            output before the group's shortcut.
        path: Dotted path of the module, with `{stage}` and `{block}` for the numbers that count them; `{part}` for a
            component that is neither. Where there are two of them (`body.{block}.blocks.{block}`), or where several
            places of one name have the same stages, stages and blocks are counted through, in the order of the places.
        channels: Path, from that module (from the one around it, after a `^`), of a parameter whose first dimension is
            the number of channels.
        block: Name of the block forward; None for a place at the module's output.
        port: Name of its port.
        layout: Layout of the features at a module's output.
        source: Whether the adapter reads the module's output or its first argument; it always adds to the output.
        item: The element of the output that holds the features, for a module that returns a tuple.
        square: Tokens lie on a square grid, and the module is not told its size.
    """

    name: str
    path: str
    channels: str
    block: str | None = None
    port: str | None = None
    layout: Layout | None = None
    source: Literal["output", "input"] = "output"
    item: int | None = None
    square: bool = False


def added(out: Tensor, ports: Ports, layout: Layout, size: Size | None, features: Mapping[str, Tensor]) -> Tensor:
    """A block's residual stream with what adapters add; the base's own additions come first, and stay bit-equal.

    Args:
        out: The residual stream, after the block's own contribution.
        ports: The block's adapters.
        layout: Layout of `out` and of all features.
        size: Height and width in positions.
        features: What the adapters at a port read, by port.
    """
    for port, values in features.items():
        delta = ports.delta(port, values, layout, size)
        if delta is not None:
            out = out + delta.to(out.dtype)  # under autocast a float32 sum would lift all that follows to float32
    return out


def block_places(
    path: str, channels: str, block: BlockForward, *, names: Mapping[str, str] | None = None
) -> tuple[Place, ...]:
    """A place for every port of a block, of the port's name.

    Args:
        path: Path of the block.
        channels: As in `Place`.
        block: Its forward.
        names: Channels of single ports where they differ, by port.
    """
    special = names or {}
    return tuple(
        Place(name=port, path=path, channels=special.get(port, channels), block=block.name, port=port)
        for port in sorted(block.ports)
    )


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
        blocks: The block forwards that places name.
        facts: What a network of the family says of itself: values of `ports.facts.Facts` by name, from the module.
            What it leaves out is measured by running the network.
        writes_itself: Whether its networks write weights of their own when they run, which is then looked for.
        inside: The path of what the signature describes within the family's own whole network.
        source: Where the facts are from.
    """

    name: str
    title: str
    signature: tuple[tuple[str, ...], ...]
    places: tuple[Place, ...]
    output: str | None = None
    blocks: tuple[BlockForward, ...] = ()
    facts: Callable[[Any], Mapping[str, Any]] | None = None
    writes_itself: bool = False
    inside: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class FoundPlace(Candidate):
    """A place in a concrete network: the module's path from the root, its stage and block, its number of channels.

    Attributes:
        place: The place.
        channels: Number of channels there.
        stage_path: The module that is the stage; everything inside belongs to it.
        block_path: The module that is the block.
    """

    place: Place
    channels: int
    stage_path: str | None = None
    block_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A family, and the path below which the network is of that family (usually the root, '')."""

    family: Family
    prefix: str


TOKENS = "tokens"
"""The port of extra keys and values."""

_FAMILIES: dict[str, Family] = {}
_BLOCKS: dict[str, BlockForward] = {}


def register_family(family: Family) -> Family:
    """Add a family of backbones, with its block forwards.

    Raises:
        PlanError: A name is taken, or a place names a block forward or port that there is not, or both or neither of
            a port and a layout; nothing is added then.
    """
    blocks = {**_BLOCKS, **{b.name: b for b in family.blocks}}
    problems = [f"the family {family.name!r} is registered already"] if family.name in _FAMILIES else []
    problems += [f"the block forward {b.name!r} is registered already" for b in family.blocks if b.name in _BLOCKS]
    for place in family.places:
        if (place.block is None) == (place.layout is None) or (place.block is None) != (place.port is None):
            problems.append(f"the place {place.path!r} must have a block and its port, or a layout")
        elif place.block is not None and (place.block not in blocks or place.port not in blocks[place.block].ports):
            problems.append(f"the place {place.path!r} names {place.block}:{place.port}, and there is no such port")
    if problems:
        raise PlanError("cannot register this family:", problems=problems)
    _FAMILIES[family.name] = family
    _BLOCKS.update({b.name: b for b in family.blocks})
    return family


def register_block_forward(block: BlockForward) -> BlockForward:
    """Add a block forward beside those of the families.

    Raises:
        PlanError: The name is taken, or the block forward is a variant of one that there is not, or of other ports.
    """
    if block.name in _BLOCKS:
        raise PlanError(f"the block forward {block.name!r} is registered already")
    if block.variant_of is not None and get_block(block.variant_of).ports != block.ports:
        raise PlanError(f"the block forward {block.name!r} has other ports than {block.variant_of!r}")
    _BLOCKS[block.name] = block
    return block


def families() -> tuple[Family, ...]:
    """Every registered family, in the order of registration."""
    return tuple(_FAMILIES.values())


def get_block(name: str) -> BlockForward:
    """The block forward of that name.

    Raises:
        PlanError: There is none.
    """
    if name not in _BLOCKS:
        raise PlanError(f"no block forward {name!r}; known: {', '.join(_BLOCKS)}{did_you_mean(name, _BLOCKS)}")
    return _BLOCKS[name]


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


@dataclass(frozen=True)
class _Hit:
    """A module that a place's path fits, with the numbers in its path."""

    path: str
    template: str
    place: Place
    stage: tuple[int, ...]
    block: tuple[int, ...]


def find_places(root: nn.Module, found: Recognised, name: str) -> tuple[FoundPlace, ...]:
    """Every place of that name in the network, in the order of stages and blocks."""
    modules = dict(base_modules(root))
    lead = found.prefix + "." if found.prefix else ""
    hits: list[_Hit] = []
    levels: dict[str, int] = {}
    for order, place in enumerate(p for p in found.family.places if p.name == name):
        template = lead + place.path
        level = levels.setdefault(_level(template), len(levels))
        expression = _expression(template)
        for path in modules:
            match = expression.fullmatch(path)
            if match and not _is_empty(modules[path]):
                stage, block = _numbers(match, "stage"), _numbers(match, "block")
                hits.append(_Hit(path, template, place, (level, *stage), (order, *block) if block else ()))
    hits.sort(key=lambda h: (h.stage, h.block))
    numbers = {stage: i for i, stage in enumerate(dict.fromkeys(h.stage for h in hits))}
    return tuple(
        FoundPlace(
            path=h.path,
            stage=numbers[h.stage],
            block=_block_number(h, [other.block for other in hits if other.stage == h.stage]),
            place=h.place,
            channels=_channels(root, h.path, h.place),
            stage_path=_part(h.template, h.path, "{stage}") or _around(h.template, h.path, "{block}") or h.path,
            block_path=_part(h.template, h.path, "{block}"),
        )
        for h in hits
    )


def _numbers(match: re.Match[str], word: str) -> tuple[int, ...]:
    return tuple(int(number) for group, number in match.groupdict().items() if group.startswith(word))


def _block_number(hit: _Hit, blocks: list[tuple[int, ...]]) -> int | None:
    """The number in the path or, where one number does not tell the stage's blocks apart, the rank among them."""
    if not hit.block:
        return None
    plain = len(hit.block) == 2 and len({block[0] for block in blocks}) == 1
    return hit.block[1] if plain else blocks.index(hit.block)


def _level(template: str) -> str:
    """What a place's path has in common with those of the same stages: the part up to the last `{stage}`, say."""
    return _part(template, template, "{stage}") or _around(template, template, "{block}") or template


def _part(template: str, path: str, word: str) -> str | None:
    """The path up to the last component that stands for a word: `layers.0` for `{stage}` of `layers.{stage}.conv`."""
    places = [i for i, component in enumerate(template.split(".")) if word in component]
    return ".".join(path.split(".")[: places[-1] + 1]) if places else None


def _around(template: str, path: str, word: str) -> str | None:
    """The path of the module around the first such component."""
    places = [i for i, component in enumerate(template.split(".")) if word in component]
    return ".".join(path.split(".")[: places[0]]) or None if places else None


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
    text = re.escape(path).replace(re.escape("{part}"), r"[^.]+")
    count = itertools.count()
    return re.compile(re.sub(r"\\\{(stage|block)\\\}", lambda word: rf"(?P<{word[1]}{next(count)}>\d+)", text))
