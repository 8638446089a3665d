"""Boxes: the parts of a batch of images that go through a network one after another.

A network that takes images of any size runs on full-width strips, because stereo attention spans whole rows. A strip
is read with `context_px` extra rows above and below, whose results are discarded. Its first input row is a multiple of
`align_px`, so that attention windows have the same boundaries as in the whole image. A network of fixed input size runs
on overlapping crops, whose results are blended. All views are cut at the same coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import DataError
from ...ports.facts import ImageFacts
from .memory import MemoryLimit, peak_bytes
from .network import Views, run
from .tiling import Tiling


class Box(NamedTuple):
    """Part of a batch of images, in LR px.

    Attributes:
        rows: Rows that go through the network.
        kept: Rows whose results are kept; the others are context.
        columns: Columns that go through the network.
        images: Images of the batch.
        weights: Weights of the result's rows and of its columns (HR px), to blend boxes that overlap; None if the
            results of boxes do not overlap.
    """

    rows: slice
    kept: slice
    columns: slice = slice(0, None)
    images: slice = slice(0, None)
    weights: tuple[Tensor, Tensor] | None = None


def cut(
    module: nn.Module, views: Views, facts: ImageFacts, tiling: Tiling, limit: MemoryLimit | None
) -> list[list[Box]]:
    """Cut a batch of images into strips, or into crops for a network of fixed input size.

    Args:
        module: Network.
        views: One (N,C,H,W) tensor per view, of a size that the network takes.
        facts: Facts of the network.
        tiling: Settings of the user.
        limit: Memory limit; None for none.

    Returns:
        Groups of boxes; those of one group go through the network as one batch.

    Raises:
        DataError: The memory limit is too small for the smallest part, or the network must not be cut.
    """

    def peak(boxes: list[Box]) -> int:
        return peak_bytes(lambda: run_boxes(module, views, facts, boxes))

    if facts.fixed_px is None:
        return [[strip] for strip in _strips(views[0].shape[-2], facts, tiling, limit, peak)]
    every = crops(views[0].shape, side_px=facts.fixed_px, scale=facts.scale)
    count = tiling.chunk
    if limit is not None:
        count = limit.most_units(lambda n: peak(every[:n]), whole=len(every), smallest="one crop")
    return [every[first : first + count] for first in range(0, len(every), count)]


def run_boxes(module: nn.Module, views: Views, facts: ImageFacts, boxes: list[Box]) -> Views:
    """Run a network on boxes as one batch; return one tensor per view, the boxes' images in order."""
    parts = ([view[b.images, :, b.rows, b.columns] for b in boxes] for view in views)
    return run(module, tuple(torch.cat(p) if len(p) > 1 else p[0] for p in parts), facts)


def kept_results(results: Views, boxes: list[Box], scale: int) -> Iterator[tuple[Box, Views]]:
    """Split the results of `run_boxes` by boxes, without the context and weighted."""
    for box, *parts in zip(boxes, *(r.chunk(len(boxes)) for r in results), strict=True):
        first, last = ((row - box.rows.start) * scale for row in (box.kept.start, box.kept.stop))
        kept = tuple(part[..., first:last, :] for part in parts)
        if box.weights is not None:
            rows, columns = box.weights
            weight = (rows[:, None] * columns).to(kept[0].device, kept[0].dtype)
            kept = tuple(part * weight for part in kept)
        yield box, kept


def _strips(
    height: int, facts: ImageFacts, tiling: Tiling, limit: MemoryLimit | None, peak: Callable[[list[Box]], int]
) -> list[Box]:
    """Choose the number of rows of a strip; if the network must not be cut, the only strip is the whole image."""
    may_cut = facts.strips and not facts.square
    step = tiling.aligned_to(facts.size_multiple) if may_cut else height
    context = round_up(tiling.context_px, step) if may_cut else 0

    def peak_of_rows(count: int) -> int:
        rows = slice(0, facts.sides_for(count, 1)[0])
        return peak([Box(rows=rows, kept=rows)])

    rows = tiling.strip_px or height
    if limit is not None:
        smallest = f"a strip of {step} rows with {context} context rows above and below"
        if not may_cut:
            smallest = f"the whole image ({_why_whole(facts)})"
        rows = limit.most_units(peak_of_rows, whole=height, step=step, around=2 * context, smallest=smallest)
    elif rows < height and not may_cut:
        raise DataError(f"strip_px={rows} would cut an image of {height} rows, but {_why_whole(facts)}")
    return strips(height, rows, context, step, facts.min_px)


def _why_whole(facts: ImageFacts) -> str:
    if facts.square:
        return f"{facts.architecture} takes square images only and cannot be run in strips"
    told = [note.removeprefix("strips: ") for note in facts.notes if note.startswith("strips: ")]
    why = told[0] if told else f"{facts.architecture} needs the whole image"
    allow = "lowpeft.describe(model, strips=True) (on the command line --network-fact strips=true)"
    return f"{why}, and strips would change the result; to allow them, pass on {allow}"


def strips(height: int, strip_px: int, context_px: int, align_px: int, at_least_px: int = 1) -> list[Box]:
    """Cut the rows of an image into strips of at most `strip_px` rows and about equal height.

    E.g. height 100, strips of 40, context 10, alignment 10: rows 0..50, 30..90 and 70..100 go through the network, and
    the results of rows 0..40, 40..80 and 80..100 are kept.

    Args:
        height: Height of the image, in LR px like the others.
        strip_px: Maximum number of rows of a strip, rounded up to `align_px`.
        context_px: Extra input rows on either side of a strip, rounded up to `align_px`.
        align_px: Multiple at which each strip, and its input rows, begin.
        at_least_px: Minimum number of input rows of a strip (or the whole image); reached with more context.
    """
    context = round_up(context_px, align_px)
    count = -(-height // round_up(strip_px, align_px))
    step = round_up(-(-height // count), align_px)
    boxes = []
    for start in range(0, height, step):
        last = min(height, max(start + step + context, round_up(at_least_px, align_px)))
        first = max(0, min(start - context, (last - at_least_px) // align_px * align_px))
        boxes.append(Box(rows=slice(first, last), kept=slice(start, min(height, start + step))))
    return boxes


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than the value, e.g. 100 for 97 and multiples of 10."""
    return value + -value % multiple


def crops(shape: torch.Size, *, side_px: int, scale: int) -> list[Box]:
    """Cut a batch (N,C,H,W) into square crops of `side_px`, half a crop apart, the last ones at the borders.

    Along each side of n pixels a crop has the weights sin²(π(i+½)/n), divided by their sum over all crops.
    """
    images, _, height, width = shape
    rows, columns = (_crop_weights(length, side_px, scale) for length in (height, width))
    return [
        Box(
            rows=slice(top, top + side_px),
            kept=slice(top, top + side_px),
            columns=slice(left, left + side_px),
            images=slice(image, image + 1),
            weights=(rows[top], columns[left]),
        )
        for image in range(images)
        for top in rows
        for left in columns
    ]


def crop_starts(length: int, side: int) -> list[int]:
    """Return where crops begin along one side of an image: half a crop apart, the last one at the border.

    E.g. length 100, side 48: crops begin at 0, 24, 48 and 52.
    """
    return [*range(0, length - side, max(1, side // 2)), length - side]


def _crop_weights(length: int, side: int, scale: int) -> dict[int, Tensor]:
    """Return the weights along one side of the crops' results by the crops' starts."""
    starts, count = crop_starts(length, side), side * scale
    ramp = torch.sin(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count) ** 2
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start in starts:
        total[start * scale :][:count] += ramp
    return {start: ramp / total[start * scale :][:count] for start in starts}
