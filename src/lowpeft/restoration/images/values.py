"""Conversion between 8-bit and float images."""

from __future__ import annotations

import math

import torch

from ...errors import DataError

LEAST, MOST = -8.0, 8.0
"""Bounds of values that pass as an image 0..1: strong noise stays within them, an image 0..255 only if it is black."""


def check_values(image: torch.Tensor, what: str = "an image") -> None:
    """Check that the values of a float image lie about 0..1; a little outside, as noise may lie, is no error.

    Raises:
        DataError: A value is below `LEAST` or above `MOST`: the image is in 0..255 or another range. Or it is NaN.
    """
    if not image.is_floating_point() or not image.numel():
        return
    low, high = (float(end) for end in image.detach().aminmax())
    if math.isnan(low):
        raise DataError(f"{what} must have values 0..1, but this one contains NaN: check what produced it")
    if not (low >= LEAST and high <= MOST):
        raise DataError(
            f"{what} must have values 0..1, but this one has {low:g} to {high:g}: divide an image 0..255 by 255, "
            "one of 16 bits by 65535"
        )


def to_float(image: torch.Tensor) -> torch.Tensor:
    """Convert a uint8 image 0..255 of any shape to float32 0..1; a float image is returned as it is.

    Raises:
        DataError: The image is neither uint8 nor of a float type.
    """
    if image.is_floating_point():
        return image
    if image.dtype != torch.uint8:
        raise DataError(f"expected a uint8 or a float image, not {image.dtype}")
    return image.to(torch.float32) / 255


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Convert a float image 0..1 of any shape to uint8 0..255: clamp to the range, then round half up.

    Raises:
        DataError: The image is not of a float type, contains NaN or an infinity, or values far outside 0..1 (see
            `check_values`).
    """
    return to_whole(image, 255).to(torch.uint8)


def to_whole(image: torch.Tensor, white: int) -> torch.Tensor:
    """Convert a float image 0..1 of any shape to whole numbers 0..`white`, still floats, as `to_uint8` does.

    Raises:
        DataError: As for `to_uint8`.
    """
    if not image.is_floating_point():
        raise DataError(f"expected a float image with values 0..1, not {image.dtype}")
    if not torch.isfinite(image).all():
        raise DataError(
            f"the image contains NaN or infinite values, which {white.bit_length()} bits cannot represent: check what "
            "produced it"
        )
    check_values(image)
    # bfloat16 cannot represent 254.5: convert to float32 before scaling.
    wide = image.detach().to(torch.promote_types(image.dtype, torch.float32))
    return wide.clamp(0, 1).mul_(white).add_(0.5).floor_()


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    """Return a uint8 image unchanged; convert any other image with `to_uint8`, which may raise."""
    return image if image.dtype == torch.uint8 else to_uint8(image)
