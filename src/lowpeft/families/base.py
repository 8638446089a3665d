"""Families, their places and block forwards, and the registries of both. Nothing here runs a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from ..errors import PlanError
from ..frozen.linear import Affine
from ..ports.attachment import Attachment
from ..ports.layouts import ExtraTokens, Layout, Size
from ..registry import Registry


class Ports(Protocol):
    """Interface through which a block forward calls the adapters of its block."""

    def wants(self, port: str) -> bool:
        """Return whether the port has an adapter, so that a block forward can skip computing its features."""

    def is_adapted(self, module: nn.Module) -> bool:
        """Return whether a module inside the block, or one below it, has adapters."""

    def must_call(self, module: nn.Module) -> bool:
        """Return whether a module, or one below it, does more when it is called than torch's layer or its own class.

        That is: hooks, adapters other than of parameters, a forward on the instance, or a linear layer's own forward.
        A fused forward, which reads parameters, must not be used then.
        """

    def layer(self, module: nn.Module) -> Affine:
        """Return the weight and bias of a linear layer inside the block, as its adapters change them."""

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        """Return the sum of the deltas of the adapters at the port, in the shape of the features; None for nothing.

        Args:
            port: Name of the port.
            values: Features that the adapters read.
            layout: Layout of `values`.
            size: Height and width in positions; None if unknown.
        """

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Sequence[ExtraTokens]:
        """Return the extra keys and values of each adapter at the port, for attention that reads these features.

        Args:
            port: Name of the port.
            values: Features that attention reads.
            layout: Layout of `values`.
            size: Height and width in positions; None if unknown.
        """


@dataclass(frozen=True, kw_only=True)
class BlockForward:
    """Replacement for a block's forward, written by lowpeft, with named ports where adapters act.

    Ports of the bundled blocks (other blocks may use other names):

    * `attention`: adapters read the output of the whole attention branch, and add to it before the residual add;
    * `mlp`: the same for the MLP branch;
    * `parallel_attention`, `parallel`: adapters read the input of the attention or MLP branch after its norm (if the
      block has a norm there), and add to the branch's output;
    * `parallel_attention_raw`, `parallel_raw`: the same, but they read the input before the norm;
    * `tokens`: adapters give attention extra keys and values (`families/tokens.py`); only for a `kinds.TokenAdapter`.

    Attributes:
        name: Unique name, `family.block`.
        forward: Function `forward(block, ports, *args, **kwargs)` that computes the same as the block's own forward and
            adds what `ports.delta` returns. None means the block's own forward, for blocks without ports.
        ports: Names of the ports that `forward` serves.
        example: Function that returns the arguments of one call of a given block. Planning uses it to compare the two
            forwards, and rejects a modified copy of the block's code.
        exact: True if the result without adapters is bit-equal to that of the block's own forward, which then runs
            while no adapter is on. False if it is close (within 1e-5); `forward` then always runs once installed.
        variant_of: Name of another block forward, with the same ports, from which this one differs on purpose while an
            adapter in the block is on. The block itself is compared with that one.
        fused: Function like `forward` that `lowpeft.optimize` puts in its place: close to it (within 1e-5), faster, and
            with less memory for backward. It returns NotImplemented where it cannot stand in (see `families.fused`).
    """

    name: str
    forward: Callable[..., Any] | None
    ports: frozenset[str]
    example: Callable[[Any], tuple[Any, ...]]
    exact: bool = True
    variant_of: str | None = None
    fused: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Spot that a family names in every stage and block of its networks: a port of a block, or a module's output.

    Attributes:
        name: Name of the place. Bundled kinds use `attention`, `mlp`, `parallel`, … (see `BlockForward`), and `stage`,
            the output of a stage before the stage's shortcut.
        path: Dotted path of the module. `{stage}` and `{block}` stand for the stage's and the block's number, `{part}`
            for a component that is neither. If one of them occurs twice (`body.{block}.blocks.{block}`), or several
            places with this name share their stages, stages and blocks are numbered consecutively, in the order of the
            places.
        channels: Path, from that module (after a `^`: from its parent module), of a parameter whose first dimension is
            the number of channels.
        block: Name of the block forward; None for a place at the module's output.
        port: Name of the block forward's port; None for a place at the module's output.
        layout: Layout of the features at a module's output; None for a port.
        source: Tensor that the adapter reads: the module's `output` or its first tensor argument (`input`). The delta
            is always added to the output.
        item: Index of the features in the module's output, if that is a tuple or list.
        square: True if the tokens lie on a square grid whose size the module is not told.
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

    @property
    def attachment(self) -> Attachment:
        """Attachment of an adapter at this place."""
        if self.block is not None:
            return Attachment(form="block", block=self.block, port=self.port)
        return Attachment(form="output", layout=self.layout, source=self.source, item=self.item, square=self.square)


def added(out: Tensor, ports: Ports, layout: Layout, size: Size | None, features: Mapping[str, Tensor]) -> Tensor:
    """Return the residual stream plus the deltas; they are added last, so that the base's result stays bit-equal.

    Args:
        out: Residual stream after the block's own branch output was added.
        ports: Adapters of the block.
        layout: Layout of `out` and of all features.
        size: Height and width in positions; None if unknown.
        features: Features that the adapters read, by port.
    """
    for port, values in features.items():
        delta = ports.delta(port, values, layout, size)
        if delta is not None:
            out = out + delta.to(out.dtype)  # under autocast a float32 sum would turn all that follows into float32
    return out


def block_places(
    path: str, channels: str, block: BlockForward, *, names: Mapping[str, str] | None = None
) -> tuple[Place, ...]:
    """Return one place for each port of a block, named like the port.

    Args:
        path: Path of the block, as in `Place`.
        channels: Path of the parameter that gives the channels, as in `Place`.
        block: Block forward of the block.
        names: Other paths for `channels`, by port, for ports that differ.
    """
    special = names or {}
    return tuple(
        Place(name=port, path=path, channels=special.get(port, channels), block=block.name, port=port)
        for port in sorted(block.ports)
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    """Description of one family of backbones.

    Attributes:
        name: Name in lower case.
        title: Display name, spelled as in the literature.
        signature: Alternatives, one of which must fit. Each is a tuple of patterns over module and parameter paths; all
            of them must match. After a leading `!` a pattern must match nothing.
        places: Places of the family. Their order numbers the stages if several paths have the same place name.
        output: Attribute of the network's output that is the image; None if the output is a tensor.
        blocks: Block forwards that the family adds.
        fused: Path, with `{stage}` and `{block}` as in `Place`, and name of the block forward of every block that has a
            fused forward. Blocks without places may be among them.
        facts: Function from a network of the family to values of `ports.facts.Facts`, by name. Missing facts are
            measured by running the network.
        writes_itself: True if the family's networks may change their own weights when they run. Planning then checks
            which weights they change.
        without: Reason why the family lacks a place, by its name: a clause that errors give.
        inside: Path of the module that the signature describes, in a complete network of the family.
        source: Source of this description.
    """

    name: str
    title: str
    signature: tuple[tuple[str, ...], ...]
    places: tuple[Place, ...]
    output: str | None = None
    blocks: tuple[BlockForward, ...] = ()
    fused: tuple[tuple[str, str], ...] = ()
    facts: Callable[[Any], Mapping[str, Any]] | None = None
    writes_itself: bool = False
    without: Mapping[str, str] = field(default_factory=dict, hash=False)
    inside: str = ""
    source: str = ""


TOKENS = "tokens"
"""Name of the port for extra keys and values."""

FAMILIES: Registry[Family] = Registry("family", error=PlanError)
BLOCKS: Registry[BlockForward] = Registry("block forward", error=PlanError)


def register_family(family: Family) -> Family:
    """Register a family of backbones and its block forwards.

    Raises:
        PlanError: A name is taken, a place names an unknown block forward or port, or a place has both or neither of a
            port and a layout. Nothing is registered then.
    """
    blocks = {**BLOCKS, **{b.name: b for b in family.blocks}}
    problems = [f"the family {family.name!r} is registered already"] if family.name in FAMILIES else []
    problems += [f"the block forward {b.name!r} is registered already" for b in family.blocks if b.name in BLOCKS]
    for place in family.places:
        if (place.block is None) == (place.layout is None) or (place.block is None) != (place.port is None):
            problems.append(f"the place {place.path!r} must have either a block and a port, or a layout")
        elif place.block is not None and (place.block not in blocks or place.port not in blocks[place.block].ports):
            problems.append(f"the place {place.path!r} names the unknown port {place.block}:{place.port}")
        if place.name in family.without:
            problems.append(f"the family has the place {place.name!r}, and a reason why it lacks it")
    if problems:
        raise PlanError("cannot register this family:", problems=problems)
    BLOCKS.register(*family.blocks)
    FAMILIES.register(family)
    return family


def unregister_family(name: str) -> Family:
    """Remove a family of backbones and its block forwards from the registries; adapted models keep running.

    Raises:
        PlanError: The family is not registered.
    """
    family = FAMILIES.unregister(name)
    for block in family.blocks:
        BLOCKS.unregister(block.name)
    return family


def register_block_forward(block: BlockForward) -> BlockForward:
    """Register a block forward that does not come with a family.

    Raises:
        PlanError: The name is taken, or `variant_of` is unknown or has other ports.
    """
    if block.variant_of is not None and get_block(block.variant_of).ports != block.ports:
        raise PlanError(f"the block forward {block.name!r} must have the ports of {block.variant_of!r}")
    BLOCKS.register(block)
    return block


def families() -> tuple[Family, ...]:
    """Return all registered families, in the order of registration."""
    return tuple(FAMILIES.values())


def get_block(name: str) -> BlockForward:
    """Return the block forward with this name.

    Raises:
        PlanError: The block forward is not registered.
    """
    return BLOCKS.find(name)
