"""Learning-rate schedules and losses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from ...recipes import TrainSettings
from ...recipes.settings import Loss

CHARBONNIER_EPSILON = 1e-3
"""The ε of the Charbonnier loss, for values 0..1, from Lai et al., LapSRN (arXiv 1704.03915)."""


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule.

    Steps are numbered from 0, so the last one of n is n - 1; `cosine` would reach the final rate at step n.
    """
    peak, final = settings.learning_rate, settings.final_learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    match settings.schedule:
        case "constant":
            return peak
        case "multistep":
            factor: float = settings.milestone_factor ** sum(step >= m for m in settings.milestones)
            return peak * factor
        case "cosine":
            done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
            return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2
        case unknown:
            assert_never(unknown)


def image_loss(kind: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of |d| (l1), sqrt(d² + ε²) (charbonnier) or d² (mse) for d = output - target, values 0..1."""
    if kind == "l1":
        return F.l1_loss(output, target)
    if kind == "mse":
        return F.mse_loss(output, target)
    return ((output - target).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def mean_loss(kind: Loss, outputs: Iterable[Tensor], targets: Iterable[Tensor]) -> Tensor:
    """Return the mean of `image_loss` over the views of scenes."""
    return torch.stack([image_loss(kind, out, target) for out, target in zip(outputs, targets, strict=True)]).mean()
