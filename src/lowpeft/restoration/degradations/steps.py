"""Table of the steps of a degradation: what each is called, which values it takes, and what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Generator, Tensor

from ..images import matlab_downscale
from . import operations


@dataclass(frozen=True)
class Step:
    """One row of the table.

    Attributes:
        text: Description for help and documentation; it begins with the meaning of the value.
        call: Function from images (V,C,H,W), float, a value and a generator to degraded images.
        least: Smallest value.
        most: Largest value.
        whole: True if values are whole numbers.
        fixed: True if there can be no range of values.
        valued: False for a step without a value.
        reach: Function from a value to the distance in px at which a pixel can change the result.
    """

    text: str
    call: Callable[[Tensor, float, Generator], Tensor]
    least: float = 0
    most: float = math.inf
    whole: bool = False
    fixed: bool = False
    valued: bool = True
    reach: Callable[[float], int] = lambda value: 0


STEPS: Mapping[str, Step] = {
    "noise": Step(
        "standard deviation of white Gaussian noise, on 0..255; neither clipped nor rounded, as in the literature",
        operations.gaussian_noise,
        most=255,
    ),
    "poisson": Step(
        "mean number of photons in a white pixel: shot noise; neither clipped nor rounded",
        operations.poisson_noise,
        least=1,
        most=1e6,
    ),
    "blur": Step(
        "standard deviation of a Gaussian blur, in px",
        lambda images, value, random: operations.gaussian_blur(images, value),
        most=100,
        reach=lambda value: math.ceil(4 * value),
    ),
    "jpeg": Step(
        "quality of JPEG compression, by Pillow with chroma at half the resolution",
        lambda images, value, random: operations.jpeg(images, int(value)),
        least=1,
        most=95,
        whole=True,
        reach=lambda value: 16,
    ),
    "down": Step(
        "factor of MATLAB's bicubic downscaling",
        lambda images, value, random: matlab_downscale(images, int(value)),
        least=2,
        most=64,
        whole=True,
        fixed=True,
        reach=lambda value: 2 * int(value),
    ),
    "8bit": Step(
        "clip and round to 8 bits, as in a file",
        lambda images, value, random: operations.eight_bits(images),
        valued=False,
    ),
}
"""Steps by name."""
