"""Elementary degradations of images (V,C,H,W), float, about 0..1. Each returns new images.

Gaussian blur is scikit-image's, JPEG is Pillow's. Blur by the kernels of the practical chains is a convolution; neither
kornia, albumentations nor torchvision has generalised and plateau-shaped Gaussians, or sinc filters.
"""

from __future__ import annotations

import io
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...errors import DataError
from ...ports.layouts import Size
from ..images import as_picture, as_tensor, to_float, to_uint8
from ..images.colours import LUMA
from ..images.values import LEAST, MOST

Resampling = Literal["area", "bilinear", "bicubic"]


def gaussian_noise(images: Tensor, sigma: float, random: Generator, *, grey: bool = False) -> Tensor:
    """Add white Gaussian noise of standard deviation `sigma` / 255; the result is neither clipped nor rounded.

    With `grey` all channels of a pixel get the same value.
    """
    shape = (len(images), 1, *images.shape[-2:]) if grey else images.shape
    return images + torch.randn(shape, generator=random) * (sigma / 255)


def poisson_noise(images: Tensor, photons: float, random: Generator, *, grey: bool = False, scale: float = 1) -> Tensor:
    """Add shot noise, times `scale`: a pixel of value 1 receives `photons` photons on average.

    With `grey` all channels of a pixel get the noise of its grey value.
    """
    clean = images.clamp(0, 1)
    if grey and images.shape[1] == 3:
        clean = (clean * clean.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    noise = torch.poisson(clean * photons, generator=random) / photons - clean
    return (images + noise * scale).clamp(LEAST, MOST)  # one pixel in a million at a single photon is beyond


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur by an isotropic Gaussian of standard deviation `sigma` px, cut off at 4 sigma; edges are mirrored."""
    from skimage.filters import gaussian

    sigmas = (0, 0, sigma, sigma)
    blurred = gaussian(images.numpy(), sigmas, mode="reflect", preserve_range=True)  # type: ignore[no-untyped-call]
    return torch.from_numpy(blurred).to(images.dtype)


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel with a kernel (K,K) of odd side; edges are mirrored, or repeated where too short for it."""
    half, channels = kernel.shape[-1] // 2, images.shape[1]
    mode = "reflect" if half < min(images.shape[-2:]) else "replicate"
    padded = F.pad(images, (half,) * 4, mode=mode)
    return F.conv2d(padded, kernel.to(images).expand(channels, 1, -1, -1), groups=channels)


def resized(images: Tensor, size: Size, how: Resampling) -> Tensor:
    """Resize to height and width without antialiasing, as both practical chains do."""
    if how == "area":
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode=how, align_corners=False)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Clip and round to 8 bits, then compress by JPEG (Pillow, libjpeg's tables, chroma halved in both directions).

    Images of 1 channel are compressed as grey, images of 3 as RGB.

    Raises:
        DataError: The images have another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise DataError(f"JPEG takes images of 1 channel (grey) or 3 (RGB), not of {images.shape[1]}")
    return torch.stack([_through_jpeg(image, quality) for image in images])


def eight_bits(images: Tensor) -> Tensor:
    """Clip to 0..1 and round to multiples of 1/255, as in an image file."""
    return to_uint8(images).to(images.dtype) / 255


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    from PIL import Image

    with io.BytesIO() as file:
        as_picture(image).save(file, format="JPEG", quality=quality)
        with Image.open(file) as compressed:
            return to_float(as_tensor(compressed)).to(image.dtype)
