"""Layers of a demo scene, and their rendering by two cameras.

A layer is a piece of a photograph on a plane. Let (u, y) be a point of it, in HR px as seen by a camera midway between
the two. The point has the disparity

    d(u, y) = d0 + du u + dv y,   and is seen at   x_left = u + d/2,   x_right = u - d/2,   so x_left = x_right + d.

This is linear in u, so the point seen at (x, y) has a closed form: u = (x -+ (d0 + dv y)/2) / (1 +- du/2), with the
upper signs for the left camera.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import DataError
from ...restoration.images import read_image

MAX_DISPARITY_PX = 40.0

# The two cameras: share of the disparity that each adds to u.
LEFT, RIGHT = 0.5, -0.5

# Each HR pixel averages 2x2 samples, a quarter pixel off its centre.
_SAMPLES = (-0.25, 0.25)


@dataclass(frozen=True)
class Plane:
    """Disparity d0 + du u + dv y in HR px."""

    d0: float
    du: float
    dv: float

    def column(self, x: torch.Tensor, y: torch.Tensor, camera: float) -> torch.Tensor:
        """Return the u that a camera sees at column x of row y."""
        return (x - camera * (self.d0 + self.dv * y)) / (1 + camera * self.du)

    def disparity(self, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the disparity of the point (u, y) in HR px."""
        return self.d0 + self.du * u + self.dv * y


@dataclass(frozen=True)
class Outline:
    """A superellipse around (u, y) with a wavy radius.

    Half-axes are in HR px. Each wave is (number of periods per turn, amplitude as a fraction of the radius, phase).
    """

    u: float
    y: float
    half_width: float
    half_height: float
    exponent: float
    waves: tuple[tuple[int, float, float], ...]

    @property
    def reach(self) -> float:
        """Largest factor by which the waves can enlarge the half-axes."""
        return 1 + sum(amplitude for _, amplitude, _ in self.waves)

    def coverage(self, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the fraction of each pixel inside, (rows, columns), 0..1, from u of every pixel and y of every row."""
        across, down = (u - self.u) / self.half_width, (y - self.y) / self.half_height
        angle = torch.atan2(down, across)
        radius = (across.abs() ** self.exponent + down.abs() ** self.exponent) ** (1 / self.exponent)
        ripple = torch.ones_like(angle)
        for count, amplitude, phase in self.waves:
            ripple += amplitude * torch.cos(count * angle + phase)
        level = radius / ripple
        # First-order distance to the outline in px. The slope is 0 only at the centre, which is far inside.
        by_row, by_column = torch.gradient(level)
        distance = (1 - level) / torch.hypot(by_row, by_column).clamp(min=1e-6)
        return (distance + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class PhotoLayer:
    """A piece of a photograph: HR px (u, y) shows photograph px (left + minification u, top + minification y).

    `tint` multiplies R, G and B. A layer without outline fills the view.
    """

    photograph: str
    tint: tuple[float, float, float]
    minification: float
    left: float
    top: float
    plane: Plane
    outline: Outline | None


def render(layers: list[PhotoLayer], size_px: tuple[int, int], camera: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Render the view of one camera from layers ordered far to near.

    The first layer must have no outline; the outlines of the others must be centred inside the view.

    Returns:
        View, uint8 (3, H, W), and its disparity, float32 (H, W) in HR px.
    """
    view, disparity = torch.zeros(3, *size_px), torch.zeros(size_px)
    for layer in layers:
        _paint(layer, view, disparity, camera)
    return (view + 0.5).floor().clamp(0, 255).to(torch.uint8), disparity


def _paint(layer: PhotoLayer, view: torch.Tensor, disparity: torch.Tensor, camera: float) -> None:
    """Paint the layer over a view (float 0..255) and its disparity, both in place."""
    rows, columns = box = _touched(layer, view.shape[1:])
    y = torch.arange(rows.start, rows.stop, dtype=torch.float32)[:, None]
    x = torch.arange(columns.start, columns.stop, dtype=torch.float32)[None]
    texture = _resample_rows(layer, y)
    u = layer.plane.column(x, y, camera)
    cover = torch.ones_like(u) if layer.outline is None else layer.outline.coverage(u, y)
    colour = torch.zeros(3, *u.shape)
    for shift in _SAMPLES:
        place = layer.left + layer.minification * layer.plane.column(x + shift, y, camera)
        first = place.floor() - 1
        for tap in range(4):
            column = (first + tap).long().clamp(0, texture.shape[-1] - 1).expand(3, -1, -1)
            colour += texture.gather(-1, column) * _cubic(place - first - tap) / len(_SAMPLES)
    view[:, *box] += (colour - view[:, *box]) * cover
    disparity[box] = torch.where(cover >= 0.5, layer.plane.disparity(u, y), disparity[box])


def _touched(layer: PhotoLayer, size_px: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of a view that the layer can touch, for either camera."""
    height, width = size_px
    if (outline := layer.outline) is None:
        return slice(0, height), slice(0, width)
    down = outline.half_height * outline.reach + 2
    across = outline.half_width * outline.reach + 2 + MAX_DISPARITY_PX / 2
    return (
        slice(max(0, math.floor(outline.y - down)), min(height, math.ceil(outline.y + down))),
        slice(max(0, math.floor(outline.u - across)), min(width, math.ceil(outline.u + across))),
    )


def _resample_rows(layer: PhotoLayer, y: torch.Tensor) -> torch.Tensor:
    """Return the tinted photograph resampled to the HR rows y (rows, 1): (3, rows, photograph width)."""
    pixels = photograph(layer.photograph) * torch.tensor(layer.tint)[:, None, None]
    have = torch.arange(pixels.shape[1])[None]
    above, below = (_cubic(layer.top + layer.minification * (y + shift) - have) for shift in _SAMPLES)
    return torch.einsum("rh,chw->crw", (above + below) / len(_SAMPLES), pixels)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Return Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981, equation 4) with a = -0.5."""
    x = distance.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@functools.cache
def photograph(name: str) -> torch.Tensor:
    """Read a photograph of the installed scikit-image as float32 (3, H, W), 0..255. It is cached: do not modify it.

    Raises:
        DataError: scikit-image is not installed, or its release does not contain the file.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError("the demo scenes are made from scikit-image's photographs: pip install scikit-image")
    # skimage.data is avoided: with pooch installed, it would download files that a release no longer contains.
    return read_image(Path(package.origin).parent / "data" / name).to(torch.float32)
