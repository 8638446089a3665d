"""Points that both views of a pair show, by scikit-image's SIFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import LowpeftError

MOST_PIXELS = 1_000_000
"""Number of pixels of a view above which only strips are searched."""

STRIPS = 3
"""Number of full-width strips of a large view: at the top, in the middle and at the bottom."""

_ENLARGED_PIXELS = 100_000  # up to here SIFT also searches an enlarged view: 3 times the points, 4 times the work
_SMALLEST_SIDE_PX = 12  # of SIFT's first octave; scikit-image fails below
_RATIO = 0.8  # of the distances to the best and second best descriptor: Lowe, IJCV 60(2), 2004, section 7.1
_BLUR_PX = 2.0  # so that intensities bear noise and sub-pixel shifts


@dataclass(frozen=True)
class Points:
    """Matched points of two views.

    Attributes:
        rows: Rows in px (N,2), left and right.
        columns: Columns in px (N,2), left and right.
        values: R, G and B around each point (N,2,3), 0..255.
        searched: Share of the view's rows that were searched.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    searched: float

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, kept: Tensor) -> Points:
        return Points(self.rows[kept], self.columns[kept], self.values[kept], self.searched)


def matched_points(left: Tensor, right: Tensor, *, most_pixels: int = MOST_PIXELS) -> Points:
    """Match points of two views, uint8 (3,H,W) of one size, at full resolution.

    Args:
        left: Left view.
        right: Right view.
        most_pixels: Number of pixels above which only `STRIPS` full-width strips with this many pixels are searched.

    Raises:
        LowpeftError: scikit-image is not installed.
    """
    height, width = left.shape[-2:]
    tops, tall = [0], height
    if height * width > most_pixels:
        tall = min(height, max(most_pixels // (STRIPS * width), _SMALLEST_SIDE_PX))
        tops = [n * (height - tall) // (STRIPS - 1) for n in range(STRIPS)]
    parts = [_match(left[:, top : top + tall], right[:, top : top + tall], top) for top in tops]
    places, values = (torch.cat(each) for each in zip(*parts, strict=True))
    return Points(places[..., 0], places[..., 1], values, searched=min(1.0, len(tops) * tall / height))


def _match(left: Tensor, right: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return places (N,2,2) as (row + `top`, column) in left and right view, and the values there (N,2,3)."""
    try:
        from skimage.feature import match_descriptors
    except ImportError as error:
        raise LowpeftError("check_pair needs scikit-image: pip install 'lowpeft[train]'") from error

    found = [_features(view) for view in (left, right)]
    if not all(len(places) for places, _, _ in found):
        return torch.zeros(0, 2, 2, dtype=torch.float64), torch.zeros(0, 2, 3)
    pairs = match_descriptors(found[0][1], found[1][1], cross_check=True, max_ratio=_RATIO)  # type: ignore[no-untyped-call]
    numbers = torch.from_numpy(pairs)
    places, values = (torch.stack([found[v][part][numbers[:, v]] for v in (0, 1)], dim=1) for part in (0, 2))
    return places + torch.tensor([float(top), 0.0], dtype=places.dtype), values


def _features(view: Tensor) -> tuple[Tensor, Any, Tensor]:
    """Return places (N,2) of SIFT points, their descriptors, and the view's values there (N,3)."""
    from skimage.color import rgb2gray
    from skimage.feature import SIFT
    from skimage.filters import gaussian

    nothing = torch.zeros(0, 2), None, torch.zeros(0, 3)
    height, width = view.shape[-2:]
    if min(height, width) < _SMALLEST_SIDE_PX:
        return nothing
    sift = SIFT(upsampling=2 if height * width <= _ENLARGED_PIXELS else 1)  # type: ignore[no-untyped-call]
    pixels = view.permute(1, 2, 0).numpy()
    try:
        sift.detect_and_extract(rgb2gray(pixels))  # type: ignore[no-untyped-call]
    except RuntimeError:  # it found none, as in a flat image
        return nothing
    places = torch.from_numpy(sift.positions)
    blurred = gaussian(pixels, _BLUR_PX, preserve_range=True, channel_axis=-1)  # type: ignore[no-untyped-call]
    values = torch.from_numpy(blurred).float()
    rows, columns = places.round().long().unbind(-1)
    return places, sift.descriptors, values[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
