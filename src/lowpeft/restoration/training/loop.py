"""The training loop, for every recipe, every kind of adapter, and any number of processes.

`train` checks its arguments and runs the loop; the methods of `_TrainingRun` are in the order of a run.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...core.attachment.record import is_adapted, module_of
from ...core.observation.describe import image_facts
from ...core.operations.state import adapter_state_dict
from ...core.operations.training_parts import training_parts
from ...errors import DataError, LowpeftError, TrainingError
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from ..inference.network import in_eval_mode, run_padded
from .checkpoint import Checkpoint, Progress, checkpoints, differences, identity, read_newest, write_checkpoint
from .kinds import parameter_groups, start_from_data
from .log import Log, draw_curves, logged
from .models import check_folder, check_gradients, record_settings, save_product, trained_name, trained_parameters
from .parallel import Processes, connect, in_parallel, without_exchange
from .samples import CropSource, MicroBatch, batches, check_batch, check_crops, run_facts
from .schedule import learning_rate, mean_loss

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
        TrainingError: The crops or settings do not fit; the folder contains a checkpoint of another run, or a log that
            was cut; a trained tensor gets no gradient in the first step; the loss or the gradient is not finite; a crop
            cannot be read; or the folder cannot be written. The message names the last good checkpoint, which is
            intact.
        PlanError: `out` is given and several adapters would be trained, but a folder stores one; the network does not
            take and return images; or calibration fails (see `lowpeft.calibrate`).
    """
    processes, folder = connect(), None if out is None else Path(out)
    check_crops(crops, model)
    check_batch(settings, processes)
    if settings.validate_every_steps and validate is None and processes.main:
        raise TrainingError("settings.validate_every_steps is set, but no function was given: pass validate=")
    if resume and folder is None:
        raise TrainingError("resume=True was given without a folder to resume from: pass out=")
    if folder is not None:
        trained_name(model)
        check_folder(folder, resume=resume)
    run = _TrainingRun(model, crops, settings, processes, folder)
    if folder is not None:
        run.resume(folder)
    start = run.progress.step
    run.module.train()
    try:
        with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
            run.loop(validate if processes.main else None, report if processes.main else None)
    finally:
        run.module.eval()
    processes.wait()
    done = run.progress
    return Trained(
        steps=done.step,
        resumed_at=start,
        parameters=sum(p.numel() for p in run.parameters.values()),
        loss=done.loss,
        seconds=done.seconds,
        best=done.best,
        best_step=done.best_step,
    )


class _TrainingRun:
    """One call of `train`: its arguments, and the state that its steps change.

    Attributes:
        module: Module that is trained; `given` is the model as the user passed it, for `validate`.
        network: Module from crops to their loss, the same in every process.
        out: Folder to write to; None outside the main process.
        parameters: Trained parameters by name.
        hooks: Training hooks of the kinds of adapters in the model.
        average: Moving averages of `parameters`, by name; empty without `ema_decay`.
        progress: Steps taken and figures so far.
        at: Number of the step that is being taken, for error messages.
    """

    def __init__(
        self, model: object, crops: CropSource, settings: TrainSettings, processes: Processes, folder: Path | None
    ) -> None:
        self.given, self.crops, self.settings = model, crops, settings
        self.processes, self.folder, self.out = processes, folder, folder if processes.main else None
        self.progress, self.at = Progress(), 0
        self.module, facts = module_of(model), image_facts(model)
        self.adapted = is_adapted(self.module)
        if processes.device is not None:
            self.module.to(processes.device)
        with self._errors_explained(DataError, OSError):
            start_from_data(self.module, crops, settings, facts)
            self.identity = {} if folder is None else identity(self.module, crops, settings)
        self.parameters = trained_parameters(self.module)
        self.device = next(iter(self.parameters.values())).device
        self.hooks = training_parts(self.module, settings.steps)
        groups = parameter_groups(self.parameters, self.hooks)
        self.optimizer = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay)
        # Not `swa_utils.AveragedModel`, which copies the whole network: only the trained tensors are averaged.
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if settings.ema_decay else {}
        network = _NetworkWithLoss(self.module, settings, facts)
        self.network = in_parallel(network, processes, sync_buffers=not self.adapted)

    def resume(self, folder: Path) -> None:
        """Load the newest checkpoint of the folder, if one exists.

        Raises:
            TrainingError: The checkpoint or the log is damaged, the checkpoint is of another run, or the processes do
                not share the folder. Nothing is loaded.
        """
        checkpoint = read_newest(folder)
        step = 0 if checkpoint is None else checkpoint.progress.step
        if self.processes.total(torch.tensor(step, device=self.device)).item() != step * self.processes.number:
            raise TrainingError(f"the processes see different checkpoints: {folder} must be a folder that all share")
        if checkpoint is None:
            return
        saved = checkpoint.tensors
        for name, parameter in self.parameters.items():
            if f"optimizer.step.{name}" in saved:  # AdamW itself creates its state in a parameter's first step
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.zeros_like(saved[f"optimizer.step.{name}"]), **moments}
        tensors = self._tensors()
        problems = differences(self.identity, checkpoint.identity) or differences(tensors, saved)
        if problems:
            raise TrainingError(
                f"the checkpoint of step {step} in {folder} is of another run; train in another folder, or undo these "
                "changes:",
                problems=problems,
            )
        logged(folder, step)  # every process checks the log before the main one opens it
        self.processes.wait()
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])
        self.progress, self.at = checkpoint.progress, step

    def loop(self, validate: Callable[[Any], float] | None, report: Callable[[Step], None] | None) -> None:
        """Take all remaining steps, then write the result."""
        settings, first = self.settings, self.progress.step + 1
        started = time.monotonic() - self.progress.seconds
        parts = batches(self.crops, settings, self.processes, start=self.progress.step, device=self.device)
        # The rate of a group is its factor (`initial_lr`) times the rate of the step. After n steps `last_epoch` is n,
        # so a resumed run has the schedule of an uninterrupted one.
        self.schedule = LambdaLR(self.optimizer, lambda n: learning_rate(settings, n), last_epoch=first - 2)
        with self._errors_explained(OSError, SafetensorError, LowpeftError):
            with closing(Log(self.out, self.progress.step)) if self.out is not None else nullcontext() as log:
                for number in range(first, settings.steps + 1):
                    self.at = number
                    loss, gradient_norm = self._optimize(next(parts), first=number == first)
                    step = Step(
                        step=number,
                        loss=loss,
                        learning_rate=learning_rate(settings, number - 1),
                        gradient_norm=gradient_norm,
                        seconds=time.monotonic() - started,
                    )
                    self.progress = replace(self.progress, step=number, loss=loss, seconds=step.seconds)
                    if validate is not None and self._due(settings.validate_every_steps):
                        step = replace(step, validation=self._measure(validate))
                    if log is not None:
                        log.write(asdict(step))
                        if self._due(settings.save_every_steps) or number == settings.steps:
                            self._save(log)
                    if report is not None:
                        report(step)
            self._overwrite(self.average)
            record_settings(self.module, settings)
            if self.out is not None:
                self._write(self.out)
                draw_curves(self.out, settings.steps, f"{settings.steps} steps, {settings.loss} loss")

    def _optimize(self, parts: list[MicroBatch], *, first: bool) -> tuple[float, float]:
        """Take an optimiser step; return the batch's loss and the norm of its gradient."""
        settings, hooks, total = self.settings, self.hooks.values(), torch.zeros((), device=self.device)
        for i, part in enumerate(parts):
            # Dropout depends on nothing but the seed and the number of the first sample.
            torch.manual_seed(_seed(settings.seed, part.first))
            share = len(part.lr) / settings.batch
            with without_exchange(self.network, active=i < len(parts) - 1 and not first):
                loss = self.network(part.lr, part.hr) * share
                penalties = [p for hook in hooks if (p := hook.penalty()) is not None]
                objective = loss + torch.stack(penalties).sum() * share if penalties else loss
                if self.adapted and not objective.requires_grad:
                    check_gradients(self.parameters)
                (objective * self.processes.number).backward()  # DDP averages over processes; this makes it a sum
            total += loss.detach()
        if self.adapted and first:
            check_gradients(self.parameters)
        for hook in hooks:
            hook.before_step(self.at)
        loss_of_batch = self.processes.total(total).item()
        gradient_norm = get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        for what, value in (("loss", loss_of_batch), ("norm of the gradient", gradient_norm.item())):
            if not math.isfinite(value):
                rate = learning_rate(settings, self.at - 1)
                raise TrainingError(f"the {what} is {value}: lower the learning rate (now {rate:.3g})")
        if settings.clip_norm:
            clip_grads_with_norm_(self.parameters.values(), settings.clip_norm, gradient_norm)
        self.optimizer.step()
        self.schedule.step()
        for hook in hooks:
            hook.after_step(self.at)
        self.optimizer.zero_grad()
        if self.average:
            # The ramp, from TensorFlow's ExponentialMovingAverage, keeps a short run's average from staying near its
            # start: with decay 0.99, step 1 has 0.18, step 100 has 0.92.
            decay = min(settings.ema_decay, (1 + self.at) / (10 + self.at))
            update_average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            update_average([*self.average.values()], [*self.parameters.values()], self.at)
        return loss_of_batch, gradient_norm.item()

    def _measure(self, validate: Callable[[Any], float]) -> float:
        """Return the validation figure of the model as it would be saved now; save it if it is the best so far."""
        with in_eval_mode(self.module), self._averaged():
            value = validate(self.given)
            if math.isnan(value):
                raise TrainingError("the validation figure is NaN: check the function given as validate=")
            if self.progress.best is None or value > self.progress.best:
                self.progress = replace(self.progress, best=value, best_step=self.at)
                if self.out is not None:
                    self._write(self.out / BEST, validation=value)
        return value

    def _save(self, log: Log) -> None:
        """Write a checkpoint, then the result as it is now; errors are those of `write_checkpoint`, `save_product`."""
        log.flush()
        checkpoint = Checkpoint(progress=self.progress, identity=self.identity, tensors=self._tensors())
        write_checkpoint(log.out, checkpoint, keep=self.settings.keep_checkpoints)
        with self._averaged():
            self._write(log.out)

    def _write(self, folder: Path, **facts: float) -> None:
        """Write the result as it is now, with the settings and the number of steps that made it."""
        record_settings(self.module, replace(self.settings, steps=self.progress.step))
        save_product(self.module, folder, facts={**self._facts(), **facts})

    def _due(self, every: int) -> bool:
        """Return whether something done every `every` steps (0: never) and after the last is due after this step."""
        return bool(every) and (self.at % every == 0 or self.at == self.settings.steps)

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by name, e.g. "optimizer.exp_avg.body.0.weight"; not copied."""
        module, state = self.module, self.optimizer.state
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": adapter_state_dict(module, name=trained_name(module)) if self.adapted else module.state_dict(),
            "kinds": {f"{label}.{n}": t for label, hook in self.hooks.items() for n, t in hook.state().items()},
            "average": self.average,
            "optimizer": {f"{k}.{n}": t for n, p in self.parameters.items() for k, t in state.get(p, {}).items()},
        }
        return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    @torch.no_grad()
    def _overwrite(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averages, if there are any, in place of the trained tensors within the block."""
        before = {name: self.parameters[name].detach().clone() for name in self.average}
        self._overwrite(self.average)
        try:
            yield
        finally:
            self._overwrite(before)

    def _facts(self) -> dict[str, str | float]:
        """Return the facts of the run that are saved with its result."""
        steps = f"{self.progress.step} of {self.settings.steps} steps"
        return {"training": steps, **run_facts(self.crops, self.settings)}

    @contextmanager
    def _errors_explained(self, *errors: type[Exception]) -> Iterator[None]:
        """Raise these errors as a TrainingError that says where the run stopped and which checkpoint is intact."""
        try:
            yield
        except errors as error:
            reason, problems = (error.message, error.problems) if isinstance(error, LowpeftError) else (str(error), ())
            saved = [] if self.folder is None else checkpoints(self.folder)
            last = f"The last good checkpoint is {saved[-1]}" if saved else "No checkpoint has been written"
            raise TrainingError(
                f"training stopped at step {self.at}. {last}. The reason: {reason}", problems=problems
            ) from error


class _NetworkWithLoss(nn.Module):
    """Module from crops to their loss. DDP wraps it, so that the model itself stays unwrapped."""

    def __init__(self, model: nn.Module, settings: TrainSettings, facts: ImageFacts) -> None:
        super().__init__()
        self.model = model
        self._settings = settings
        self._facts = facts

    def forward(self, lr: Tensor, hr: Tensor) -> Tensor:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"):
            outputs = run_padded(self.model, lr.unbind(1), self._facts)
        return mean_loss(self._settings.loss, [output.float() for output in outputs], hr.unbind(1))


def _seed(seed: int, sample: int) -> int:
    """Return the seed of the micro-batch that begins with this sample."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:8]) >> 1
