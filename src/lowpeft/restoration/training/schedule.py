"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import assert_never

from ...recipes import TrainSettings


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
