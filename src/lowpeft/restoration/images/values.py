"""Conversion between 8-bit and float images."""

from __future__ import annotations

import torch

from ...errors import DataError


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
        DataError: The image is not of a float type, or contains NaN or an infinity.
    """
    if not image.is_floating_point():
        raise DataError(f"expected a float image with values 0..1, not {image.dtype}")
    if not torch.isfinite(image).all():
        raise DataError(
            "the image contains NaN or infinite values, which 8 bits cannot represent: check what produced it"
        )
    # bfloat16 cannot represent 254.5: convert to float32 before scaling.
    wide = image.detach().to(torch.promote_types(image.dtype, torch.float32))
    return wide.clamp(0, 1).mul_(255).add_(0.5).floor_().to(torch.uint8)


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    """Return a uint8 image unchanged; convert any other image with `to_uint8`, which may raise."""
    return image if image.dtype == torch.uint8 else to_uint8(image)
