"""What a demo scene is made of, and how two cameras see it.

A layer is a piece of a photograph on a plane. Its point (u, y), in HR px as a camera midway between the two would see
it, has the disparity

    d(u, y) = d0 + du u + dv y,   and is seen at   x_left = u + d/2,   x_right = u - d/2,   so x_left = x_right + d.

This is linear in u, so what a camera sees at (x, y) is found in closed form: u = (x -+ (d0 + dv y)/2) / (1 +- du/2).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import DataError
from ..restoration.images import read_image

MAX_DISPARITY_PX = 40.0

# The two cameras: what share of the disparity each adds to u.
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
        """The u that a camera sees at column x of row y."""
        return (x - camera * (self.d0 + self.dv * y)) / (1 + camera * self.du)

    def disparity(self, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The disparity of the point (u, y)."""
        return self.d0 + self.du * u + self.dv * y


@dataclass(frozen=True)
class Outline:
    """A superellipse around (u, y), its radius modulated by waves: (number, amplitude, phase) over the angle.

    The half-axes are in HR px, the amplitudes in parts of the radius.
    """

    u: float
    y: float
    half_width: float
    half_height: float
    exponent: float
    waves: tuple[tuple[int, float, float], ...]

    @property
    def reach(self) -> float:
        """The most that the waves can enlarge the half-axes."""
        return 1 + sum(amplitude for _, amplitude, _ in self.waves)

    def coverage(self, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """How much of each pixel (rows, columns) is inside, 0..1: u for every pixel, y for every row."""
        across, down = (u - self.u) / self.half_width, (y - self.y) / self.half_height
        angle = torch.atan2(down, across)
        radius = (across.abs() ** self.exponent + down.abs() ** self.exponent) ** (1 / self.exponent)
        ripple = torch.ones_like(angle)
        for count, amplitude, phase in self.waves:
            ripple += amplitude * torch.cos(count * angle + phase)
        level = radius / ripple
        # To first order the distance to the outline in px; the slope is 0 only at the very centre, deep inside.
        by_row, by_column = torch.gradient(level)
        distance = (1 - level) / torch.hypot(by_row, by_column).clamp(min=1e-6)
        return (distance + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Layer:
    """A piece of photograph: HR px (u, y) show photograph px (left + minification u, top + minification y).

    `tint` multiplies R, G and B. A layer without outline fills the view.
    """

    photograph: str
    tint: tuple[float, float, float]
    minification: float
    left: float
    top: float
    plane: Plane
    outline: Outline | None


def render(layers: list[Layer], size_px: tuple[int, int], camera: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What a camera sees of layers that are ordered far to near.

    The first has no outline; the outlines of the others are centred inside the view.

    Returns:
        The view, uint8 (3, H, W), and its disparity, float32 (H, W) in HR px.
    """
    view, disparity = torch.zeros(3, *size_px), torch.zeros(size_px)
    for layer in layers:
        _paint(layer, view, disparity, camera, *_box(layer, size_px))
    return (view + 0.5).floor().clamp(0, 255).to(torch.uint8), disparity


def _paint(
    layer: Layer, view: torch.Tensor, disparity: torch.Tensor, camera: float, rows: range, columns: range
) -> None:
    """Lay the layer over these rows and columns of a view (float 0..255) and of its disparity, both in place."""
    y = torch.tensor(rows, dtype=torch.float32)[:, None]
    x = torch.tensor(columns, dtype=torch.float32)[None]
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
    inside = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
    view[:, *inside] += (colour - view[:, *inside]) * cover
    disparity[inside] = torch.where(cover >= 0.5, layer.plane.disparity(u, y), disparity[inside])


def _resample_rows(layer: Layer, y: torch.Tensor) -> torch.Tensor:
    """The tinted photograph resampled to the HR rows y (rows, 1): (3, rows, the photograph's width)."""
    pixels = photograph(layer.photograph) * torch.tensor(layer.tint)[:, None, None]
    have = torch.arange(pixels.shape[1])[None]
    weights = [_cubic(layer.top + layer.minification * (y + shift) - have) for shift in _SAMPLES]
    return torch.einsum("rh,chw->crw", sum(weights, torch.zeros(())) / len(_SAMPLES), pixels)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981, equation 4) with a = -0.5."""
    x = distance.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _box(layer: Layer, size_px: tuple[int, int]) -> tuple[range, range]:
    """The rows and columns of a view that the layer can touch, for either camera."""
    height, width = size_px
    outline = layer.outline
    if outline is None:
        return range(height), range(width)
    down = outline.half_height * outline.reach + 2
    across = outline.half_width * outline.reach + 2 + MAX_DISPARITY_PX / 2
    top, bottom = max(0, math.floor(outline.y - down)), min(height, math.ceil(outline.y + down))
    left, right = max(0, math.floor(outline.u - across)), min(width, math.ceil(outline.u + across))
    return range(top, bottom), range(left, right)


@functools.cache
def photograph(name: str) -> torch.Tensor:
    """A photograph of the installed scikit-image as float32 (3, H, W), 0..255; callers must not change it.

    Raises:
        DataError: scikit-image is not installed, or its release does not hold the file.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError("the demo scenes are made from scikit-image's photographs: pip install scikit-image")
    # Not through skimage.data: with pooch installed that would fetch what a release no longer ships.
    return read_image(Path(package.origin).parent / "data" / name).to(torch.float32)
