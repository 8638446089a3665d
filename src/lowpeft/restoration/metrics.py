"""PSNR, SSIM, and the protocols of the field's tables.

Images are measured as they would be saved: float images are first clamped and rounded to 8 bits (`to_uint8`). Papers
differ in the part of the views that they compare and in the SSIM; `PROTOCOLS` names each variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Literal

from torch import Tensor

from ..errors import DataError
from ..registry import Registry
from .images import eight_bit

Channels = Literal["rgb", "y", "y8"]

Y_WEIGHTS = (65.481, 128.553, 24.966)
"""Weights of R, G and B (0..1) in the luma of ITU-R BT.601 (16..235), as in MATLAB's `rgb2ycbcr` and BasicSR."""

LEFT_CUT_PX = 64
"""Number of HR columns that "Left" excludes at any scale, since StereoSR: they have no match in the right view."""

SSIM_WINDOW_PX = {"rgb": 7, "y": 11, "y8": 11}

STRIP_ROWS = 128
"""Number of rows that are compared at a time, to bound memory: SSIM takes over 150 bytes per pixel."""


def psnr(sr: Tensor, hr: Tensor, *, border_px: int = 0, channels: Channels = "rgb") -> float:
    """Return the peak signal-to-noise ratio in dB, 10 log10(255² / mean squared error); inf for equal images.

    Args:
        sr: Image (3, H, W) or, grey, (1, H, W); uint8 or float 0..1.
        hr: Image of the same shape, uint8 or float 0..1.
        border_px: Number of rows and columns to shave at each edge. Stereo tables shave none, single-image tables as
            many as the scale.
        channels: `rgb` averages the squared error over all three channels, as in the stereo tables; `y` compares luma
            only, as in single-image tables (not rounded to 8 bits again); `y8` rounds it, as MATLAB's `rgb2ycbcr` does
            for 8-bit images.

    Raises:
        DataError: The shapes differ, are not (3, H, W) or (1, H, W), values lie far outside 0..1 or are NaN, or nothing
            is left after shaving.
    """
    squares, count = 0.0, 0
    for sr_part, hr_part in _compared(sr, hr, border_px, channels):
        squares += (sr_part - hr_part).square_().sum().item()
        count += hr_part.numel()
    mean_squared = squares / count
    return math.inf if mean_squared == 0 else 10 * math.log10(255**2 / mean_squared)


def ssim(sr: Tensor, hr: Tensor, *, border_px: int = 0, channels: Channels = "rgb") -> float:
    """Return the structural similarity, at most 1, by scikit-image. SSIM has variants that are not comparable.

    `rgb` is the variant of the stereo tables since NAFSSR: scikit-image's defaults (uniform 7x7 window, sample
    covariance), averaged over the channels. `y` is the variant of the single-image tables, after Wang et al. (IEEE
    Trans. Image Processing 13(4), 2004): Gaussian 11x11 window with sigma 1.5, population covariance.

    Args:
        sr: Image (3, H, W) or, grey, (1, H, W); uint8 or float 0..1.
        hr: Image of the same shape, uint8 or float 0..1.
        border_px: Number of rows and columns to shave at each edge; see `psnr`.
        channels: Variant of the SSIM, `rgb` or `y`; `y8` is `y` of luma that is rounded to 8 bits.

    Raises:
        DataError: The shapes differ, are not (3, H, W) or (1, H, W), values lie far outside 0..1 or are NaN, or the
            image left after shaving is smaller than the window.
    """
    from skimage.metrics import structural_similarity

    options: dict[str, object] = {"data_range": 255, "channel_axis": 0}
    if channels != "rgb":
        options |= {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    window = SSIM_WINDOW_PX[channels]
    total, count = 0.0, 0
    for sr_part, hr_part in _compared(sr, hr, border_px, channels, window_px=window):
        rows = hr_part.shape[-2] - window + 1  # scikit-image counts only windows that lie inside the image
        value = structural_similarity(sr_part.numpy(), hr_part.numpy(), **options)  # type: ignore[no-untyped-call]
        total += rows * float(value)
        count += rows
    return total / count


def _compared(
    sr: Tensor, hr: Tensor, border_px: int, channels: Channels, *, window_px: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the parts of two images to compare, in strips of rows, without the border: float64 (3 or 1, h, w), 0..255.

    The strips are on the CPU. They overlap by `window_px` - 1 rows, so each window of that height is in exactly one.
    """
    if sr.shape != hr.shape:
        raise DataError(
            f"the two images must have the same shape, not {tuple(sr.shape)} and {tuple(hr.shape)}: mod_crop the HR "
            "image, or crop what was padded"
        )
    if hr.ndim != 3 or hr.shape[0] not in (1, 3):
        raise DataError(
            f"expected images (3, H, W) or (1, H, W), not shape {tuple(hr.shape)}: measure a batch one by one"
        )
    height, width = hr.shape[-2:]
    if border_px < 0 or 2 * border_px >= min(height, width):
        raise DataError(f"shaving {border_px} px at each edge of a {width}x{height} px image leaves nothing to compare")
    inside = (slice(None), slice(border_px, height - border_px), slice(border_px, width - border_px))
    images = [eight_bit(image)[inside] for image in (sr, hr)]
    rows, columns = images[0].shape[-2:]
    if min(rows, columns) < window_px:
        raise DataError(f"{columns}x{rows} px are left to compare, but SSIM's window has {window_px}x{window_px} px")
    for top in range(0, rows - window_px + 1, STRIP_ROWS):
        sr_part, hr_part = (v[:, top : top + STRIP_ROWS + window_px - 1].cpu().double() for v in images)
        if channels != "rgb":
            sr_part, hr_part = _luma(sr_part), _luma(hr_part)
        yield (sr_part.round_(), hr_part.round_()) if channels == "y8" else (sr_part, hr_part)


def _luma(image: Tensor) -> Tensor:
    """Return the luma of an RGB image (3,H,W); a grey image is compared as it is, as in BasicSR."""
    if len(image) == 1:
        return image
    weights = image.new_tensor(Y_WEIGHTS)[:, None, None]
    return (image * weights / 255).sum(0, keepdim=True) + 16


Metric = Callable[..., float]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table: one figure per scene.

    Attributes:
        name: Heading in tables.
        digits: Number of digits after the decimal point in tables.
        measure: Function that computes the figure of one scene from its results, its HR views (one or two of each,
            (3, H, W), uint8 or float 0..1) and the scale.
        lower_is_better: True for distances.
    """

    name: str
    digits: int
    measure: Callable[[Sequence[Tensor], Sequence[Tensor], int], float]
    lower_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Definition of a table of results: its columns. The table's last row is the mean over scenes.

    Attributes:
        name: Name of the protocol, as `lowpeft evaluate --protocol` takes it.
        views: Number of views that a scene must have; None for any.
        summary: Description in one sentence.
        columns: Columns of the table, from left to right.
        source: Code or papers that measure in this way.
    """

    name: str
    views: int | None
    summary: str
    columns: tuple[Column, ...]
    source: str

    def of_channels(self, channels: int) -> Protocol:
        """Return the protocol with texts that say what is measured: grey, not RGB, of images with one channel."""
        if channels != 1:
            return self
        columns = tuple(replace(column, name=column.name.replace("RGB", "grey")) for column in self.columns)
        return replace(self, columns=columns, summary=self.summary.replace("RGB", "grey"))


def _mean_of_views(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int, *, metric: Metric) -> float:
    """Return (L+R)/2 on whole images: the mean of the views' values, not the value of their pooled error."""
    return fmean(metric(sr_view, hr_view) for sr_view, hr_view in zip(sr, hr, strict=True))


def _left(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int, *, metric: Metric) -> float:
    return metric(_without_left(sr[0]), _without_left(hr[0]))


def _both_without_left(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int, *, metric: Metric) -> float:
    return _mean_of_views(list(map(_without_left, sr)), list(map(_without_left, hr)), scale, metric=metric)


def _whole(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int, *, metric: Metric) -> float:
    return metric(sr[0], hr[0])


def _luma_shaved(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int, *, metric: Metric) -> float:
    return metric(sr[0], hr[0], border_px=scale, channels="y")


def _luma_rounded(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int, *, metric: Metric) -> float:
    return metric(sr[0], hr[0], channels="y8")


def _without_left(view: Tensor) -> Tensor:
    if view.shape[-1] <= LEFT_CUT_PX:
        raise DataError(
            f"a view must be wider than the {LEFT_CUT_PX} columns that Left excludes, but it has {view.shape[-1]}"
        )
    return view[..., LEFT_CUT_PX:]


def _columns(name: str, measure: Callable[..., float]) -> tuple[Column, Column]:
    """Return the columns of PSNR in dB and SSIM for the same part of the same views."""
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
    Protocol(
        name="rgb",
        views=1,
        summary="uint8 RGB, whole images",
        columns=_columns("RGB", _whole),
        source="the tables of colour denoising (CBSD68, Kodak24) since DnCNN; default for networks of scale 1",
    ),
    Protocol(
        name="derain",
        views=1,
        summary="luma (BT.601, rounded to 8 bits), whole images",
        columns=_columns("Y", _luma_rounded),
        source="evaluate_PSNR_SSIM.m of MPRNet and Restormer (Rain100L, Rain100H, Test100, Test1200, Test2800)",
    ),
    error=DataError,
)
"""Protocols by name; `register` adds one."""

LITERATURE = PROTOCOLS["literature"]
"""The default for pairs."""

WHOLE_RGB = Protocol(
    name="whole RGB",
    views=None,
    summary="PSNR on uint8 RGB, whole views, mean of the views",
    columns=(Column(name="PSNR", digits=3, measure=partial(_mean_of_views, metric=psnr)),),
    source="(L+R)/2 of the stereo tables",
)
"""Protocol of validation and of comparisons with the frozen base. It is not in `PROTOCOLS`: no paper measures so."""


def usual_protocol(scale: int, views: int) -> Protocol:
    """Return the usual protocol: `literature` for pairs; for single images `single-image`, or at scale 1 `rgb`.

    Args:
        scale: HR sides divided by LR sides.
        views: Number of views of a scene.
    """
    if views > 1:
        return LITERATURE
    return PROTOCOLS["rgb" if scale == 1 else "single-image"]
