"""Practical degradations of Real-ESRGAN and BSRGAN: random chains that stand for what unknown photographs went through.

Real-ESRGAN (Wang et al., arXiv 2107.10833): probabilities and ranges are those of its options file
`train_realesrgan_x4plus.yml`; its code degrades sharpened images (USM), here the clean images as they are. One crop
has one degradation, so no pool of pairs is needed to mix a batch.

BSRGAN (Zhang et al., arXiv 2103.14006): steps, order and ranges are those of the code that its authors published
(KAIR, the extended chain): two blurs, two resizes, noise of three kinds and JPEG, in random order with probability 0.1.
The paper's camera-sensor noise needs a model of a camera's processing, and is left out, as in that chain.

Both were written anew from these descriptions. No other scale than that of the network is assumed: with scale 1 they
make images of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from ...ports.layouts import Size
from .draws import chance, one_of, shuffled, uniform, whole
from .kernels import Form, bell, sinc
from .operations import (
    Resampling,
    eight_bits,
    filtered,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resized,
)

Range = tuple[float, float]
_Step = Callable[..., Tensor]
_HOW: tuple[Resampling, ...] = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Preset:
    """A practical chain.

    Attributes:
        text: Description for help and documentation.
        call: Function from images (V,C,H,W), 0..1, the scale and a generator to images (V,C,H/scale,W/scale), 8-bit
            values.
        reach_px: Distance in px of the clean image at which a pixel can noticeably change the result.
    """

    text: str
    call: Callable[[Tensor, int, Generator], Tensor]
    reach_px: int


@dataclass(frozen=True)
class _Stage:
    """One of the two stages of Real-ESRGAN: blur, resize, noise; JPEG follows."""

    blur: float  # probability
    sigma: Range
    resize: tuple[float, float, float]  # probabilities of larger, smaller, unchanged
    factor: Range
    noise: Range
    poisson: Range


_FIRST = _Stage(1.0, (0.2, 3), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3))
_SECOND = _Stage(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))
_FORMS: tuple[tuple[Form, bool], ...] = (  # shape, and whether the two standard deviations are one
    ("gaussian", True),
    ("gaussian", False),
    ("generalised", True),
    ("generalised", False),
    ("plateau", True),
    ("plateau", False),
)
_FORM_WEIGHTS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_BETAS: Mapping[Form, Range] = {"gaussian": (1, 1), "generalised": (0.5, 4), "plateau": (1, 2)}


def real_esrgan(images: Tensor, scale: int, random: Generator) -> Tensor:
    """Degrade by Real-ESRGAN's two stages."""
    height, width = images.shape[-2:]
    small = (height // scale, width // scale)
    images = _stage(images, _FIRST, (height, width), random)
    images = jpeg(images, whole(30, 95, random))
    images = _stage(images, _SECOND, small, random)
    if chance(0.5, random):
        images = _final_sinc(resized(images, small, one_of(_HOW, random)), random)
        images = jpeg(images, whole(30, 95, random))
    else:
        images = jpeg(images, whole(30, 95, random))
        images = _final_sinc(resized(images, small, one_of(_HOW, random)), random)
    return eight_bits(images)


def _stage(images: Tensor, stage: _Stage, size: Size, random: Generator) -> Tensor:
    """Blur, resize relative to `size`, add noise and clip."""
    if chance(stage.blur, random):
        images = filtered(images, _kernel(stage.sigma, random))
    kind = one_of(("larger", "smaller", "unchanged"), random, stage.resize)
    least, most = stage.factor
    ends = {"larger": (1.0, most), "smaller": (least, 1.0), "unchanged": (1.0, 1.0)}[kind]
    images = resized(images, _times(size, uniform(*ends, random)), one_of(_HOW, random))
    grey = chance(0.4, random)
    if chance(0.5, random):
        images = gaussian_noise(images, uniform(*stage.noise, random), random, grey=grey)
    else:
        images = poisson_noise(images, 255, random, grey=grey, scale=uniform(*stage.poisson, random))
    return images.clamp(0, 1)


def _kernel(sigma: Range, random: Generator) -> Tensor:
    """Draw a blur kernel of side 7, 9, … 21."""
    side = 2 * whole(3, 10, random) + 1
    if chance(0.1, random):
        return _sinc(side, random)
    form, isotropic = one_of(_FORMS, random, _FORM_WEIGHTS)
    first = uniform(*sigma, random)
    second = first if isotropic else uniform(*sigma, random)
    angle, (low, high) = uniform(-math.pi, math.pi, random), _BETAS[form]
    beta = uniform(low, 1, random) if chance(0.5, random) else uniform(1, high, random)
    return bell(side, (first, second), angle, form, beta)


def _sinc(side: int, random: Generator) -> Tensor:
    """Draw a sinc filter; small ones have no low cut-off, which would blur the whole of them."""
    return sinc(side, uniform(math.pi / 3 if side < 13 else math.pi / 5, math.pi, random))


def _final_sinc(images: Tensor, random: Generator) -> Tensor:
    if chance(0.8, random):
        images = filtered(images, sinc(2 * whole(3, 10, random) + 1, uniform(math.pi / 3, math.pi, random)))
    return images.clamp(0, 1)


def bsrgan(images: Tensor, scale: int, random: Generator) -> Tensor:
    """Degrade by BSRGAN's chain, then resize to the size that the network takes, and compress once more."""
    height, width = images.shape[-2:]
    half: list[_Step] = [
        partial(_bsrgan_blur, scale=scale),
        partial(_bsrgan_resize, scale=scale),
        _bsrgan_gaussian,
        _bsrgan_poisson,
        _bsrgan_speckle,
    ]
    steps = [*half, _bsrgan_jpeg, *half]
    for step in shuffled(steps, random) if chance(0.1, random) else steps:
        images = step(images, random=random).clamp(0, 1)
    images = resized(images, (height // scale, width // scale), one_of(_HOW, random))
    return eight_bits(_bsrgan_jpeg(images, random))


def _bsrgan_blur(images: Tensor, random: Generator, scale: int) -> Tensor:
    side = 2 * whole(2, 11, random) + 3
    if chance(0.5, random):  # variances along two axes
        first, second = (uniform(0.05, 4.0 + scale, random) ** 0.5 for _ in range(2))
        return filtered(images, bell(side, (first, second), uniform(0, math.pi, random)))
    sigma = uniform(0.05, 2.0 + 0.2 * scale, random)
    return filtered(images, bell(side, (sigma, sigma), 0))


def _bsrgan_resize(images: Tensor, random: Generator, scale: int) -> Tensor:
    kind = one_of(("larger", "smaller", "unchanged"), random, (0.2, 0.7, 0.1))
    ends = {"larger": (1.0, 2.0), "smaller": (0.5 / scale, 1.0), "unchanged": (1.0, 1.0)}[kind]
    size = (images.shape[-2], images.shape[-1])
    return resized(images, _times(size, uniform(*ends, random)), one_of(_HOW, random))


def _bsrgan_gaussian(images: Tensor, random: Generator) -> Tensor:
    return _three_kinds(images, torch.ones_like(images), random)


def _bsrgan_speckle(images: Tensor, random: Generator) -> Tensor:
    return _three_kinds(images, images, random) if chance(0.1, random) else images


def _three_kinds(images: Tensor, strength: Tensor, random: Generator) -> Tensor:
    """Add Gaussian noise times `strength`: independent by channel (0.4), grey (0.4), or correlated by channel (0.2)."""
    sigma = float(whole(2, 25, random))
    kind = one_of(("colour", "grey", "correlated"), random, (0.4, 0.4, 0.2))
    noise = gaussian_noise(torch.zeros_like(images), sigma, random, grey=kind == "grey")
    if kind == "correlated":
        channels = images.shape[1]
        mixing = torch.linalg.qr(torch.randn(channels, channels, generator=random)).Q
        shares = torch.rand(channels, generator=random).sqrt()
        noise = gaussian_noise(torch.zeros_like(images), 25, random)
        noise = torch.einsum("ij,vjhw->vihw", mixing * shares, noise)
    return images + strength * noise


def _bsrgan_poisson(images: Tensor, random: Generator) -> Tensor:
    if not chance(0.1, random):
        return images
    photons = 10 ** uniform(2, 4, random)
    return poisson_noise(eight_bits(images), photons, random, grey=chance(0.5, random))


def _bsrgan_jpeg(images: Tensor, random: Generator) -> Tensor:
    return jpeg(images, whole(30, 95, random))


def _times(size: Size, factor: float) -> Size:
    """Return a size times a factor, of at least a pixel."""
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


PRESETS: Mapping[str, Preset] = {
    "real-esrgan": Preset("two stages of blur, resize, noise and JPEG, as Real-ESRGAN trains", real_esrgan, 32),
    "bsrgan": Preset("shuffled blurs, resizes, noises and JPEG, as BSRGAN trains", bsrgan, 32),
}
"""Practical chains by name."""
