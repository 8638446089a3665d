"""How good a super-resolved image is, by the protocols that the tables of the field share.

Every value is taken on RGB as it would be saved: float images are clamped and rounded to 8 bits first (`to_uint8`).
Papers differ in which part of which view they compare, and in the SSIM: `PROTOCOLS` has each way under a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

import torch

from ..errors import DataError
from ..registry import Registry
from .images import eight_bit

Channels = Literal["rgb", "y"]
Views = Sequence[torch.Tensor]

Y_WEIGHTS = (65.481, 128.553, 24.966)
"""Of R, G and B in 0..1, for the luma of ITU-R BT.601 in 16..235; MATLAB's `rgb2ycbcr` and BasicSR have the same."""

LEFT_CUT_PX = 64
"""HR columns that the tables' "Left" leaves out at any scale, since StereoSR: they have no match in the right view."""

SSIM_WINDOW_PX = {"rgb": 7, "y": 11}

STRIP_ROWS = 128
"""Images are compared so many rows at a time: SSIM takes over 150 bytes for each pixel that it is computed on."""


def psnr(sr: torch.Tensor, hr: torch.Tensor, *, border_px: int = 0, channels: Channels = "rgb") -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255² / mean squared error); inf if equal.

    Args:
        sr: (3, H, W), uint8 or float 0..1.
        hr: the same shape, uint8 or float 0..1.
        border_px: rows and columns to shave at each of the four edges; the stereo tables shave none, those of single
            images shave the scale.
        channels: `rgb` is the mean over all three, as in the stereo tables; `y` is luma alone, as in those of single
            images (not rounded to 8 bits again).

    Raises:
        DataError: the shapes differ, are not (3, H, W), or nothing is left after shaving.
    """
    squares, count = 0.0, 0
    for one, other in _compared(sr, hr, border_px, channels):
        squares += (one - other).square_().sum().item()
        count += one.numel()
    mean_squared = squares / count
    return math.inf if mean_squared == 0 else 10 * math.log10(255**2 / mean_squared)


def ssim(sr: torch.Tensor, hr: torch.Tensor, *, border_px: int = 0, channels: Channels = "rgb") -> float:
    """Structural similarity, at most 1, as scikit-image computes it; there are several, and no two are comparable.

    On `rgb` it is that of the stereo tables since NAFSSR: scikit-image's defaults, which are a uniform window of 7x7
    and sample covariance, and the mean over the channels. On `y` it is that of the single-image tables, after Wang et
    al. (IEEE Trans. Image Processing 13(4), 2004): a Gaussian window of 11x11 with sigma 1.5 and population covariance.

    Args:
        sr: (3, H, W), uint8 or float 0..1.
        hr: the same shape, uint8 or float 0..1.
        border_px: as in `psnr`.
        channels: as in `psnr`.

    Raises:
        DataError: as `psnr`, or what is left after shaving is smaller than the window.
    """
    from skimage.metrics import structural_similarity

    options: dict[str, object] = {"data_range": 255, "channel_axis": 0}
    if channels == "y":
        options |= {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    window = SSIM_WINDOW_PX[channels]
    total, count = 0.0, 0
    for one, other in _compared(sr, hr, border_px, channels, window_px=window):
        rows = one.shape[-2] - window + 1  # of windows that lie inside: the only ones that scikit-image counts
        total += rows * float(structural_similarity(one.numpy(), other.numpy(), **options))  # type: ignore[no-untyped-call]
        count += rows
    return total / count


def _compared(
    sr: torch.Tensor, hr: torch.Tensor, border_px: int, channels: Channels, *, window_px: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What is compared of two images, in strips of rows: float64 (3 or 1, h, w) on the CPU, 0..255, without the border.

    Strips overlap by a row less than `window_px`, so that every window of that height lies in just one of them.
    """
    _check_views(sr, hr)
    height, width = hr.shape[-2:]
    if border_px < 0 or 2 * border_px >= min(height, width):
        raise DataError(f"shaving {border_px} px at each edge of a {width}x{height} px image leaves nothing to compare")
    inside = (slice(None), slice(border_px, height - border_px), slice(border_px, width - border_px))
    images = [eight_bit(image)[inside] for image in (sr, hr)]
    rows, columns = images[0].shape[-2:]
    if min(rows, columns) < window_px:
        raise DataError(
            f"{columns}x{rows} px are left to compare, less than SSIM's window of {window_px}x{window_px} px"
        )
    for top in range(0, rows - window_px + 1, STRIP_ROWS):
        one, other = (v[:, top : top + STRIP_ROWS + window_px - 1].cpu().double() for v in images)
        yield (_luma(one), _luma(other)) if channels == "y" else (one, other)


def _luma(image: torch.Tensor) -> torch.Tensor:
    weights = image.new_tensor(Y_WEIGHTS)[:, None, None]
    return (image * weights / 255).sum(0, keepdim=True) + 16


def _check_views(sr: torch.Tensor, hr: torch.Tensor) -> None:
    if sr.shape != hr.shape:
        raise DataError(
            f"the two images must have one shape, got {tuple(sr.shape)} and {tuple(hr.shape)}: "
            "mod_crop the HR image, or crop what was padded"
        )
    if hr.ndim != 3 or hr.shape[0] != 3:
        raise DataError(f"expected images (3, H, W), got shape {tuple(hr.shape)}: compare the images of a batch singly")


# -------------------------------------------------------------------------------------------------------- protocols
Metric = Callable[..., float]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure per scene.

    Attributes:
        name: as it heads a table.
        digits: after the decimal point, in tables.
        measure: the figure of one scene, from its results and its HR views (one or two of each, (3, H, W), uint8 or
            float 0..1) and the scale.
    """

    name: str
    digits: int
    measure: Callable[[Views, Views, int], float]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a table of results says about each scene; the table's last row is the mean over scenes.

    Attributes:
        name: which `lowpeft evaluate --protocol` takes.
        views: how many a scene must have.
        summary: one sentence.
        columns: from left to right.
        source: who measures like this.
    """

    name: str
    views: Literal[1, 2]
    summary: str
    columns: tuple[Column, ...]
    source: str


def _mean_of_views(sr: Views, hr: Views, scale: int, *, metric: Metric) -> float:
    """(L+R)/2: the mean of the views' values, whole images; not the value of their common error."""
    return fmean(metric(one, other) for one, other in zip(sr, hr, strict=True))


def _left(sr: Views, hr: Views, scale: int, *, metric: Metric) -> float:
    return metric(_without_left(sr[0]), _without_left(hr[0]))


def _both_without_left(sr: Views, hr: Views, scale: int, *, metric: Metric) -> float:
    return fmean(metric(_without_left(one), _without_left(other)) for one, other in zip(sr, hr, strict=True))


def _luma_shaved(sr: Views, hr: Views, scale: int, *, metric: Metric) -> float:
    return metric(sr[0], hr[0], border_px=scale, channels="y")


def _without_left(view: torch.Tensor) -> torch.Tensor:
    if view.shape[-1] <= LEFT_CUT_PX:
        raise DataError(
            f"a view of {view.shape[-1]} px is no wider than the {LEFT_CUT_PX} columns that Left leaves out"
        )
    return view[..., LEFT_CUT_PX:]


def _columns(name: str, measure: Callable[..., float]) -> tuple[Column, Column]:
    """The PSNR in dB and the SSIM of the same part of the same views."""
    return (
        Column(name=f"PSNR {name}", digits=3, measure=partial(measure, metric=psnr)),
        Column(name=f"SSIM {name}", digits=4, measure=partial(measure, metric=ssim)),
    )


PROTOCOLS = Registry(
    "protocol",
    Protocol(
        name="literature",
        views=2,
        summary=f"uint8 RGB; Left: left view without its {LEFT_CUT_PX} leftmost HR columns; (L+R)/2: whole views",
        columns=(*_columns("Left", _left), *_columns("(L+R)/2", _mean_of_views)),
        source="iPASSR's evaluation.m and NAFNet's psnr_ssim.py (SSIM as in the latter)",
    ),
    Protocol(
        name="asteisr",
        views=2,
        summary=f"as `literature`, but Left: mean of both views, each without its {LEFT_CUT_PX} leftmost HR columns",
        columns=(*_columns("Left", _both_without_left), *_columns("(L+R)/2", _mean_of_views)),
        source="ASteISR's code, which calls its Left metric for both views",
    ),
    Protocol(
        name="single-image",
        views=1,
        summary="luma (BT.601, not rounded), without as many rows and columns at each edge as the scale",
        columns=_columns("Y", _luma_shaved),
        source="BasicSR's calculate_psnr and calculate_ssim with test_y_channel",
    ),
    error=DataError,
)
"""How tables are measured; `register` adds one."""
