"""Smoke runs: experiments with tiny networks, few steps and synthetic scenes, without any data or weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ...demo import write_scenes
from ..experiments import Experiment, Row
from .networks import tiny_network

SCENE_PX = (192, 256)
"""Height and width of a synthetic scene; large enough for IPT's crop at x4 (192x192)."""

STEPS = 2
LR_CROP_PX = {"ipt": 48}
"""Side of the LR crop by family, 16 for the others; IPT takes no other size."""


def smoke_experiment(experiment: Experiment) -> Experiment:
    """Return the experiment with few training steps and small crops in every row; the paper's figures are kept."""

    def shrunk(row: Row) -> Row:
        side = LR_CROP_PX.get(row.network, 16) * row.scale
        crop = {"crop_height_px": side, "crop_width_px": side}
        return row.trained_with({"steps": STEPS, "batch": 1, "warmup_steps": 0, "save_every_steps": 0, **crop})

    return dataclasses.replace(experiment, rows=tuple(map(shrunk, experiment.rows)))


def write_smoke_weights(experiment: Experiment, folder: Path) -> None:
    """Write a tiny network with random weights for every checkpoint that the rows name; existing files are kept.

    Raises:
        LowpeftError: There is no tiny network for a row's family or architecture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row in experiment.rows:
        path = folder / row.weights
        if not path.exists():
            torch.save(tiny_network(row).state_dict(), path)


def write_smoke_scenes(folder: Path, sets: tuple[str, ...]) -> tuple[Path, dict[str, Path]]:
    """Write two training scenes and one scene for each test set; existing folders are kept.

    Returns:
        The folder of training scenes, and the folder of each test set by name.
    """
    training, tests = folder / "train", {name: folder / name for name in sets}
    if not training.exists():
        write_scenes(training, range(2), size_px=SCENE_PX)
    for seed, path in enumerate(tests.values()):
        if not path.exists():
            write_scenes(path, [seed], split="test", size_px=SCENE_PX)
    return training, tests
