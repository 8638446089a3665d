"""Bicubic resizing that reproduces MATLAB's `imresize` to the last bit.

The field's LR images are made with it, and any other pixel values are a different benchmark. The kernel is the cubic
convolution of Keys (IEEE Trans. ASSP 29(6), 1981) with a = -0.5. When shrinking by s, it is stretched by s, and the
taps are normalised to sum 1. For uint8 images MATLAB filters along the height, rounds half up and clips to uint8, then
does the same along the width; the order of the two roundings affects pixels. The symmetric border reproduces every
pixel of the x4 inputs of the KITTI 2015 stereo test archive. The replicated border reproduces every pixel of NTIRE's
Flickr1024 inputs and of the Set5 inputs at x2, x3 and x4.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from ... import checks
from ...errors import DataError

Border = Literal["symmetric", "replicate"]
_Taps = tuple[int, list[float]]

_KEYS_A = -0.5  # as in MATLAB's "bicubic"; torch uses -0.75


def mod_crop(image: torch.Tensor, scale: int) -> torch.Tensor:
    """Crop (..., H, W) at the bottom and right to the largest multiples of `scale`.

    Raises:
        DataError: `scale` is below 1, or the image is smaller than one LR pixel.
    """
    _check(image, scale)
    height, width = (side - side % scale for side in image.shape[-2:])
    if height == 0 or width == 0:
        raise DataError(f"an image of {_size(image)} has no x{scale} LR pixel: both sides must be at least {scale}")
    return image[..., :height, :width]


def matlab_downscale(image: torch.Tensor, scale: int, *, border: Border = "symmetric") -> torch.Tensor:
    """Shrink an image (..., C, H, W) like MATLAB's `imresize(image, 1/scale, 'bicubic')`.

    Args:
        image: (..., C, H, W), uint8 (rounded after each of the two passes, as in MATLAB) or float (neither rounded nor
            clipped); H and W are multiples of `scale` (see `mod_crop`).
        scale: Whole factor to shrink by.
        border: Pixels beyond the edge. `symmetric` mirrors the image, edge pixel included; `replicate` repeats the edge
            pixel. E.g. after a row that ends in 1 2 3: 3 2 1 or 3 3 3.

    Returns:
        (..., C, H / scale, W / scale) of the same dtype.

    Raises:
        DataError: The dtype or shape is another, `scale` does not divide the sides, or the border is unknown.
    """
    _check(image, scale, border)
    if image.shape[-1] % scale or image.shape[-2] % scale:
        raise DataError(f"an image of {_size(image)} cannot be shrunk by {scale} exactly: mod_crop it first")
    return _shrunk(image, scale, border)


def matlab_halve(image: torch.Tensor, *, border: Border = "symmetric") -> torch.Tensor:
    """Halve an image (..., C, H, W), uint8 or float, of any size like MATLAB's `imresize(image, 1/2, 'bicubic')`.

    The field prepares Middlebury scenes this way (`GenerateTrainingPatches.m` of iPASSR): it halves the whole image
    first, then cuts it to multiples of the scale.

    Returns:
        (..., C, H', W') of the same dtype, where H' and W' are half of H and W, rounded up.

    Raises:
        DataError: The dtype or shape is another, or the border is unknown.
    """
    _check(image, 2, border)
    return _shrunk(image, 2, border)


def _shrunk(image: torch.Tensor, scale: int, border: Border) -> torch.Tensor:
    """Shrink; a side that `scale` does not divide is rounded up, as in `imresize`."""
    return _resized(image, [_taps((scale - 1) / 2, stretch=scale)], scale, border)


def bicubic_upscale(image: torch.Tensor, scale: int, *, border: Border = "symmetric") -> torch.Tensor:
    """Enlarge an image like MATLAB's `imresize(image, scale, 'bicubic')`, the baseline of every SR table.

    Args:
        image: (..., C, H, W), uint8 (rounded half up and clipped after each of the two passes, as in MATLAB) or float
            (neither rounded nor clipped, so values may leave 0..1 at edges).
        scale: Whole factor to enlarge by.
        border: Pixels beyond the edge; see `matlab_downscale`.

    Returns:
        (..., C, H * scale, W * scale) of the same dtype.

    Raises:
        DataError: The dtype or shape is another, or the border is unknown.
    """
    _check(image, scale, border)
    phases = [_taps((phase + 0.5) / scale - 0.5, stretch=1) for phase in range(scale)]
    return _resized(image, phases, 1, border)


def _check(image: torch.Tensor, scale: int, border: Border = "symmetric") -> None:
    if scale < 1:
        raise DataError(f"the scale must be at least 1, not {scale}")
    if image.ndim < 3 or image.numel() == 0:
        raise DataError(f"expected an image (..., C, H, W), not shape {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise DataError(f"expected a uint8 or float image, not {image.dtype}")
    if problems := checks.one_of("border", border, get_args(Border)):
        raise DataError(*problems)


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]} px"


def _keys(x: float) -> float:
    """Return Keys' cubic convolution kernel (his equation 4) at distance x, with a = -0.5."""
    x = abs(x)
    if x <= 1:
        return (_KEYS_A + 2) * x**3 - (_KEYS_A + 3) * x**2 + 1
    if x < 2:
        return _KEYS_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def _taps(centre: float, *, stretch: int) -> _Taps:
    """Return the first input index and the weights (sum 1) of the stretched kernel around input position `centre`.

    With a whole factor, all output pixels of a phase have the same fractional position and thus the same weights.
    """
    first = math.floor(centre - 2 * stretch)
    weights = [_keys((centre - index) / stretch) for index in range(first, first + 4 * stretch + 2)]
    total = math.fsum(weights)
    return first, [weight / total for weight in weights]


def _resized(image: torch.Tensor, phases: list[_Taps], stride: int, border: Border) -> torch.Tensor:
    """Resample along the height, then along the width, as MATLAB does."""
    return _resample(_resample(image, -2, phases, stride, border), -1, phases, stride, border)


def _resample(image: torch.Tensor, dim: int, phases: list[_Taps], stride: int, border: Border) -> torch.Tensor:
    """Resample along `dim`: `len(phases)` output pixels for every `stride` input pixels, rounded if uint8."""
    length = image.shape[dim]
    before = max(-first for first, _ in phases)
    after = max(first + len(weights) for first, weights in phases)
    padded = _pad(image, dim, before, after, border).transpose(dim, -2)
    outputs = []
    for first, weights in phases:
        # Add taps one by one in double precision, as MATLAB does, so that ties round to the same side.
        total = torch.zeros((), dtype=torch.float64, device=image.device)
        for start, weight in enumerate(weights, before + first):
            if weight != 0:
                total = total + padded[..., start : start + length : stride, :] * weight
        outputs.append(total)
    result = torch.stack(outputs, dim=-2).flatten(-3, -2).transpose(dim, -2)
    if image.dtype == torch.uint8:
        return result.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8).contiguous()
    return result.to(image.dtype).contiguous()


def _pad(image: torch.Tensor, dim: int, before: int, after: int, border: Border) -> torch.Tensor:
    """Pad by `before` and `after` pixels along `dim`, in double precision; the padding may exceed the image."""
    length = image.shape[dim]
    position = torch.arange(-before, length + after, device=image.device)
    if border == "symmetric":
        position = position.remainder(2 * length)
        position = torch.minimum(position, 2 * length - 1 - position)
    return image.index_select(dim, position.clamp(0, length - 1)).to(torch.float64)
