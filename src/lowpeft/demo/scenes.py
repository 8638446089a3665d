"""Stereo scenes without a download: layers cut from scikit-image's photographs, seen by two cameras.

Construction. A scene is a stack of layers, far to near: a background photograph that fills the view, its disparity
growing from top to bottom, and three to five pieces cut from photographs along a smooth random outline, each on a
slanted plane and with a slight random tint. Every layer keeps to its own band of disparities, near above far, so that
painting the layers far to near is the right order of occlusion at every pixel. All disparities lie in 0..40 HR px
(`MAX_DISPARITY_PX`) and are positive: x_left = x_right + d. The geometry is in `lowpeft.demo.layers`.

Detail. A photograph is shown at 1.2 to 1.6 of its own pixels per HR pixel (a background at fewer where it would not
fill the view) and is never enlarged; from 1.2 on the views are as sharp, pixel for pixel, as the photographs. Each
camera takes 2x2 samples per HR pixel from the full-resolution photograph (Keys' cubic, a = -0.5) and averages them, as
the area of a sensor pixel does. The cameras sample at different sub-pixel places, so part of what one LR view lost is
in the other: this is what stereo super-resolution lives on. Outlines are anti-aliased over one HR pixel.

Held-out scenes. Training and test scenes are cut from different photographs (`PHOTOGRAPHS`): none is in both.
The photographs are read from the installed scikit-image package, never fetched.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import DataError
from ..restoration.images import make_folder, write_image
from .layers import LEFT, MAX_DISPARITY_PX, RIGHT, Layer, Outline, Plane, photograph, render

Split = Literal["train", "test"]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "chelsea.png", "rocket.jpg", "ihc.png", "grass.png", "brick.png"),
    "test": ("coffee.png", "motorcycle_left.png", "gravel.png", "camera.png"),
}

# HR px between the disparity bands of two layers, and of photograph around what a layer shows (the cubic reaches 2).
_GAP_PX = 0.5
_MARGIN_PX = 4
_MINIFICATION = (1.2, 1.6)
# Smaller views hold no scene of such disparities; larger ones no photograph of both splits fills.
_SMALLEST_PX, _LARGEST_PX = (64, 128), (384, 480)


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


# ------------------------------------------------------------------------------------------------------------- API
def make_scene(seed: int, *, split: Split = "train", size_px: tuple[int, int] = (192, 384)) -> DemoScene:
    """The scene that belongs to a seed: the same on every call.

    Args:
        seed: any whole number; the same seed of the other split is an unrelated scene.
        split: which photographs to cut from; see `PHOTOGRAPHS`.
        size_px: height and width of a view in HR px, 64x128 to 384x480.

    Raises:
        DataError: the split is unknown, the size is out of range, or scikit-image is not installed.
    """
    if split not in PHOTOGRAPHS:
        raise DataError(f"there is no split {split!r} of the demo scenes; known: {', '.join(PHOTOGRAPHS)}")
    if any(not least <= side <= most for least, side, most in zip(_SMALLEST_PX, size_px, _LARGEST_PX, strict=True)):
        raise DataError(
            f"cannot make a demo scene of {size_px[1]}x{size_px[0]} px: photographs are never enlarged, so sizes from "
            f"{_SMALLEST_PX[1]}x{_SMALLEST_PX[0]} to {_LARGEST_PX[1]}x{_LARGEST_PX[0]} px are possible"
        )
    layers = _compose(random.Random(f"lowpeft-{split}-{seed}"), split, size_px)
    left, disparity = render(layers, size_px, LEFT)
    right, _ = render(layers, size_px, RIGHT)
    return DemoScene(left, right, disparity)


def train_scenes(n: int, *, size_px: tuple[int, int] = (192, 384)) -> tuple[DemoScene, ...]:
    """The first `n` training scenes; no test scene shows anything of their photographs. Raises as `make_scene`."""
    return tuple(make_scene(seed, split="train", size_px=size_px) for seed in range(n))


def held_out_scenes(n: int, *, size_px: tuple[int, int] = (192, 384)) -> tuple[DemoScene, ...]:
    """The first `n` held-out scenes; no training scene shows anything of their photographs. Raises as `make_scene`."""
    return tuple(make_scene(seed, split="test", size_px=size_px) for seed in range(n))


def write_scenes(
    folder: str | os.PathLike[str],
    seeds: Iterable[int],
    *,
    split: Split = "train",
    size_px: tuple[int, int] = (192, 384),
) -> None:
    """Write scenes as `SPLIT_SEED_L.png` and `SPLIT_SEED_R.png`, which `lowpeft.restoration.data.find_scenes` reads.

    Raises:
        DataError: as `make_scene`, or the folder cannot be written.
    """
    folder = make_folder(folder)
    for seed in seeds:
        scene = make_scene(seed, split=split, size_px=size_px)
        write_image(scene.left, folder / f"{split}_{seed:04d}_L.png")
        write_image(scene.right, folder / f"{split}_{seed:04d}_R.png")


# ----------------------------------------------------------------------------------------------------- composition
def _compose(rng: random.Random, split: Split, size_px: tuple[int, int]) -> list[Layer]:
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
        nearness = (rank + 0.5) / pieces
        layers.append(_piece(rng, rng.choice(others), size_px, (low, low + band - _GAP_PX), nearness))
    return layers


def _background(rng: random.Random, split: Split, size_px: tuple[int, int], farthest: float) -> Layer:
    """A photograph that fills both views, its disparity growing from top to bottom up to `farthest`."""
    height, width = size_px
    needed = (height + 2 * _MARGIN_PX, width + math.ceil(farthest) + 2 * _MARGIN_PX)
    room = {
        name: min(have / need for have, need in zip(photograph(name).shape[1:], needed, strict=True))
        for name in PHOTOGRAPHS[split]
    }
    name = rng.choice([name for name in PHOTOGRAPHS[split] if room[name] >= 1])
    minification = rng.uniform(*(min(room[name], bound) for bound in _MINIFICATION))
    top, left = _place(rng, name, (needed[0] * minification, needed[1] * minification))
    ramp = rng.uniform(0, 0.8) * farthest
    return Layer(
        photograph=name,
        tint=_tint(rng),
        minification=minification,
        # The right camera sees u from 0, the left one from half a disparity before.
        left=left + (_MARGIN_PX + farthest / 2) * minification,
        top=top + _MARGIN_PX * minification,
        plane=Plane(farthest - ramp, 0.0, ramp / (height - 1)),
        outline=None,
    )


def _piece(
    rng: random.Random, name: str, size_px: tuple[int, int], band: tuple[float, float], nearness: float
) -> Layer:
    """A foreground layer with disparities inside `band`; the nearer (0..1), the larger and the lower it is."""
    height, width = size_px
    waves = tuple((count, rng.uniform(0, 0.25) / count, rng.uniform(0, 2 * math.pi)) for count in (2, 3, 5))
    reach = 1 + sum(amplitude for _, amplitude, _ in waves)
    minification = rng.uniform(*_MINIFICATION)
    most = [side / minification / 2 / reach - 2 * _MARGIN_PX for side in photograph(name).shape[1:]]
    outline = Outline(
        u=width * rng.uniform(0.05, 0.95),
        y=height * (0.25 + 0.5 * nearness + rng.uniform(-0.15, 0.15)),
        half_width=min(most[1], width * rng.uniform(0.05, 0.12) * (1 + nearness)),
        half_height=min(most[0], height * rng.uniform(0.14, 0.22) * (1 + nearness)),
        exponent=rng.uniform(2, 5),
        waves=waves,
    )
    halves = (outline.half_height, outline.half_width)
    shown_height, shown_width = (2 * (reach * half + _MARGIN_PX) * minification for half in halves)
    # The more detailed of two places: a piece of blank sky teaches nothing.
    places = [_place(rng, name, (shown_height, shown_width)) for _ in range(2)]
    top, left = max(places, key=lambda place: _detail(name, place, (shown_height, shown_width)))
    return Layer(
        photograph=name,
        tint=_tint(rng),
        minification=minification,
        left=left + shown_width / 2 - outline.u * minification,
        top=top + shown_height / 2 - outline.y * minification,
        plane=_slanted(rng, outline, band),
        outline=outline,
    )


def _slanted(rng: random.Random, outline: Outline, band: tuple[float, float]) -> Plane:
    """A random plane that stays inside the band all over the outline's box."""
    half_range = (band[1] - band[0]) / 2
    slant, share = rng.uniform(0, 0.9) * half_range, rng.random()
    du = rng.choice((-1, 1)) * slant * share / (outline.half_width * outline.reach)
    dv = rng.choice((-1, 1)) * slant * (1 - share) / (outline.half_height * outline.reach)
    middle = (band[0] + band[1]) / 2 + rng.uniform(-1, 1) * (half_range - slant)
    return Plane(middle - du * outline.u - dv * outline.y, du, dv)


def _tint(rng: random.Random) -> tuple[float, float, float]:
    """Gains of R, G and B: some photographs are grey, and grey scenes alone would teach nothing about colour."""
    return rng.uniform(0.8, 1), rng.uniform(0.8, 1), rng.uniform(0.8, 1)


def _place(rng: random.Random, name: str, shown: tuple[float, float]) -> tuple[float, float]:
    """A random (top, left) of a rectangle (height, width) inside the photograph, all in the photograph's px."""
    height, width = photograph(name).shape[1:]
    return rng.uniform(0, height - shown[0]), rng.uniform(0, width - shown[1])


def _detail(name: str, place: tuple[float, float], shown: tuple[float, float]) -> float:
    """The mean step between horizontal neighbours in a rectangle of the photograph."""
    top, left, height, width = (int(value) for value in (*place, *shown))
    return float(photograph(name)[:, top : top + height, left : left + width].diff(dim=-1).abs().mean())
