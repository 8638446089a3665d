"""Misalignment of a data set's pairs, on a sample of its scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import DataError, and_more
from ..images import eight_bit
from .examples import clean_crop_of, load_example
from .matching import matched_points
from .model import USUAL, Example, Loading, Rectangle, Scene, spread
from .pairs import PairCheck, check_points

_MOST_PIXELS = 250_000  # of a view: half a second on one core


@dataclass(frozen=True)
class PairReport:
    """Result of `check_pairs`.

    Attributes:
        scenes: Misalignment by scene name. `scale` of a `PairCheck` is 1 if its LR views were measured, and the SR
            factor if its HR views were, because the LR views have too few points.
        unread: Names of the scenes that could not be read.
        searched: Smallest and largest disparity in LR px that an adapter searches; None if it does not matter.
    """

    scenes: Mapping[str, PairCheck]
    unread: tuple[str, ...] = ()
    searched: tuple[int, int] | None = None

    @property
    def warning(self) -> str:
        """Return lines that name the scenes beyond the bounds, with figures, and those not measured; empty if none."""
        faults = [f"  {name}: {'; '.join(check.faults)}" for name, check in self.scenes.items() if check.faults]
        unmeasured = [name for name, check in self.scenes.items() if not check.points]
        lines = [self.beyond] if self.beyond else []
        if faults:
            count = len(self.scenes) + len(self.unread)
            lines += [f"{len(faults)} of {count} checked pairs are beyond what row-wise attention bears:", *faults]
        if unmeasured:
            lines.append(f"too few matching points to check the alignment of {and_more(unmeasured)}")
        if self.unread:
            lines.append(f"not read, so their alignment was not checked: {and_more(self.unread)}")
        return "\n".join(lines)

    @property
    def beyond(self) -> str:
        """Return a line about disparities outside of those that are searched; empty if there are none."""
        if self.searched is None:
            return ""
        least, most = self.searched
        # A negative median is a fault of its own (swapped views), which no range mends.
        ranges = [c.disparity_lr_px for c in self.scenes.values() if c.points and c.disparity_px[1] >= 0]
        beyond = sum(low < least - 1 or high > most + 1 for low, _, high in ranges)
        if not beyond:
            return ""
        low, high = min(r[0] for r in ranges), max(r[2] for r in ranges)
        wanted = [math.floor(min(low, 0)), math.ceil(max(high, 2))]
        count = f"{beyond} of {len(ranges)} checked pairs have" if len(ranges) > 1 else "the pair has"
        return (
            f"{count} disparities that a parallax adapter with disparities={list(self.searched)} does not search: they "
            f'lie from {low:.0f} to {high:.0f} LR px; train with --set "disparities={wanted}"'
        )


def check_pairs(
    scenes: Sequence[Scene],
    scale: int,
    *,
    loading: Loading = USUAL,
    clean_crops: Mapping[str, Rectangle] | None = None,
    searched: tuple[int, int] | None = None,
) -> PairReport:
    """Measure the misalignment of up to `LOOKED_AT` evenly spaced pairs, in their LR views.

    Scenes of one view are left out. A pair that cannot be read or has too few matching points is no error. Takes up to
    half a second for each pair, and reading it.

    Args:
        scenes: Scenes of the data set.
        scale: SR factor.
        loading: As for `load_example`.
        clean_crops: Rectangle in HR px to keep of a scene, by scene name.
        searched: Smallest and largest disparity in LR px that an adapter searches, to be compared with the pairs'.

    Raises:
        LowpeftError: scikit-image is not installed.
    """
    pairs = [scene for scene in scenes if len(scene.hr) == 2]
    checks, unread = {}, []
    for scene in spread(pairs):
        try:
            crop = clean_crop_of(scene, clean_crops)
            example = load_example(scene, scale, clean_crop=crop, loading=loading)
        except DataError:
            unread.append(scene.name)
        else:
            checks[scene.name] = _check(example, scale)
    return PairReport(checks, tuple(unread), searched)


def _eight_bit_rgb(view: Tensor) -> Tensor:
    """Return a view as uint8 (3,H,W), which exposure is judged on; other numbers of channels by their first one."""
    view = eight_bit(view)
    return view if view.shape[0] == 3 else view[:1].expand(3, -1, -1)


def _check(example: Example, scale: int) -> PairCheck:
    """Measure the LR views, or the HR views if the LR views have too few points."""
    check = PairCheck(points=0, candidates=0)
    for views, px_per_lr_px in ((example.lr, 1), (example.hr, scale)):
        if not check.points:
            points = matched_points(*map(_eight_bit_rgb, views), most_pixels=_MOST_PIXELS)
            check = check_points(points, (views[0].shape[-2], views[0].shape[-1]), px_per_lr_px)
    return check
