"""Square slices of a layer's weight, for kinds whose factors are shared by layers of different sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import PlanError
from ..ports.attachment import Layer


class Slices(NamedTuple):
    """Squares that a weight is cut into, in each position of a convolution's kernel.

    Attributes:
        below, beside: Number of slices below each other, and beside each other; one of them is 1.
        positions: Number of positions of the kernel; 1 for a linear layer.
        width: Rows and columns of a slice.
    """

    below: int
    beside: int
    positions: int
    width: int

    @property
    def total(self) -> int:
        """Number of slices."""
        return self.below * self.beside * self.positions


def slices_of(layer: Layer, kind: str, rank: int) -> Slices:
    """Return the slices of a layer's weight, (outputs, inputs) in each position: as wide as the smaller side.

    Raises:
        PlanError: The weight cannot be cut into square slices, or they are narrower than the rank of a kind.
    """
    (rows, columns), shape = layer.matrix_shape, layer.shape(layer.main)
    positions = math.prod(shape[2:])
    inputs = columns // positions
    width, longer = sorted((rows, inputs))
    where, advice = f"a weight of shape {shape}", "exclude the layer with a '!' pattern"
    if width == 1 or longer % width:
        raise PlanError(
            f"{kind} adapter: {where}, {rows} outputs x {inputs} inputs, cannot be cut into square slices of 2 or "
            f"more: one side must be a multiple of the other; {advice}"
        )
    if rank > width:
        raise PlanError(
            f"{kind} adapter: rank {rank} is above {width}, the width of the slices of {where}; lower it or {advice}"
        )
    return Slices(rows // width, inputs // width, positions, width)
