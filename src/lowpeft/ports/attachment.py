"""Spots where adapters can act: the attachment to a module, and the layer that a weight adapter changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import PlanError
from .layouts import Layout
from .patterns import Candidate


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """Position on its module where an adapter acts.

    Attributes:
        form: `output` (output of the module), `block` (port of a block forward), `weight` (parameters), or `root` (part
            that all sites of a kind share).
        layout: Layout of the features with form `output`; None otherwise.
        source: Tensor that the adapter reads: the module's `output` or its first tensor argument (`input`). The delta
            is always added to the output.
        item: Index of the features in a tuple or list output; None if the output is the features.
        square: True if tokens whose size the module is not told lie on a square grid.
        block: Name of the block forward.
        port: Name of the block forward's port.
        tensors: Names of the parameters that a weight adapter changes.
        views: Number of views of a scene that the adapter mixes.
    """

    form: Literal["output", "block", "weight", "root"]
    layout: Layout | None = None
    source: Literal["output", "input"] = "output"
    item: int | None = None
    square: bool = False
    block: str | None = None
    port: str | None = None
    tensors: tuple[str, ...] = ()
    views: int = 1

    def __post_init__(self) -> None:
        """Raise if a value is invalid, e.g. one from a damaged file.

        Raises:
            PlanError: A value is invalid; the message names the first.
        """
        on_block = self.form == "block"
        tests = {
            "form": self.form in ("output", "block", "weight", "root"),
            "layout": isinstance(self.layout, Layout) if self.form == "output" else self.layout is None,
            "source": self.source in ("output", "input"),
            "item": self.item is None or (type(self.item) is int and self.item >= 0),
            "square": isinstance(self.square, bool),
            "block": isinstance(self.block, str) if on_block else self.block is None,
            "port": isinstance(self.port, str) if on_block else self.port is None,
            "tensors": bool(self.tensors) == (self.form == "weight") and all(isinstance(t, str) for t in self.tensors),
            "views": type(self.views) is int and self.views >= 1,
        }
        for name, right in tests.items():
            if not right:
                raise PlanError(f"an attachment of form {self.form!r} cannot have {name}={getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Shapes of the parameters of one layer that one weight adapter changes, and their output axis.

    Attributes:
        shapes: Name and shape of each parameter, in the order of the adapter's group.
        transposed: True if the weight is that of a transposed convolution, (in, out/groups, …).
        groups: Number of groups of a convolution; 1 for other layers.
        table: True if the parameter is a table that is looked up or added: its last axis gives the columns.
        parts: Names of the equal parts of the rows of a projection, in order: ("q", "k", "v") of a fused one, ("q",).
        chosen: Parts that `rows` and `from_rows` are limited to; empty for all rows.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    groups: int = 1
    table: bool = False
    parts: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise if a value is invalid, e.g. one from a damaged file.

        Raises:
            PlanError: A shape or the number of groups is invalid.
        """
        shapes = all(
            isinstance(name, str) and all(type(n) is int and n > 0 for n in shape) for name, shape in self.shapes
        )
        if not self.shapes or not shapes or type(self.groups) is not int or self.groups < 1:
            raise PlanError(f"invalid shapes or groups: {self}")
        flags = isinstance(self.transposed, bool) and isinstance(self.table, bool)
        if not flags or not all(isinstance(p, str) for p in self.parts) or not set(self.chosen) <= set(self.parts):
            raise PlanError(f"invalid parts or layout: {self}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(name for name, _ in self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter.

        Raises:
            PlanError: The layer has no parameter with this name.
        """
        for known, shape in self.shapes:
            if known == name:
                return shape
        raise PlanError(f"the layer has no {name}; it has {', '.join(self.names)}")

    @property
    def main(self) -> str:
        """Name of the first parameter: the weight, if the group has one."""
        return self.shapes[0][0]

    def select(self, parts: str | None) -> Layer:
        """Return the layer limited to those of some parts that it has, e.g. "q,v"; None for all rows.

        Raises:
            PlanError: The layer has none of the parts.
        """
        if parts is None:
            return self
        wanted = {p.strip() for p in parts.split(",")}
        chosen = tuple(p for p in self.parts if p in wanted)
        if not chosen:
            known = (
                f"it has {', '.join(self.parts)}" if self.parts else "it is no projection to queries, keys or values"
            )
            raise PlanError(f"the layer has no rows {parts}: {known}")
        return replace(self, chosen=() if chosen == self.parts else chosen)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the main parameter as a matrix (see `rows`)."""
        shape = self.shape(self.main)
        total = math.prod(shape)
        if self.table:
            return total // shape[-1], shape[-1]
        outputs = shape[1] * self.groups if self.transposed and len(shape) > 1 else shape[0]
        chosen = outputs // len(self.parts) * len(self.chosen) if self.chosen else outputs
        return chosen, total // outputs

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a parameter as a matrix (out, columns): one row per output channel.

        Example: Conv2d(6, 8, 3, groups=2) has a weight (8, 3, 3, 3) and rows (8, 27). ConvTranspose2d(6, 8, 3,
        groups=2) has a weight (6, 4, 3, 3) and also rows (8, 27). A bias (8,) has rows (8, 1), a table (1, 64, 32) has
        rows (64, 32). With `chosen`, the rows are those of the chosen parts.
        """
        rows = self._all_rows(tensor)
        if not self.chosen:
            return rows
        return torch.cat([p for name, p in zip(self.parts, self._split(rows), strict=True) if name in self.chosen])

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.chunk(rows, len(self.parts))

    def _all_rows(self, tensor: Tensor) -> Tensor:
        if self.table:
            return tensor.reshape(-1, tensor.shape[-1])
        if not self.transposed or tensor.dim() < 2:
            return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
        inputs, outputs, *kernel = tensor.shape
        split = tensor.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        return split.transpose(1, 2).flatten(0, 1).flatten(1)

    def from_rows(self, rows: Tensor, name: str) -> Tensor:
        """Return the parameter with this name from its matrix: the inverse of `rows`, zero in parts not chosen."""
        shape = self.shape(name)
        if self.chosen:
            given = iter(torch.chunk(rows, len(self.chosen)))
            zeros = rows.new_zeros(len(rows) // len(self.chosen), rows.shape[1])
            rows = torch.cat([next(given) if part in self.chosen else zeros for part in self.parts])
        if not self.transposed or len(shape) < 2:
            return rows.reshape(shape)
        inputs, outputs, *kernel = shape
        split = rows.reshape(self.groups, outputs, inputs // self.groups, *kernel)
        return split.transpose(1, 2).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Spot(Candidate):
    """Candidate for an adapter: a module of one network (`path`), and how an adapter would act on it.

    Attributes:
        attachment: Position on the module where the adapter would act, with one view.
        shape: (channels,) of the features, shape of the (first) weight, or shape that a shared part is built for.
        layer: Parameters that a weight adapter would change; None for features and shared parts.
    """

    attachment: Attachment
    shape: tuple[int, ...]
    layer: Layer | None = None

    @property
    def tensors(self) -> list[str]:
        """Paths of the parameters that a weight adapter would change."""
        return [f"{self.path}.{name}" if self.path else name for name in self.attachment.tensors]
