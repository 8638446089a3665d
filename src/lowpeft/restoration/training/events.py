"""What a run tells those who watch it: its steps, its measurements, its end; and how they stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


class StopTraining(Exception):  # noqa: N818  (not an error: a wish)
    """Raise it in `report`, `validate` or a callback to end a run after this step, as if it were the last one.

    The checkpoint and the result are written. A resumed run goes on from there.
    """


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that begins or goes on.

    Attributes:
        step: Number of steps taken before.
        steps: Number of steps of the whole run.
        out: Folder of the run; None if nothing is written.
        settings: Plain values of the settings, by name.
    """

    step: int
    steps: int
    out: Path | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The state after an optimiser step; one row of the log.

    Attributes:
        step: Number of the step, from 1.
        loss: Mean loss of this step's batch.
        learning_rate: Learning rate of this step.
        gradient_norm: Norm of the gradients of all trained tensors together, before clipping.
        seconds: Training time so far, over all sessions.
        validation: Validation figure after this step; None if it was not measured.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    validation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement during a run. The model is in eval mode and, with `ema_decay`, holds the averages.

    Attributes:
        step: Number of steps taken.
        value: The figure; higher is better.
        best: True if it is the best so far.
        model: The model as it was given to `train`.
        out: Folder of the run; None if nothing is written.
        show: Function to call with images by name, uint8 (3,H,W): every callback gets them as `on_images`.
    """

    step: int
    value: float
    best: bool
    model: Any
    out: Path | None
    show: Callable[[Mapping[str, Tensor]], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run.

    Attributes:
        steps: Number of optimiser steps taken, over all sessions.
        resumed_at: Number of steps taken before this call.
        parameters: Number of trained parameters, in elements.
        loss: Mean loss of the last step's batch.
        seconds: Training time over all sessions.
        best: Best validation figure; None if nothing was measured.
        best_step: Number of the step with the best figure; None if nothing was measured.
        stopped: Why the run ended before its last step; None if it did not.
        result_step: Number of steps after which the result was taken: the best one with `settings.patience`, else the
            last.
    """

    steps: int
    resumed_at: int
    parameters: int
    loss: float
    seconds: float
    best: float | None
    best_step: int | None
    stopped: str | None = None
    result_step: int


class Callback:
    """What `train` calls during a run, in the main process alone. Override what you need; all of it does nothing.

    `on_start`, `on_row`, `on_step` and `on_measured` may raise `StopTraining("why")`; from `on_start` it ends the run
    after the first step of this call.
    """

    def on_start(self, start: Start) -> None:
        """Act before the first step of this call."""

    def on_measured(self, measured: Measured) -> None:
        """Act after a measurement, before `on_step` of the same step."""

    def on_images(self, step: int, images: Mapping[str, Tensor]) -> None:
        """Act on images, uint8 (3,H,W) by name, that a callback shows after a step."""

    def on_row(self, step: Step) -> None:
        """Act after every step before its checkpoint, if due, is written: what must have every step once acts here."""

    def on_step(self, step: Step) -> None:
        """Act after every step, when its row is in the log and its checkpoint, if due, is written."""

    def on_end(self, trained: Trained | None) -> None:
        """Act at the end; `trained` is None if an error ends the run."""


class Reporting(Callback):
    """A plain function as a callback: it is called after every step."""

    def __init__(self, report: Callable[[Step], None]) -> None:
        self._report = report

    def on_step(self, step: Step) -> None:
        self._report(step)
