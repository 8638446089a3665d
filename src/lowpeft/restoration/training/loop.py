"""The training loop, for every recipe, every kind of adapter, and any number of processes."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ...core.attachment.record import is_adapted, module_of
from ...core.observation.describe import image_facts
from ...errors import LowpeftError, TrainingError
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from ..inference.network import multi_view, run_padded
from .checkpoint import checkpoints
from .checks import check_batch, refuse_not_finite, refuse_untrained
from .kinds import start_from_data
from .log import Log, draw_curves
from .parallel import Processes, connect, shared, without_exchange
from .samples import CropSource, Part, batches, check_crops
from .schedule import image_loss, learning_rate
from .session import PRODUCTS, Session, identity, save_product, trained_name

BEST = "best"
"""Subfolder of the run's folder for the result with the best validation figure."""


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
    """

    steps: int
    resumed_at: int
    parameters: int
    loss: float
    seconds: float
    best: float | None
    best_step: int | None


def train(
    model: object,
    crops: CropSource,
    settings: TrainSettings,
    *,
    out: str | Path | None = None,
    validate: Callable[[Any], float] | None = None,
    resume: bool = False,
    report: Callable[[Step], None] | None = None,
) -> Trained:
    """Train a model's adapters, or a whole network without adapters.

    All randomness of a step derives from `settings.seed` and the numbers of its samples. The same call therefore gives
    the same result on one machine (bit for bit on a CPU), and a run that was killed and resumed gives the result of an
    uninterrupted one.

    Args:
        model: Adapted model, of which only the adapters are trained, on its device; or a network without adapters
            (a `Backbone` or a module), of which every parameter that requires a gradient is trained. Afterwards it is
            in eval mode; with `ema_decay`, its trained tensors are the averages.
        crops: Data set, e.g. `lowpeft.restoration.data.Crops`. Crop size, scale and number of views must fit the model.
        settings: Training settings of the recipe.
        out: Folder for the adapter (or `network.safetensors`), the log and the checkpoints. All processes must share
            it.
        validate: Function from `model` to a figure; higher is better. The main process alone calls it, every
            `settings.validate_every_steps` steps and after the last, in eval mode and without gradients. The best
            result is kept in `out/best`.
        resume: True to continue from the newest checkpoint in `out`, if one exists. Without it a folder with a
            checkpoint is refused, so that no run is overwritten or continued by accident. A folder with a trained
            result but no checkpoint is always refused.
        report: Function called after every step, in the main process alone.

    Returns:
        Figures of the finished run.

    Raises:
        TrainingError: The crops or settings do not fit; the folder contains a checkpoint of another run; a trained
            tensor gets no gradient in the first step; the loss or the gradient is not finite; a crop cannot be read;
            or the folder cannot be written. The message names the last good checkpoint, which is intact.
        DataError: A crop that is read before the first step (for the run's identity or calibration) is unreadable.
        PlanError: `out` is given and several adapters would be trained, but a folder stores one; the network does not
            take and return images; or calibration fails (see `lowpeft.calibrate`).
    """
    folder = None if out is None else Path(out)
    processes = connect()
    facts, module = image_facts(model), module_of(model)
    several = multi_view(module)
    check_crops(crops, facts, views=None if several is None else several.views)
    check_batch(settings, processes)
    if settings.validate_every_steps and validate is None and processes.main:
        raise TrainingError("validate_every_steps is set, but there is nothing to validate with")
    if resume and folder is None:
        raise TrainingError("resume=True goes on from a folder, but there is no out=")
    if processes.device is not None:
        module.to(processes.device)
    start_from_data(module, crops, settings, facts)
    session, plain = Session(module, settings), identity(module, crops, settings)
    if folder is not None:
        _open_folder(session, folder, plain, resume)
    start = session.progress.step
    if processes.total(torch.tensor(start, device=_device(session))).item() != start * processes.number:
        raise TrainingError(f"the processes do not see the same checkpoints: {folder} must be a folder that they share")
    one = _Run(
        session=session,
        given=model,
        settings=settings,
        processes=processes,
        identity=plain,
        network=shared(_Pass(module, settings, facts), processes, sync_buffers=not is_adapted(module)),
        folder=folder,
        out=folder if processes.main else None,
        validate=validate if processes.main else None,
        report=report if processes.main else None,
        started=time.monotonic() - session.progress.seconds,
        first=start + 1,
    )
    device = _device(session)
    module.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            one.go(batches(crops, settings, processes, start=start, device=device))
    finally:
        module.eval()
    processes.wait()
    return _finished(session, start)


def _finished(session: Session, start: int) -> Trained:
    done = session.progress
    return Trained(
        steps=done.step,
        resumed_at=start,
        parameters=sum(p.numel() for p in session.parameters.values()),
        loss=done.loss,
        seconds=done.seconds,
        best=done.best,
        best_step=done.best_step,
    )


def _open_folder(session: Session, folder: Path, plain: dict[str, Any], resume: bool) -> None:
    """Load the folder's newest checkpoint, or refuse a folder that must not be overwritten."""
    if is_adapted(session.model):
        trained_name(session.model)
    found = checkpoints(folder)
    if found and not resume:
        raise TrainingError(f"{folder} holds a run at {found[-1].name}: resume it, or choose another folder")
    if not found and (results := [path.name for name in PRODUCTS for path in folder.glob(name)]):
        raise TrainingError(
            f"{folder} holds {results[0]}, and no checkpoint to go on from; choose another folder, or it is overwritten"
        )
    session.resume(folder, plain)


def _device(session: Session) -> torch.device:
    return next(iter(session.parameters.values())).device


class _Pass(nn.Module):
    """Module from a part of a batch to its loss. DDP wraps it, so that the model itself stays unwrapped."""

    def __init__(self, model: nn.Module, settings: TrainSettings, facts: ImageFacts) -> None:
        super().__init__()
        self.model = model
        self._settings = settings
        self._facts = facts

    def forward(self, lr: Tensor, hr: Tensor) -> Tensor:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"):
            outputs = run_padded(self.model, lr.unbind(1), self._facts)
        losses = [
            image_loss(self._settings.loss, output.float(), target)
            for output, target in zip(outputs, hr.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean()


@dataclass(kw_only=True)
class _Run:
    """One call of `train`.

    `out` (the folder, to write to), `validate` and `report` are None outside the main process. `given` is the model as
    the user passed it, for `validate`.
    """

    session: Session
    given: object
    settings: TrainSettings
    processes: Processes
    identity: dict[str, Any]
    network: nn.Module
    folder: Path | None
    out: Path | None
    validate: Callable[[Any], float] | None
    report: Callable[[Step], None] | None
    started: float
    first: int

    def go(self, parts: Iterator[list[Part]]) -> None:
        """Take all remaining steps, then write the result."""
        at = self.session.progress.step
        try:
            log = self._log()
            try:
                while at < self.settings.steps:
                    at += 1
                    self._take(at, next(parts), log)
            finally:
                if log is not None:
                    log.close()
            if self.session.average is not None:
                self.session.average.settle()
            if self.out is not None:
                self._save_product(self.out)
                draw_curves(self.out, f"{self.settings.steps} steps, {self.settings.loss} loss")
        except (OSError, SafetensorError, LowpeftError) as error:
            reason, problems = (error.message, error.problems) if isinstance(error, LowpeftError) else (str(error), ())
            text = f"training stopped at step {at}. {self._last_good()}. The reason: {reason}"
            raise TrainingError(text, problems=problems) from error

    def _take(self, number: int, parts: list[Part], log: Log | None) -> None:
        """Take an optimiser step; validate, log, save and report as due."""
        rate = learning_rate(self.settings, number - 1)
        loss, norm = self._update(number, parts, rate)
        step = Step(
            step=number,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=time.monotonic() - self.started,
        )
        last = number == self.settings.steps
        if self.validate is not None and _due(number, self.settings.validate_every_steps, last):
            step = replace(step, validation=self._measure(number, self.validate))
        self.session.progress = replace(self.session.progress, step=number, loss=loss, seconds=step.seconds)
        if log is not None and self.out is not None:
            log.write(asdict(step))
            if last or _due(number, self.settings.save_every_steps, last):
                self.session.save(self.out, self.identity, logs=log.lengths(), keep=self.settings.keep_checkpoints)
                with self.session.average.applied() if self.session.average is not None else nullcontext():
                    self._save_product(self.out)
        if self.report is not None:
            self.report(step)

    def _update(self, number: int, parts: list[Part], rate: float) -> tuple[float, float]:
        """Run forward, backward and AdamW; return the batch's loss and its gradient norm."""
        session, settings = self.session, self.settings
        total = torch.zeros((), device=parts[0].lr.device)
        for i, part in enumerate(parts):
            torch.manual_seed(_seed(settings.seed, part.first))
            with without_exchange(self.network, active=i < len(parts) - 1 and number > self.first):
                share = part.size / settings.batch
                loss = self.network(part.lr, part.hr) * share
                penalty = session.kinds.penalty()
                whole = loss if penalty is None else loss + penalty * share
                if not whole.requires_grad and is_adapted(session.model):
                    refuse_untrained(session.parameters)
                (whole * self.processes.number).backward()  # DDP averages over processes; this makes it a sum
            total += loss.detach()
        if number == self.first and is_adapted(session.model):
            refuse_untrained(session.parameters)
        session.kinds.before_step(number)
        loss_value = self.processes.total(total).item()
        refuse_not_finite("loss", loss_value, rate)
        gradients = [p.grad for p in session.parameters.values() if p.grad is not None]
        norm = get_total_norm(gradients)
        refuse_not_finite("gradient's norm", norm.item(), rate)
        if settings.clip_norm:
            clip_grads_with_norm_(session.parameters.values(), settings.clip_norm, norm)
        for group in session.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        session.optimizer.step()
        session.kinds.after_step(number)
        session.optimizer.zero_grad()
        if session.average is not None:
            session.average.update(number)
        return loss_value, norm.item()

    def _measure(self, number: int, validate: Callable[[Any], float]) -> float:
        """Return the validation figure of the model as it would be saved now; save it if it is the best so far."""
        session = self.session
        session.model.eval()
        try:
            with session.average.applied() if session.average is not None else nullcontext():
                with torch.no_grad():
                    value = validate(self.given)
                if math.isnan(value):
                    raise TrainingError("the validation figure is not a number")
                best = session.progress.best
                if best is None or value > best:
                    session.progress = replace(session.progress, best=value, best_step=number)
                    if self.out is not None:
                        save_product(session.model, self.out / BEST, facts={**self._facts(number), "validation": value})
        finally:
            session.model.train()
        return value

    def _facts(self, number: int) -> dict[str, str | float]:
        facts: dict[str, str | float] = {"training": f"{number} of {self.settings.steps} steps"}
        if self.settings.ema_decay:
            facts["trained tensors"] = f"moving average (EMA), decay {self.settings.ema_decay}"
        return facts

    def _save_product(self, out: Path) -> None:
        save_product(self.session.model, out, facts=self._facts(self.session.progress.step))

    def _log(self) -> Log | None:
        if self.out is None:
            return None
        progress = self.session.progress
        return Log(self.out, step=progress.step, lengths=progress.logs)

    def _last_good(self) -> str:
        if self.folder is None:
            return "Nothing was saved, because no folder was given"
        found = checkpoints(self.folder)
        return f"The last good checkpoint is {found[-1]}" if found else "There is no checkpoint yet"


def _due(number: int, every: int, last: bool) -> bool:
    return bool(every) and (last or number % every == 0)


def _seed(seed: int, sample: int) -> int:
    """Return the seed set before the part that begins with this sample is run; dropout depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:8]) >> 1
