"""Tiny networks and synthetic scenes, so that experiments can be run completely without data or weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ...demo import write_scenes
from ...errors import LowpeftError
from ...recipes import TrainSettings
from ..experiments import Experiment, Row

SCENE_PX = (192, 256)
"""Height and width of a synthetic scene; large enough for IPT's crop at x4 (192x192)."""

STEPS = 2
LR_CROP_PX = 16
GROUPS = 12
"""Number of groups, that of HAT-L, so that recipes with different numbers of stereo adapters differ here too."""


def smoke_experiment(experiment: Experiment) -> Experiment:
    """Return the experiment with few training steps and small crops in every row; the paper's figures are kept."""

    def shrunk(row: Row) -> Row:
        settings = row.recipe.training
        side = 48 if row.family == "ipt" else LR_CROP_PX
        small: TrainSettings = dataclasses.replace(
            settings,
            steps=STEPS,
            batch=1,
            crop_height_px=side * row.scale,
            crop_width_px=side * row.scale,
            warmup_steps=0,
            save_every_steps=0,
        )
        return dataclasses.replace(row, recipe=dataclasses.replace(row.recipe, training=small))

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


def tiny_network(row: Row) -> nn.Module:
    """Build a tiny network of the row's family and scale, with random weights.

    Raises:
        LowpeftError: There is no tiny network for the row's family or architecture.
    """
    if row.network not in _TINY:
        raise LowpeftError(f"there is no tiny {row.network}; known: {', '.join(_TINY)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _TINY[row.network](row.scale)


def write_smoke_scenes(folder: Path, sets: tuple[str, ...]) -> tuple[Path, dict[str, Path]]:
    """Write two training scenes and one scene for each test set; existing folders are kept.

    Returns:
        The folder of training scenes, and the folder of each test set by name.
    """
    training, tests = folder / "train", {name: folder / name for name in sets}
    if not training.exists():
        write_scenes(training, range(2), size_px=SCENE_PX)
    for number, path in enumerate(tests.values()):
        if not path.exists():
            write_scenes(path, range(number, number + 1), split="test", size_px=SCENE_PX)
    return training, tests


def _hat(scale: int) -> nn.Module:
    from spandrel.architectures.HAT import HAT

    network: nn.Module = HAT(
        img_size=8,
        window_size=4,
        embed_dim=12,
        depths=[1] * GROUPS,
        num_heads=[2] * GROUPS,
        mlp_ratio=2.0,
        compress_ratio=3,
        squeeze_factor=4,
        overlap_ratio=0.5,
        num_feat=16,
        upscale=scale,
        upsampler="pixelshuffle",
    )
    return network


def _edt(scale: int) -> nn.Module:
    from ...backbones.networks import EDT, EDTConfig

    return EDT(EDTConfig(tasks=(f"sr_x{scale}",), features=4, dim=60, depths=(2, 2), heads=6))


def _ipt(scale: int) -> nn.Module:
    from spandrel.architectures.IPT import IPT

    network: nn.Module = IPT(n_feats=4, num_heads=12, num_layers=2, scale=[scale])
    return network


_TINY: dict[str, Callable[[int], nn.Module]] = {"edt": _edt, "hat": _hat, "ipt": _ipt}
