"""Checks of a training run: batch size, missing gradients, NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from ...errors import TrainingError
from ...recipes import TrainSettings
from .parallel import Processes


def check_batch(settings: TrainSettings, processes: Processes) -> None:
    """Check that a batch has a sample for every part of every process.

    Raises:
        TrainingError: The batch is too small; the message states the minimum.
    """
    least = processes.number * settings.accumulate
    if settings.batch < least:
        raise TrainingError(
            f"a batch of {settings.batch} cannot be split over {processes.number} processes of {settings.accumulate} "
            f"parts each: it takes at least {least}"
        )


def refuse_untrained(parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that the backward pass reached every parameter; others would be saved untrained, as if they were trained.

    Raises:
        TrainingError: Some parameters have no gradient; they are listed.
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
    """Check that a value is not NaN or infinite.

    Raises:
        TrainingError: The value is not finite; the message states it and the learning rate.
    """
    if not math.isfinite(value):
        raise TrainingError(f"the {what} is {value}: lower the learning rate (now {rate:.3g})")
