"""Cutting of images: full-width strips to bound memory, and crops for networks of fixed input size.

Stereo attention spans whole rows, so strips have the full width and both views are cut at the same rows. A strip goes
through the network with `context_px` extra rows above and below, whose results are discarded. Its first input row is a
multiple of `align_px`, so that attention windows have the same boundaries as in the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import checks
from ...errors import DataError

CHUNK = 8
"""Number of crops of each view that go through a network of fixed input size at once."""

WINDOW_ROWS = 48
"""Common multiple of the window heights in use (4, 6, 8, 12, 16, 24, 48). Networks that pad their own input, e.g.
SwinIR and HAT, do not state their window height."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Settings for cutting images, in LR px; the default leaves them whole.

    Attributes:
        strip_px: Number of rows of a strip; None for no limit.
        memory_mb: Memory limit in MB (10⁶ bytes) above what the process, or the GPU, already uses; on the CPU it
            includes the results. The number of rows (or crops) at once is chosen to fit.
        context_px: Number of extra input rows above and below a strip. `reach_px` returns the number that makes strips
            exact.
        align_px: Strips begin at multiples of this; strips and context are rounded up to it. None for the smallest
            multiple of the network's `size_multiple` that suits windows of 48, 24, 16, 12, 8, 6 or 4 rows.
        chunk: Number of crops of each view that go through a network of fixed input size at once; `memory_mb`
            overrides it.
    """

    strip_px: int | None = None
    memory_mb: float | None = None
    context_px: int = 48
    align_px: int | None = None
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            DataError: A setting is out of range, or two contradict each other; all problems are listed.
        """
        problems = [] if self.memory_mb is None else checks.number("memory_mb", self.memory_mb, least=0)
        for name, least in {"strip_px": 1, "context_px": 0, "align_px": 1, "chunk": 1}.items():
            value = getattr(self, name)
            problems += [] if value is None else checks.whole(name, value, least=least)
        if self.strip_px is not None and self.memory_mb is not None:
            problems.append("strip_px and memory_mb both set the height of strips: give one of them")
        if problems:
            raise DataError("; ".join(problems))

    def aligned_to(self, size_multiple: int) -> int:
        """Return `align_px`, or by default the least common multiple of `size_multiple` and `WINDOW_ROWS`.

        Raises:
            DataError: `align_px` is not a multiple of `size_multiple`.
        """
        align = self.align_px or math.lcm(WINDOW_ROWS, size_multiple)
        if align % size_multiple:
            raise DataError(f"align_px={align} is not a multiple of the {size_multiple} px that sides must be")
        return align


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Row ranges: [first, last) goes in, the result of [keep_first, keep_last) is kept, in LR px."""

    first: int
    last: int
    keep_first: int
    keep_last: int


def strips(height: int, strip_px: int, context_px: int, align_px: int, at_least_px: int = 1) -> list[Strip]:
    """Cut the rows of an image into strips of at most `strip_px` rows and about equal height.

    Args:
        height: Height of the image, in LR px like the others.
        strip_px: Maximum number of rows of a strip, rounded up to `align_px`.
        context_px: Extra input rows on either side of a strip, rounded up to `align_px`.
        align_px: Multiple at which each strip, and its input rows, begin.
        at_least_px: Minimum number of input rows of a strip (or the whole image); reached with more context.
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
    """Return where crops begin along one side of an image: half a crop apart, the last one at the border.

    E.g. length 100, side 48: crops begin at 0, 24, 48 and 52.
    """
    return [*range(0, length - side, max(1, side // 2)), length - side]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Position of a square crop: index of the image in the batch, and top left corner in LR px."""

    image: int
    top: int
    left: int


class Crops:
    """Overlapping crops of a batch for a network of fixed input size, with the weights to blend their results.

    Along each side of n pixels a crop has the weights sin²(π(i+½)/n), divided by their sum over all crops.
    """

    def __init__(self, images: int, height: int, width: int, *, side_px: int, scale: int) -> None:
        self.side_px, self.scale = side_px, scale
        self._tops, self._lefts = crop_starts(height, side_px), crop_starts(width, side_px)
        self._rows, self._columns = self._shares(height, self._tops), self._shares(width, self._lefts)
        self.all = [Crop(image=n, top=y, left=x) for n in range(images) for y in self._tops for x in self._lefts]

    def chunks(self, size: int) -> Iterator[list[Crop]]:
        """Yield the crops, at most `size` at a time."""
        for first in range(0, len(self.all), size):
            yield self.all[first : first + size]

    def cut(self, view: Tensor, crops: list[Crop]) -> Tensor:
        """Return these crops of a view as one batch (len(crops),C,side,side)."""
        side = self.side_px
        return torch.stack([view[c.image, :, c.top : c.top + side, c.left : c.left + side] for c in crops])

    def weight(self, crop: Crop, like: Tensor) -> Tensor:
        """Return the weight of each pixel of the crop's result, (s*side,s*side)."""
        rows, columns = self._rows[crop.top], self._columns[crop.left]
        return (rows[:, None] * columns).to(like.device, like.dtype)

    def _shares(self, length: int, starts: list[int]) -> dict[int, Tensor]:
        count = self.side_px * self.scale
        ramp = torch.sin(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count) ** 2
        total = torch.zeros(length * self.scale, dtype=torch.float64)
        for start in starts:
            total[start * self.scale :][:count] += ramp
        return {start: ramp / total[start * self.scale :][:count] for start in starts}
