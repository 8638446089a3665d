"""What a family is: facts about where a known network has its stages and blocks. No code runs a network here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from ..errors import PlanError
from ..ports.layouts import ExtraTokens, Layout, Size
from ..registry import Registry


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


TOKENS = "tokens"
"""The port of extra keys and values."""

FAMILIES: Registry[Family] = Registry("family", error=PlanError)
BLOCKS: Registry[BlockForward] = Registry("block forward", error=PlanError)


def register_family(family: Family) -> Family:
    """Add a family of backbones, with its block forwards.

    Raises:
        PlanError: A name is taken, or a place names a block forward or port that there is not, or both or neither of
            a port and a layout; nothing is added then.
    """
    blocks = {**BLOCKS, **{b.name: b for b in family.blocks}}
    problems = [f"the family {family.name!r} is registered already"] if family.name in FAMILIES else []
    problems += [f"the block forward {b.name!r} is registered already" for b in family.blocks if b.name in BLOCKS]
    for place in family.places:
        if (place.block is None) == (place.layout is None) or (place.block is None) != (place.port is None):
            problems.append(f"the place {place.path!r} must have a block and its port, or a layout")
        elif place.block is not None and (place.block not in blocks or place.port not in blocks[place.block].ports):
            problems.append(f"the place {place.path!r} names {place.block}:{place.port}, and there is no such port")
    if problems:
        raise PlanError("cannot register this family:", problems=problems)
    BLOCKS.register(*family.blocks)
    FAMILIES.register(family)
    return family


def unregister_family(name: str) -> Family:
    """Remove a family of backbones, with its block forwards; models that are adapted keep running.

    Raises:
        PlanError: There is no such family.
    """
    family = FAMILIES.unregister(name)
    for block in family.blocks:
        BLOCKS.unregister(block.name)
    return family


def register_block_forward(block: BlockForward) -> BlockForward:
    """Add a block forward beside those of the families.

    Raises:
        PlanError: The name is taken, or the block forward is a variant of one that there is not, or of other ports.
    """
    if block.variant_of is not None and get_block(block.variant_of).ports != block.ports:
        raise PlanError(f"the block forward {block.name!r} has other ports than {block.variant_of!r}")
    BLOCKS.register(block)
    return block


def families() -> tuple[Family, ...]:
    """Every registered family, in the order of registration."""
    return tuple(FAMILIES.values())


def get_block(name: str) -> BlockForward:
    """The block forward of that name.

    Raises:
        PlanError: There is none.
    """
    return BLOCKS.find(name)
