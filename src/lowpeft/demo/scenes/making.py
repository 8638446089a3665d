"""Demo scenes of a seed: their random layers, the rendered pair, and files."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from ...errors import DataError
from ...restoration.images import make_folder, write_image
from .layers import LEFT, MAX_DISPARITY_PX, RIGHT, Outline, PhotoLayer, Plane, photograph, render

Split = Literal["train", "test"]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "chelsea.png", "rocket.jpg", "ihc.png", "grass.png", "brick.png"),
    "test": ("coffee.png", "motorcycle_left.png", "gravel.png", "camera.png"),
}

# Gap between the disparity bands of two layers, and margin of photograph around a layer (the cubic needs 2), in HR px.
_GAP_PX = 0.5
_MARGIN_PX = 4
_MINIFICATION = (1.2, 1.6)
# Smaller views cannot show these disparities; larger views could not be filled by a photograph of each split.
_SMALLEST_PX, _LARGEST_PX = (64, 128), (384, 480)


@dataclass(frozen=True)
class DemoScene:
    """One stereo pair with its true disparity.

    Attributes:
        left: Left view, uint8 (3, H, W), RGB.
        right: Right view, uint8 (3, H, W), RGB.
        disparity: Disparity of the left view in HR px, float32 (H, W). The point at x in the left view is at
            x - disparity in the right view, unless a nearer layer hides it there.
    """

    left: torch.Tensor
    right: torch.Tensor
    disparity: torch.Tensor


def make_scene(seed: int, *, split: Split = "train", size_px: tuple[int, int] = (192, 384)) -> DemoScene:
    """Make the scene of a seed; every call with the same arguments gives the same scene.

    Args:
        seed: Any whole number; the same seed gives unrelated scenes in the two splits.
        split: Set of photographs to cut from; see `PHOTOGRAPHS`.
        size_px: Height and width of a view in HR px, from 64x128 to 384x480.

    Raises:
        DataError: The split is unknown, the size is out of range, or scikit-image is not installed.
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
    """Make the first `n` training scenes; no test scene uses their photographs. Raises like `make_scene`."""
    return tuple(make_scene(seed, split="train", size_px=size_px) for seed in range(n))


def held_out_scenes(n: int, *, size_px: tuple[int, int] = (192, 384)) -> tuple[DemoScene, ...]:
    """Make the first `n` held-out scenes; no training scene uses their photographs. Raises like `make_scene`."""
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
        DataError: The folder cannot be written, or for the reasons that `make_scene` lists.
    """
    folder = make_folder(folder)
    for seed in seeds:
        scene = make_scene(seed, split=split, size_px=size_px)
        write_image(scene.left, folder / f"{split}_{seed:04d}_L.png")
        write_image(scene.right, folder / f"{split}_{seed:04d}_R.png")


def _compose(rng: random.Random, split: Split, size_px: tuple[int, int]) -> list[PhotoLayer]:
    """Return the random layers of a scene, far to near."""
    pieces = rng.randint(3, 5)
    nearest = rng.uniform(0.5, 1.0) * MAX_DISPARITY_PX
    farthest = rng.uniform(0.15, 0.3) * nearest
    layers = [_background(rng, split, size_px, farthest)]
    band = (nearest - farthest) / pieces
    for rank in range(pieces):
        low = farthest + rank * band + _GAP_PX
        # Exclude the photographs of the background and the last piece: grass on grass has no visible outline.
        others = [name for name in PHOTOGRAPHS[split] if name not in (layers[0].photograph, layers[-1].photograph)]
        nearness = (rank + 0.5) / pieces
        layers.append(_piece(rng, rng.choice(others), size_px, (low, low + band - _GAP_PX), nearness))
    return layers


def _background(rng: random.Random, split: Split, size_px: tuple[int, int], farthest: float) -> PhotoLayer:
    """Return a layer that fills both views; its disparity grows from top to bottom up to `farthest`."""
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
    return PhotoLayer(
        photograph=name,
        tint=_tint(rng),
        minification=minification,
        # At x = 0 the right camera sees u >= 0; the left camera sees u down to -farthest / 2.
        left=left + (_MARGIN_PX + farthest / 2) * minification,
        top=top + _MARGIN_PX * minification,
        plane=Plane(farthest - ramp, 0.0, ramp / (height - 1)),
        outline=None,
    )


def _piece(
    rng: random.Random, name: str, size_px: tuple[int, int], band: tuple[float, float], nearness: float
) -> PhotoLayer:
    """Return a foreground layer with disparities inside `band`; larger `nearness` (0..1) makes it larger and lower."""
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
    # Take the more detailed of two random places: a piece of blank sky is useless for training.
    places = [_place(rng, name, (shown_height, shown_width)) for _ in range(2)]
    top, left = max(places, key=lambda place: _detail(name, place, (shown_height, shown_width)))
    return PhotoLayer(
        photograph=name,
        tint=_tint(rng),
        minification=minification,
        left=left + shown_width / 2 - outline.u * minification,
        top=top + shown_height / 2 - outline.y * minification,
        plane=_slanted(rng, outline, band),
        outline=outline,
    )


def _slanted(rng: random.Random, outline: Outline, band: tuple[float, float]) -> Plane:
    """Return a random plane whose disparity stays inside the band everywhere in the outline's bounding box."""
    half_range = (band[1] - band[0]) / 2
    slant, share = rng.uniform(0, 0.9) * half_range, rng.random()
    du = rng.choice((-1, 1)) * slant * share / (outline.half_width * outline.reach)
    dv = rng.choice((-1, 1)) * slant * (1 - share) / (outline.half_height * outline.reach)
    middle = (band[0] + band[1]) / 2 + rng.uniform(-1, 1) * (half_range - slant)
    return Plane(middle - du * outline.u - dv * outline.y, du, dv)


def _tint(rng: random.Random) -> tuple[float, float, float]:
    """Return random gains of R, G and B, so that grey photographs give coloured scenes too."""
    return rng.uniform(0.8, 1), rng.uniform(0.8, 1), rng.uniform(0.8, 1)


def _place(rng: random.Random, name: str, shown: tuple[float, float]) -> tuple[float, float]:
    """Return a random (top, left) of a rectangle (height, width) inside the photograph, all in photograph px."""
    height, width = photograph(name).shape[1:]
    return rng.uniform(0, height - shown[0]), rng.uniform(0, width - shown[1])


def _detail(name: str, place: tuple[float, float], shown: tuple[float, float]) -> float:
    """Return the mean absolute difference of horizontal neighbours in a rectangle of the photograph."""
    top, left, height, width = (int(value) for value in (*place, *shown))
    return float(photograph(name)[:, top : top + height, left : left + width].diff(dim=-1).abs().mean())
