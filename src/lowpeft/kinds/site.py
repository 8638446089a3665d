"""Where an adapter acts: its attachment to a module, and the parameters that a weight adapter changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import PlanError
from ..ports.layouts import Layout


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """Where on its module an adapter acts.

    Attributes:
        form: `output` of a module, `block` (a port of a block forward), `weight`, or `root` (the part that all sites of
            a kind share).
        layout: Layout of the features; None where a block forward tells it.
        source: Whether the adapter reads the module's output or its first argument; it always adds to the output.
        item: The element of a tuple output that holds the features.
        square: Tokens lie on a square grid where the module is not told the size.
        block: Name of the block forward.
        port: Name of its port.
        tensors: Names of the parameters that a weight adapter changes.
        views: How many views of a scene the adapter mixes.
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
        """Refuse values that mean nothing, which a damaged file could hold.

        Raises:
            PlanError: Naming the first.
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
    """The parameters of one layer that one weight adapter changes: their shapes, and which axis counts outputs.

    Attributes:
        shapes: Name and shape of each parameter, in the order of the adapter's group.
        transposed: The weight is that of a transposed convolution, (in, out/groups, …).
        groups: Groups of a convolution.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, which a damaged file could hold.

        Raises:
            PlanError: Saying so.
        """
        shapes = all(
            isinstance(name, str) and all(type(n) is int and n > 0 for n in shape) for name, shape in self.shapes
        )
        if not self.shapes or not shapes or type(self.groups) is not int or self.groups < 1:
            raise PlanError(f"{self} is not the description of a layer")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(name for name, _ in self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter.

        Raises:
            PlanError: The layer has no parameter of that name.
        """
        for known, shape in self.shapes:
            if known == name:
                return shape
        raise PlanError(f"the layer has no {name}; it has {', '.join(self.names)}")

    @property
    def main(self) -> str:
        """The first parameter: the weight, where there is one."""
        return self.shapes[0][0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the main parameter as `rows` gives it."""
        shape = self.shape(self.main)
        total = math.prod(shape)
        outputs = shape[1] * self.groups if self.transposed and len(shape) > 1 else shape[0]
        return outputs, total // outputs

    def rows(self, tensor: Tensor) -> Tensor:
        """A parameter as a matrix (out, columns): one row for each output channel.

        Example: Conv2d(6, 8, 3, groups=2) has a weight (8, 3, 3, 3), rows (8, 27); ConvTranspose2d(6, 8, 3, groups=2)
        has a weight (6, 4, 3, 3), rows (8, 27) too. A bias (8,) has rows (8, 1).
        """
        if not self.transposed or tensor.dim() < 2:
            return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
        inputs, outputs, *kernel = tensor.shape
        split = tensor.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        return split.transpose(1, 2).flatten(0, 1).flatten(1)

    def from_rows(self, rows: Tensor, name: str) -> Tensor:
        """The inverse of `rows` for the parameter of that name."""
        shape = self.shape(name)
        if not self.transposed or len(shape) < 2:
            return rows.reshape(shape)
        inputs, outputs, *kernel = shape
        split = rows.reshape(self.groups, outputs, inputs // self.groups, *kernel)
        return split.transpose(1, 2).reshape(shape)
