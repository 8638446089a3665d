"""Measured misalignment of a stereo pair: vertical offset, gain and disparities of points that both views show."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import tables
from ...checks import is_whole
from ...errors import DataError
from ...ports.layouts import Size
from ..images import eight_bit, read_image
from .matching import STRIPS, Points, matched_points
from .model import AnyPath, px

HURTS_LR_PX = 0.5
"""Vertical offset in LR px above which attention along a row mixes neighbouring rows."""

WRONG_LR_PX = 1.0
"""Vertical offset in LR px above which attention along a row sees other rows than the matching one."""

TOED_IN_LR_PX = 1.0
"""Distance in LR px to the right of its own column at which a match means toed-in cameras."""

SAME_PX = 0.05
"""Largest disparity in px of views that are the same picture."""

GAINS = (0.9, 1.1)
"""Range of gains between the cameras that counts as small."""

LEAST_POINTS = 8
"""Number of matched points below which a pair is not measured."""

LEAST_POINTS_FOR_CHANGE = 50
"""Number of matched points below which the change of the offset across the view is not measured."""

_ROUGHLY_ALIGNED = 0.05  # of the height: half of the matches must lie this close to the median offset
_DEVIATIONS, _KEPT_PX = 3.0, 0.5  # points are kept within so many robust deviations of the median, or within so many px
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_EXPOSED = (10.0, 245.0)  # 8-bit values at which neither black level nor saturation distorts a gain


@dataclass(frozen=True, kw_only=True)
class PairCheck:
    """Misalignment of a pair, measured on points that both views show. `print` gives a table and a verdict.

    All px are pixels of the measured views. Figures that were not measured are NaN.

    Attributes:
        points: Number of matched points that the figures are taken from; 0 if there were too few.
        candidates: Number of points that looked alike, before those on clearly different rows were dropped.
        offset_px: Median of (row in the left view - row in the right view); positive if the right view's content is
            higher up.
        spread_px: Robust standard deviation of these differences of rows.
        across_px: Change of the offset from the left to the right edge, as relative rotation makes it.
        down_px: Change of the offset from the top to the bottom edge, as different focal lengths make it.
        gain: Median ratio of intensities, right / left.
        channel_gains: The same for R, G and B.
        disparity_px: 5th, 50th and 95th percentile of (column in the left view - column in the right view).
        searched: Share of the view's rows that were searched; below 1 for large views.
        scale: LR px are px / `scale`; see `check_pair`.
    """

    points: int
    candidates: int
    offset_px: float = math.nan
    spread_px: float = math.nan
    across_px: float = math.nan
    down_px: float = math.nan
    gain: float = math.nan
    channel_gains: tuple[float, float, float] = (math.nan,) * 3
    disparity_px: tuple[float, float, float] = (math.nan,) * 3
    searched: float = 1.0
    scale: int = 1

    @property
    def largest_offset_px(self) -> float:
        """Largest vertical offset that the figures imply, at a corner; NaN if the pair was not measured."""
        changes = (abs(change) / 2 for change in (self.across_px, self.down_px) if not math.isnan(change))
        return abs(self.offset_px) + sum(changes)

    @property
    def disparity_lr_px(self) -> tuple[float, float, float]:
        """`disparity_px` in LR px."""
        low, middle, high = (disparity / self.scale for disparity in self.disparity_px)
        return low, middle, high

    @property
    def faults(self) -> tuple[str, ...]:
        """Return what is beyond the bounds, one phrase each; empty for good pairs and those not measured."""
        low, middle, high = self.disparity_lr_px
        offset, corner = abs(self.offset_px) / self.scale, self.largest_offset_px / self.scale
        found = []
        for bound, what in ((WRONG_LR_PX, "attention sees other rows"), (HURTS_LR_PX, "attention mixes rows")):
            if corner > bound:
                where = f"{offset:.2f} LR px" if offset > bound else f"up to {corner:.2f} LR px in a corner"
                found.append(f"vertical offset {where} (above {bound:g}: {what})")
                break
        if not math.isnan(self.gain) and not GAINS[0] <= self.gain <= GAINS[1]:
            found.append(f"gain {self.gain:.2f} between the cameras (outside {GAINS[0]:g} to {GAINS[1]:g})")
        if max(abs(low), abs(high)) * self.scale <= SAME_PX:
            found.append("all disparities are 0 px: both views are the same picture")
        elif middle < 0:
            found.append(f"median disparity {middle:.1f} LR px: left and right views are swapped, or strongly toed in")
        elif low < -TOED_IN_LR_PX:
            found.append(
                f"5 % of the disparities are below {low:.1f} LR px: the cameras are toed in, and these points lie "
                "outside a one-sided range"
            )
        return tuple(found)

    @property
    def verdict(self) -> str:
        """Return one sentence: what is beyond the bounds, that nothing is, or that there were too few points."""
        if not self.points:
            return (
                f"Not measured: {self.candidates} points look alike, and fewer than {LEAST_POINTS} agree on an offset. "
                "The views are flat, too small, far from aligned, or show different scenes."
            )
        if self.faults:
            return f"Beyond what row-wise attention bears: {'; '.join(self.faults)}."
        return "Within what row-wise attention bears."

    def __str__(self) -> str:
        """Return the figures as a table, and the verdict below."""
        if not self.points:
            return self.verdict
        low, middle, high = self.disparity_px
        channels = ", ".join(f"{name} {gain:.3f}" for name, gain in zip("RGB", self.channel_gains, strict=True))
        rows = [
            ["vertical offset", f"{self.offset_px:+.2f} px", f"left row - right row; spread {self.spread_px:.2f} px"],
            ["its change across", _change(self.across_px), "from the left to the right edge"],
            ["its change down", _change(self.down_px), "from the top to the bottom edge"],
            ["gain", f"{self.gain:.3f}", f"right / left; {channels}"],
            ["disparity", f"{middle:.1f} px", f"median; 5 %: {low:.1f} px, 95 %: {high:.1f} px"],
        ]
        if self.scale > 1:
            low, middle, high = self.disparity_lr_px
            rows.append(["disparity in LR px", f"{middle:.1f}", f"median; 5 %: {low:.1f}, 95 %: {high:.1f}"])
        rows.append(["matched points", str(self.points), ""])
        if self.searched < 1:
            rows.append(["searched", f"{100 * self.searched:.0f} %", f"of the rows: {STRIPS} strips, not reduced"])
        return f"{tables.text([['', 'measured', ''], *rows])}\n{self.verdict}"


def check_pair(left: Tensor | AnyPath, right: Tensor | AnyPath, *, scale: int = 1) -> PairCheck:
    """Measure the misalignment of a stereo pair.

    SIFT points are matched between the views, wherever they are, and their rows, columns and intensities are compared.
    Views are never reduced. Of more than `MOST_PIXELS` px, three full-width strips are searched, at the top, middle and
    bottom. Takes one to three seconds on one core.

    Args:
        left: Left view: a tensor (3,H,W), RGB, uint8 or float 0..1, or the path of an image file.
        right: Right view, of the same size.
        scale: 1 for the views that the network gets. The SR factor for HR views: the bounds are in LR px.

    Raises:
        DataError: A view cannot be read or is not an image (3,H,W), the views differ in size, or the scale is below 1.
        LowpeftError: scikit-image is not installed.
    """
    if not is_whole(scale, least=1):
        raise DataError(f"the scale must be a whole number of at least 1, not {scale!r}")
    views = _view(left), _view(right)
    if views[0].shape != views[1].shape:
        sizes = [px((view.shape[-2], view.shape[-1])) for view in views]
        raise DataError(f"the left view is {sizes[0]}, but the right view is {sizes[1]}")
    height, width = views[0].shape[-2:]
    return check_points(matched_points(*views), (height, width), scale)


def check_points(found: Points, size: Size, scale: int) -> PairCheck:
    """Return the misalignment that matched points of views of a size (height, width) show."""
    nothing = PairCheck(points=0, candidates=len(found), searched=found.searched, scale=scale)
    if not len(found):
        return nothing
    offsets = found.rows[:, 0] - found.rows[:, 1]
    distances = (offsets - offsets.median()).abs()
    near = distances <= _ROUGHLY_ALIGNED * size[0]
    if int(near.sum()) < len(found) / 2:
        return nothing
    spread = _MAD_TO_DEVIATION * distances[near].median()
    kept = near & (distances <= (_DEVIATIONS * spread).clamp(min=_KEPT_PX))
    points, offsets = found[kept], offsets[kept]
    if len(points) < LEAST_POINTS:
        return nothing
    disparities = points.columns[:, 0] - points.columns[:, 1]
    across, down = _changes(points, offsets, size) if len(points) >= LEAST_POINTS_FOR_CHANGE else (math.nan,) * 2
    gains = _gains(points.values)
    return PairCheck(
        points=len(points),
        candidates=len(found),
        offset_px=offsets.quantile(0.5).item(),
        spread_px=spread.item(),
        across_px=across,
        down_px=down,
        gain=gains[0],
        channel_gains=(gains[1], gains[2], gains[3]),
        disparity_px=tuple(disparities.quantile(disparities.new_tensor([0.05, 0.5, 0.95])).tolist()),
        searched=found.searched,
        scale=scale,
    )


def _changes(points: Points, offsets: Tensor, size: Size) -> tuple[float, float]:
    """Return the change of the offset from the left to the right and from the top to the bottom edge, in px."""
    rows, columns = points.rows[:, 0] / size[0], points.columns[:, 0] / size[1]
    plane = torch.linalg.lstsq(torch.stack([columns, rows, torch.ones_like(rows)], dim=1), offsets[:, None]).solution
    return plane[0].item(), plane[1].item()


def _gains(values: Tensor) -> tuple[float, ...]:
    """Return the median of right / left over points, of the mean of the channels and of each; NaN without any point."""
    values = torch.cat([values.mean(-1, keepdim=True), values], dim=-1)
    exposed = ((values > _EXPOSED[0]) & (values < _EXPOSED[1])).all(dim=1)
    ratios = [(values[:, 1, c] / values[:, 0, c])[exposed[:, c]] for c in range(4)]
    return tuple(ratio.median().item() if len(ratio) else math.nan for ratio in ratios)


def _change(value_px: float) -> str:
    return tables.NOTHING if math.isnan(value_px) else f"{value_px:+.2f} px"


def _view(view: Tensor | AnyPath) -> Tensor:
    """Return a view as uint8 (3,H,W) on the CPU."""
    if not isinstance(view, Tensor):
        if not isinstance(view, str | os.PathLike):
            raise DataError(f"check_pair takes tensors or paths of image files, not a {type(view).__name__}")
        return read_image(view)
    if view.ndim != 3 or view.shape[0] != 3 or view.numel() == 0:
        raise DataError(f"check_pair takes images (3, H, W), not shape {tuple(view.shape)}")
    view = view.detach().cpu()
    if view.is_floating_point() and not bool(((view >= 0) & (view <= 1)).all()):  # also NaN
        raise DataError(f"float views must be within 0..1, but this one has {view.min():g} to {view.max():g}")
    return eight_bit(view)
