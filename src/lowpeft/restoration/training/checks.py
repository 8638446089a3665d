"""What a training run refuses, before it begins and on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from ...errors import TrainingError
from ...recipes import TrainSettings
from .parallel import Processes


def check_batch(settings: TrainSettings, processes: Processes) -> None:
    """Refuse a batch that is too small for the processes and their parts.

    Raises:
        TrainingError: Saying which is the least.
    """
    least = processes.number * settings.accumulate
    if settings.batch < least:
        raise TrainingError(
            f"a batch of {settings.batch} cannot be split over {processes.number} processes of {settings.accumulate} "
            f"parts each: it takes at least {least}"
        )


def refuse_untrained(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse adapters that a backward pass did not reach: they would be saved as they began, as if they were trained.

    Raises:
        TrainingError: Listing their tensors.
    """
    missing = [name for name, parameter in parameters.items() if parameter.grad is None]
    if missing:
        raise TrainingError(
            f"{len(missing)} of {len(parameters)} trained tensors get no gradient. Something cuts them off "
            "(a torch.no_grad() inside the network, or a block of lowpeft.using, say), or they sit on layers that take "
            "no part in this task; then exclude these by the recipe's target. lowpeft.check_trainable(model) finds "
            "them before training:",
            problems=missing,
        )


def refuse_not_finite(what: str, value: float, rate: float) -> None:
    """Refuse NaN and infinity.

    Raises:
        TrainingError: Naming the value, and the learning rate that led to it.
    """
    if not math.isfinite(value):
        raise TrainingError(f"the {what} is {value}: lower the learning rate (now {rate:.3g})")
