"""How good a super-resolved image is, by the protocols that the tables of the field share.

Every value is taken on RGB as it would be saved: float images are clamped and rounded to 8 bits first (`to_uint8`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from lowpeft.errors import DataError
from lowpeft.images import to_uint8

Channels = Literal["rgb", "y"]

Y_WEIGHTS = (65.481, 128.553, 24.966)
"""Of R, G and B in 0..1, for the luma of ITU-R BT.601 in 16..235; MATLAB's `rgb2ycbcr` and BasicSR have the same."""


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
    _check_views(sr, hr)
    height, width = hr.shape[-2:]
    if border_px < 0 or 2 * border_px >= min(height, width):
        raise DataError(f"shaving {border_px} px at each edge of a {width}x{height} px image leaves nothing to compare")
    inside = (slice(None), slice(border_px, height - border_px), slice(border_px, width - border_px))
    difference = _eight_bit(sr)[inside].double() - _eight_bit(hr)[inside].double()
    if channels == "y":
        difference = (difference * difference.new_tensor(Y_WEIGHTS)[:, None, None] / 255).sum(0)
    mean_squared = difference.square().mean().item()
    return math.inf if mean_squared == 0 else 10 * math.log10(255**2 / mean_squared)


def pair_psnr(left_sr: torch.Tensor, right_sr: torch.Tensor, left_hr: torch.Tensor, right_hr: torch.Tensor) -> float:
    """The (L+R)/2 of the stereo SR tables: the mean of the two views' PSNR in dB, on whole images.

    It is not the PSNR of the two views' common squared error, which would be lower.

    Args:
        left_sr: (3, H, W), uint8 or float 0..1, as are all four.
        right_sr: as `left_sr`.
        left_hr: the shape of `left_sr`.
        right_hr: the shape of `right_sr`.

    Raises:
        DataError: as `psnr`, for either view.
    """
    return (psnr(left_sr, left_hr) + psnr(right_sr, right_hr)) / 2


def _check_views(sr: torch.Tensor, hr: torch.Tensor) -> None:
    if sr.shape != hr.shape:
        raise DataError(
            f"the two images must have one shape, got {tuple(sr.shape)} and {tuple(hr.shape)}: "
            "mod_crop the HR image, or crop what was padded"
        )
    if hr.ndim != 3 or hr.shape[0] != 3:
        raise DataError(f"expected images (3, H, W), got shape {tuple(hr.shape)}: compare the images of a batch singly")


def _eight_bit(image: torch.Tensor) -> torch.Tensor:
    return image if image.dtype == torch.uint8 else to_uint8(image)
