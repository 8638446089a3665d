"""Cutting images: full-width strips against memory, and crops for networks of one input size.

Stereo attention looks along whole rows, so strips have the full width, and both views are cut at the same rows. A strip
goes through the network with `context_px` rows more on either side, whose results are thrown away. The first row of
what goes in is a multiple of `align_px`, so that windows lie in a strip as they lie in the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import DataError

CHUNK = 8
"""Crops (of each view) that go through a network of fixed input size at once."""

WINDOW_ROWS = 48
"""A multiple of the window heights in use (4, 6, 8, 12, 16, 24, 48). Networks that pad their input themselves, as
SwinIR and HAT do, do not state theirs."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A way to cut images, in LR px; by default they stay whole.

    Attributes:
        strip_px: Rows of a strip.
        memory_mb: Choose the strips' rows so that inference takes at most so many MB (10⁶ bytes) above what the
            process, or the GPU, holds already; on the CPU that includes the results.
        context_px: Rows above and below a strip that go through the network with it. `reach_px` tells how many make
            strips exact.
        align_px: Strips begin at multiples of this; None is the least that suits the network's `size_multiple` and
            windows of 48, 24, 16, 12, 8, 6 or 4 rows. Strips and context are rounded up to it.
        chunk: How many crops of each view go through a network of fixed input size at once, unless `memory_mb` says.
    """

    strip_px: int | None = None
    memory_mb: float | None = None
    context_px: int = 48
    align_px: int | None = None
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        least = {"strip_px": 1, "memory_mb": 0, "context_px": 0, "align_px": 1, "chunk": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise DataError(f"{name} must be at least {lowest}, not {value}")
        if self.strip_px is not None and self.memory_mb is not None:
            raise DataError("strip_px and memory_mb both say how large strips are: give one of them")

    def aligned_to(self, size_multiple: int) -> int:
        """Where strips may begin: `align_px`, or what suits a network whose sides are multiples of so many pixels.

        Raises:
            DataError: `align_px` is no such multiple.
        """
        align = self.align_px or math.lcm(WINDOW_ROWS, size_multiple)
        if align % size_multiple:
            raise DataError(f"align_px={align} is not a multiple of the {size_multiple} px that sides must be")
        return align


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Rows of an image: those that go in, and those whose results are kept."""

    first: int
    last: int
    keep_first: int
    keep_last: int


def strips(height: int, strip_px: int, context_px: int, align_px: int, at_least_px: int = 1) -> list[Strip]:
    """Cut so many rows into strips of at most `strip_px`, of about the same height.

    Args:
        height: Of the image.
        strip_px: Rounded up to `align_px`.
        context_px: Likewise.
        align_px: Each strip, and what goes in with it, begins at a multiple of this.
        at_least_px: What goes in has so many rows, or all; more context is taken where it would have less.
    """
    context = -(-context_px // align_px) * align_px
    units = -(-height // align_px)
    count = -(-units // -(-strip_px // align_px))
    step = -(-units // count) * align_px
    found = []
    for start in range(0, height, step):
        last = min(height, max(start + step + context, -(-at_least_px // align_px) * align_px))
        first = max(0, min(start - context, (last - at_least_px) // align_px * align_px))
        found.append(Strip(first=first, last=last, keep_first=start, keep_last=min(height, start + step)))
    return found


def crop_starts(length: int, side: int) -> list[int]:
    """Where the crops of that side begin along an image's side: half a crop apart, and the last at the border."""
    return [*range(0, length - side, max(1, side // 2)), length - side]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One square of one image of the batch."""

    image: int
    top: int
    left: int


class Crops:
    """The overlapping crops of a batch for a network of fixed input size, and what each counts where they overlap.

    Along each side of n pixels a crop has the weights sin²(π(i+½)/n); they are divided by their sum over all crops.
    """

    def __init__(self, images: int, height: int, width: int, *, side_px: int, scale: int) -> None:
        self.side_px, self.scale = side_px, scale
        self._tops, self._lefts = crop_starts(height, side_px), crop_starts(width, side_px)
        self._rows, self._columns = self._shares(height, self._tops), self._shares(width, self._lefts)
        self.all = [Crop(image=n, top=y, left=x) for n in range(images) for y in self._tops for x in self._lefts]

    def chunks(self, size: int) -> Iterator[list[Crop]]:
        """The crops, at most so many at a time."""
        for first in range(0, len(self.all), size):
            yield self.all[first : first + size]

    def cut(self, view: Tensor, crops: list[Crop]) -> Tensor:
        """Those crops of a view as one batch."""
        side = self.side_px
        return torch.stack([view[c.image, :, c.top : c.top + side, c.left : c.left + side] for c in crops])

    def weight(self, crop: Crop, like: Tensor) -> Tensor:
        """The weight of each pixel of the crop's result."""
        rows, columns = self._rows[crop.top], self._columns[crop.left]
        return (rows[:, None] * columns).to(like.device, like.dtype)

    def _shares(self, length: int, starts: list[int]) -> dict[int, Tensor]:
        count = self.side_px * self.scale
        ramp = torch.sin(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count) ** 2
        total = torch.zeros(length * self.scale, dtype=torch.float64)
        for start in starts:
            total[start * self.scale :][:count] += ramp
        return {start: ramp / total[start * self.scale :][:count] for start in starts}
