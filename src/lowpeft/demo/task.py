"""The demo's task: super-resolution of pairs from two noisy cameras, and the crops and scenes for it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import DataError
from ..recipes import TrainSettings
from ..restoration.data import Scene, find_scenes, load_example
from ..restoration.images import make_folder, to_float, to_uint8, write_image
from .scenes import write_scenes

TRAIN_SCENES, TEST_SCENES = 24, 4
NOISE = 10 / 255
"""Standard deviation of the Gaussian noise on the LR views (values 0..1); independent in the two views."""
SETTINGS = TrainSettings(
    steps=240,
    batch=2,
    crop_height_px=48,
    crop_width_px=160,
    learning_rate=3e-3,
    betas=(0.9, 0.99),
    warmup_steps=10,
    clip_norm=0.1,
    calibration=8,
)


def training_scenes(folder: Path, scale: int) -> Sequence[Scene]:
    """Write the built-in training scenes and their noisy LR views."""
    write_scenes(folder / "scenes" / "train", range(TRAIN_SCENES))
    return noisy(find_scenes(folder / "scenes" / "train"), folder / "noisy_lr" / "train", scale)


def unseen_scenes(folder: Path, scale: int, *, count: int = TEST_SCENES) -> Sequence[Scene]:
    """Write the built-in held-out scenes, which share no photograph with the training scenes, and their noisy views."""
    write_scenes(folder / "scenes" / "test", range(count), split="test")
    return noisy(find_scenes(folder / "scenes" / "test")[:count], folder / "noisy_lr" / "test", scale)


def own_scenes(data: str | Path, folder: Path, scale: int, *, train: bool) -> tuple[Sequence[Scene], Sequence[Scene]]:
    """Return the user's pairs with noisy LR views: those for training, and those to measure on.

    With `train` every fifth is held out; otherwise all are measured.

    Raises:
        DataError: The folder cannot be read, or has only one pair and `train` is set.
    """
    scenes = noisy(find_scenes(data, scale=scale), folder / "noisy_lr", scale)
    if not train:
        return (), scenes
    if len(scenes) < 2:
        raise DataError(f"{data} has only one pair; give two or more: some for training, the others for measuring")
    return tuple(scene for number, scene in enumerate(scenes) if number % 5), scenes[::5]


def noisy(scenes: Sequence[Scene], folder: Path, scale: int) -> tuple[Scene, ...]:
    """Write noisy 8-bit LR views of the scenes, and return the scenes with these as LR files.

    Scenes without LR files get LR views by MATLAB's bicubic first. The noise of a scene depends only on its name.
    """
    make_folder(folder)
    results = []
    for scene in scenes:
        example = load_example(scene, scale)
        generator = torch.Generator().manual_seed(zlib.crc32(scene.name.encode()))
        paths = [folder / f"{scene.name}_{side}.png" for side in "LR"]
        for view, path in zip(example.lr, paths, strict=True):
            noise = NOISE * torch.randn(view.shape, generator=generator, device="cpu")
            write_image(to_uint8((to_float(view) + noise).clamp(0, 1)), path)
        results.append(replace(scene, lr=tuple(paths)))
    return tuple(results)
