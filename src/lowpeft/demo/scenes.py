"""Stereo scenes without a download: layers cut from scikit-image's photographs, seen by two cameras.

Construction. A scene is a stack of layers, far to near: a background photograph that fills the view, and three to five
pieces cut from photographs along a smooth random outline, each with a slight random tint. A layer is a plane: its point (u, y), in HR px as a camera
midway between the two would see it, has the disparity

    d(u, y) = d0 + du u + dv y,   and is seen at   x_left = u + d/2,   x_right = u - d/2   (so x_left = x_right + d).

Both are linear in u, so what a camera sees at (x, y) is found in closed form: u = (x -+ (d0 + dv y)/2) / (1 +- du/2).
Every layer keeps to its own band of disparities, near above far, so that painting the layers far to near is the
correct order of occlusion at every pixel. All disparities lie in 0..40 HR px (`MAX_DISPARITY_PX`).

Detail. A photograph is shown at 1 to 1.5 of its own pixels per HR pixel and is never enlarged. Each camera takes 2x2
samples per HR pixel from the full-resolution photograph (Keys' cubic, a = -0.5) and averages them, as the area of a
sensor pixel does. The cameras sample at different sub-pixel places, so what is lost in one LR view is partly
kept in the other: this is what stereo super-resolution lives on. Outlines are anti-aliased over one HR pixel.

Held-out scenes. Training and test scenes are cut from different photographs (`PHOTOGRAPHS`): none is in both.
The photographs are read from the installed scikit-image package, never fetched.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lowpeft.errors import DataError
from lowpeft.images import read_image, write_image

Split = Literal["train", "test"]

MAX_DISPARITY_PX = 40.0
PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "chelsea.png", "rocket.jpg", "ihc.png", "grass.png", "brick.png"),
    "test": ("coffee.png", "motorcycle_left.png", "gravel.png", "camera.png"),
}

# HR px between neighbouring disparity bands, and of photograph around what a layer shows (the cubic reaches 2).
_GAP_PX = 1.0
_MARGIN_PX = 4
_MAX_MINIFICATION = 1.5
_SMALLEST_PX = (64, 128)
_LARGEST_PX = (384, 480)


@dataclass(frozen=True)
class DemoScene:
    """One stereo pair with its truth.

    Attributes:
        left: uint8 (3, H, W), RGB.
        right: uint8 (3, H, W), RGB.
        disparity: float32 (H, W) in HR px: what the left view shows at x, the right view shows at x - disparity,
            unless something nearer hides it there.
    """

    left: torch.Tensor
    right: torch.Tensor
    disparity: torch.Tensor


@dataclass(frozen=True)
class _Plane:
    """Disparity d0 + du u + dv y in HR px."""

    d0: float
    du: float
    dv: float

    def texture_column(self, x: torch.Tensor, y: torch.Tensor, camera: float) -> torch.Tensor:
        """The u that a camera (+0.5 left, -0.5 right) sees at column x of row y."""
        return (x - camera * (self.d0 + self.dv * y)) / (1 + camera * self.du)


@dataclass(frozen=True)
class _Outline:
    """A superellipse around (u, y) with half-axes in HR px, its radius modulated by a few waves of the angle."""

    u: float
    y: float
    half_width: float
    half_height: float
    exponent: float
    waves: tuple[tuple[int, float, float], ...]

    @property
    def reach(self) -> float:
        """The most that the waves enlarge the half-axes."""
        return 1 + sum(amplitude for _, amplitude, _ in self.waves)

    def coverage(self, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """How much of the pixel at (u, y) is inside, 0..1: (rows, columns)."""
        across, down = (u - self.u) / self.half_width, (y - self.y) / self.half_height
        angle = torch.atan2(down, across)
        radius = (across.abs() ** self.exponent + down.abs() ** self.exponent) ** (1 / self.exponent)
        ripple = 1 + sum(amplitude * torch.cos(count * angle + phase) for count, amplitude, phase in self.waves)
        level = radius / ripple
        # First-order distance to the outline in px; the slope is 0 only at the very centre, deep inside.
        by_row, by_column = torch.gradient(level)
        distance = (1 - level) / torch.hypot(by_row, by_column).clamp(min=1e-6)
        return (distance + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class _Layer:
    """A piece of photograph: HR px (u, y) show photograph px (left + minification u, top + minification y)."""

    photograph: str
    tint: tuple[float, float, float]
    minification: float
    left: float
    top: float
    plane: _Plane
    outline: _Outline | None


# ------------------------------------------------------------------------------------------------------------- API
def make_scene(seed: int, *, split: Split = "train", size_px: tuple[int, int] = (192, 384)) -> DemoScene:
    """The scene that belongs to a seed: the same on every call.

    Args:
        seed: any whole number; the same seed of the other split is an unrelated scene.
        split: which photographs to cut from; see `PHOTOGRAPHS`.
        size_px: height and width of a view in HR px.

    Raises:
        DataError: the split is unknown, the size is under 64x128 or larger than the photographs, or scikit-image is
            not installed.
    """
    if split not in PHOTOGRAPHS:
        raise DataError(f"there is no split {split!r} of the demo scenes; known: {', '.join(PHOTOGRAPHS)}")
    layers = _compose(random.Random(f"lowpeft-{split}-{seed}"), split, size_px)
    left, right = torch.zeros(3, *size_px), torch.zeros(3, *size_px)
    disparity = torch.zeros(size_px)
    for layer in layers:
        texture = _rows(layer, size_px[0])
        _paint(layer, texture, left, 0.5, disparity)
        _paint(layer, texture, right, -0.5, None)
    left, right = ((view + 0.5).floor().clamp(0, 255).to(torch.uint8) for view in (left, right))
    return DemoScene(left, right, disparity)


def train_scenes(n: int, *, size_px: tuple[int, int] = (192, 384)) -> tuple[DemoScene, ...]:
    """The first `n` training scenes; no test scene shows anything of their photographs. Raises as `make_scene`."""
    return tuple(make_scene(seed, split="train", size_px=size_px) for seed in range(n))


def test_scenes(n: int, *, size_px: tuple[int, int] = (192, 384)) -> tuple[DemoScene, ...]:
    """The first `n` held-out scenes; no training scene shows anything of their photographs. Raises as `make_scene`."""
    return tuple(make_scene(seed, split="test", size_px=size_px) for seed in range(n))


# The name is part of the API; pytest must not take it for a test where it is imported.
test_scenes.__test__ = False  # type: ignore[attr-defined]


def write_scenes(
    folder: str | os.PathLike[str],
    seeds: Iterable[int],
    *,
    split: Split = "train",
    size_px: tuple[int, int] = (192, 384),
) -> None:
    """Write scenes as `SPLIT_SEED_L.png` and `SPLIT_SEED_R.png`, which `lowpeft.data.find_scenes` reads.

    Raises:
        DataError: as `make_scene`, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}") from None
    for seed in seeds:
        scene = make_scene(seed, split=split, size_px=size_px)
        write_image(scene.left, folder / f"{split}_{seed:04d}_L.png")
        write_image(scene.right, folder / f"{split}_{seed:04d}_R.png")


# ----------------------------------------------------------------------------------------------------- composition
def _compose(rng: random.Random, split: Split, size_px: tuple[int, int]) -> list[_Layer]:
    """The layers of a scene, far to near."""
    pieces = rng.randint(3, 5)
    nearest = rng.uniform(0.5, 1.0) * MAX_DISPARITY_PX
    farthest = rng.uniform(0.15, 0.3) * nearest
    layers = [_background(rng, split, size_px, farthest)]
    band = (nearest - farthest) / pieces
    for rank in range(pieces):
        low = farthest + rank * band + _GAP_PX
        # Never on its own kind: grass cut out of grass has no visible outline.
        others = [name for name in PHOTOGRAPHS[split] if name not in (layers[0].photograph, layers[-1].photograph)]
        piece = _piece(rng, rng.choice(others), size_px, (low, low + band - _GAP_PX), (rank + 0.5) / pieces)
        layers.append(piece)
    return layers


def _background(rng: random.Random, split: Split, size_px: tuple[int, int], farthest: float) -> _Layer:
    """A photograph that fills both views, its disparity growing from top to bottom up to `farthest`."""
    height, width = size_px
    needed = (height + 2 * _MARGIN_PX, width + math.ceil(farthest) + 2 * _MARGIN_PX)
    room = {
        name: min(have / need for have, need in zip(_photograph(name).shape[1:], needed, strict=True))
        for name in PHOTOGRAPHS[split]
    }
    fitting = [name for name in PHOTOGRAPHS[split] if room[name] >= 1]
    if height < _SMALLEST_PX[0] or width < _SMALLEST_PX[1] or not fitting:
        raise DataError(
            f"cannot make a demo scene of {width}x{height} px: the photographs are not enlarged, so that "
            f"{_SMALLEST_PX[1]}x{_SMALLEST_PX[0]} to {_LARGEST_PX[1]}x{_LARGEST_PX[0]} px are possible"
        )
    name = rng.choice(fitting)
    minification = rng.uniform(1, min(room[name], _MAX_MINIFICATION))
    have = _photograph(name).shape[1:]
    top, left = (rng.uniform(0, h - n * minification) for h, n in zip(have, needed, strict=True))
    ramp = rng.uniform(0, 0.8) * farthest
    return _Layer(
        name,
        _tint(rng),
        minification,
        left + (_MARGIN_PX + farthest / 2) * minification,
        top + _MARGIN_PX * minification,
        _Plane(farthest - ramp, 0.0, ramp / (height - 1)),
        None,
    )


def _piece(
    rng: random.Random, name: str, size_px: tuple[int, int], band: tuple[float, float], nearness: float
) -> _Layer:
    """A foreground layer with disparities inside `band`; the nearer (0..1), the larger and the lower it is."""
    height, width = size_px
    photograph = _photograph(name)
    waves = tuple((count, rng.uniform(0, 0.25) / count, rng.uniform(0, 2 * math.pi)) for count in (2, 3, 5))
    reach = 1 + sum(amplitude for _, amplitude, _ in waves)
    minification = rng.uniform(1, _MAX_MINIFICATION)
    most = [side / minification / 2 / reach - 2 * _MARGIN_PX for side in photograph.shape[1:]]
    half_height = min(most[0], height * rng.uniform(0.14, 0.22) * (1 + nearness))
    half_width = min(most[1], width * rng.uniform(0.05, 0.12) * (1 + nearness))
    outline = _Outline(
        u=width * rng.uniform(0.05, 0.95),
        y=height * (0.25 + 0.5 * nearness + rng.uniform(-0.15, 0.15)),
        half_width=half_width,
        half_height=half_height,
        exponent=rng.uniform(2, 5),
        waves=waves,
    )
    shown = [(2 * reach * half + 2 * _MARGIN_PX) * minification for half in (half_height, half_width)]
    top, left = _busiest(rng, photograph, (shown[0], shown[1]))
    return _Layer(
        name,
        _tint(rng),
        minification,
        left + shown[1] / 2 - outline.u * minification,
        top + shown[0] / 2 - outline.y * minification,
        _slanted(rng, outline, band),
        outline,
    )


def _tint(rng: random.Random) -> tuple[float, float, float]:
    """Gains of R, G and B: some photographs are grey, and grey scenes alone would teach nothing about colour."""
    return rng.uniform(0.75, 1), rng.uniform(0.75, 1), rng.uniform(0.75, 1)


def _slanted(rng: random.Random, outline: _Outline, band: tuple[float, float]) -> _Plane:
    """A random plane that stays inside the band all over the outline's box."""
    half_range = (band[1] - band[0]) / 2
    slant, share = rng.uniform(0, 0.9) * half_range, rng.random()
    du = rng.choice((-1, 1)) * slant * share / (outline.half_width * outline.reach)
    dv = rng.choice((-1, 1)) * slant * (1 - share) / (outline.half_height * outline.reach)
    middle = (band[0] + band[1]) / 2 + rng.uniform(-1, 1) * (half_range - slant)
    return _Plane(middle - du * outline.u - dv * outline.y, du, dv)


def _busiest(rng: random.Random, photograph: torch.Tensor, shown: tuple[float, float]) -> tuple[float, float]:
    """The (top, left) of the more detailed of two random rectangles: a piece of blank sky teaches nothing."""
    corners = [
        tuple(rng.uniform(0, have - need) for have, need in zip(photograph.shape[1:], shown, strict=True))
        for _ in range(2)
    ]
    height, width = (int(side) for side in shown)

    def detail(corner: tuple[float, ...]) -> float:
        top, left = (int(place) for place in corner)
        return float(photograph[:, top : top + height, left : left + width].diff(dim=-1).abs().mean())

    top, left = max(corners, key=detail)
    return top, left


# ------------------------------------------------------------------------------------------------------- rendering
def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = distance.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _rows(layer: _Layer, height: int) -> torch.Tensor:
    """The layer's photograph resampled to HR rows: (3, height, photograph's width). Both cameras share the rows."""
    photograph = _photograph(layer.photograph)
    rows, have = torch.arange(height)[:, None], torch.arange(photograph.shape[1])[None]
    samples = [_cubic(layer.top + layer.minification * (rows + shift) - have) for shift in (-0.25, 0.25)]
    tinted = photograph * torch.tensor(layer.tint)[:, None, None]
    return torch.einsum("rh,chw->crw", (samples[0] + samples[1]) / 2, tinted)


def _paint(
    layer: _Layer, texture: torch.Tensor, view: torch.Tensor, camera: float, disparity: torch.Tensor | None
) -> None:
    """Lay the layer over a view (3, H, W, float 0..255, changed in place), and over its disparity map."""
    rows, columns = _box(layer, view, camera)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    y = torch.arange(rows.start, rows.stop, dtype=torch.float32)[:, None]
    x = torch.arange(columns.start, columns.stop, dtype=torch.float32)[None]
    u = layer.plane.texture_column(x, y, camera)
    cover = torch.ones_like(u) if layer.outline is None else layer.outline.coverage(u, y)
    colour = torch.zeros(3, *u.shape)
    for shift in (-0.25, 0.25):
        place = layer.left + layer.minification * layer.plane.texture_column(x + shift, y, camera)
        first = place.floor() - 1
        for tap in range(4):
            column = (first + tap).long().clamp(0, texture.shape[-1] - 1).expand(3, -1, -1)
            colour += texture[:, rows].gather(-1, column) * _cubic(place - first - tap) / 2
    target = view[:, rows, columns]
    target += (colour - target) * cover
    if disparity is not None:
        here = layer.plane.d0 + layer.plane.du * u + layer.plane.dv * y
        disparity[rows, columns] = torch.where(cover >= 0.5, here, disparity[rows, columns])


def _box(layer: _Layer, view: torch.Tensor, camera: float) -> tuple[slice, slice]:
    """The rows and columns of a view that the layer can touch."""
    height, width = view.shape[1:]
    outline = layer.outline
    if outline is None:
        return slice(0, height), slice(0, width)
    half_width, half_height = outline.half_width * outline.reach + 2, outline.half_height * outline.reach + 2
    reach = half_width + MAX_DISPARITY_PX / 2
    top, bottom = math.floor(outline.y - half_height), math.ceil(outline.y + half_height)
    left, right = math.floor(outline.u - reach), math.ceil(outline.u + reach)
    return slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right))


@functools.cache
def _photograph(name: str) -> torch.Tensor:
    """A photograph of the installed scikit-image as float32 (3, H, W), 0..255."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError("the demo scenes are made from scikit-image's photographs: pip install scikit-image")
    # Not through skimage.data: with pooch installed that would fetch a file which a release no longer ships.
    return read_image(Path(package.origin).parent / "data" / name).to(torch.float32)
