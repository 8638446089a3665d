"""The training loop, for every recipe, every kind of adapter, and any number of processes.

`train` checks its arguments and runs the loop; the methods of `_TrainingRun` are in the order of a run. What is trained
is a `Trainee`; what watches is a list of `Callback`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import DataError, DivergedError, LowpeftError, TrainingError
from ...locking import locked
from ...recipes import TrainSettings, settings_to_dict
from ..inference.network import in_eval_mode
from .calibrating import start_from_data
from .checkpoint import Checkpoint, Progress, checkpoints, read_newest, write_checkpoint
from .events import Callback, Measured, Reporting, Start, Step, StopTraining, Trained
from .identity import differences, identity, of_other_length
from .log import Log, draw_curves, logged
from .losses import ImageLoss, LossOfViews, qualified_name
from .models import check_folder, read_product, record_settings, save_product, trained_name
from .optimizers import MakeOptimizer
from .own_code import check_arguments, figure_of
from .parallel import Processes, connect
from .samples import batches, check_batch, check_crops, run_facts
from .schedule import learning_rate
from .sources import CropSource, MapStyle, Samples, source_of
from .trainee import Trainee

BEST = "best"
"""Subfolder of the run's folder for the result with the best validation figure."""

Validate = Callable[[Any], float]


def train(  # noqa: PLR0913  (parts of a run that each have a default)
    model: object,
    data: CropSource | MapStyle,
    settings: TrainSettings,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    validate: Validate | None = None,
    report: Callable[[Step], None] | None = None,
    callbacks: Sequence[Callback] = (),
    loss: ImageLoss | None = None,
    optimizer: MakeOptimizer | None = None,
) -> Trained:
    """Train a model's adapters, or a whole network without adapters.

    All randomness of a step derives from `settings.seed` and the numbers of its samples. The same call therefore gives
    the same result on one machine (bit for bit on a CPU), and a run that was killed and resumed gives the result of an
    uninterrupted one. Two calls in two threads share the global generators: with dropout or random augmentation they
    are not repeatable; use two processes.

    Args:
        model: Adapted model, of which only the adapters are trained, on its device; or a network without adapters
            (a `Backbone` or a module), of which every parameter that requires a gradient is trained. Afterwards it is
            in eval mode; with `ema_decay`, its trained tensors are the averages, and with `patience` its state is the
            one with the best validation figure, as in `out`.
        data: `lowpeft.restoration.data.Crops`, or any map-style data set: a list or a `torch.utils.data.Dataset` of
            pairs (lr, hr), float 0..1, (C,h,w) and (C,sh,sw), or (V,C,h,w) and (V,C,sh,sw) for V views. It is gone
            through in a new order in each epoch. Size, scale and number of views must fit the model.
        settings: Training settings of the recipe.
        out: Folder for the adapter (or `network.safetensors`), the log and the checkpoints. All processes must share
            it.
        resume: True to continue from the newest checkpoint in `out`, if one exists. Without it a folder with a
            checkpoint is refused, so that no run is overwritten or continued by accident. A folder with a trained
            result but no checkpoint is always refused, as is one in which another run is training.
        validate: Function from `model` to a finite figure; higher is better. The main process alone calls it, every
            `settings.validate_every_steps` steps and after the last, in eval mode and without gradients. The best
            result is kept in `out/best`; with `settings.patience` it is also the run's result, in `out`.
        report: Function called after every step, in the main process alone.
        callbacks: Further watchers; see `Callback`. They, `report` and `validate` may raise `StopTraining`.
        loss: Function from output and target, (N,C,H,W), float32 0..1, to a scalar, instead of `settings.loss`.
        optimizer: Function from groups of parameters to a torch optimiser, instead of `settings.optimizer`. The
            learning rate is that of the settings' schedule.

    Returns:
        Figures of the finished run.

    Raises:
        TrainingError: An argument, the data or the settings do not fit; another run uses the folder; the folder
            contains a checkpoint of another run, or a log that was cut; a trained tensor gets no gradient in the first
            step; the loss or the gradient (`lowpeft.errors.DivergedError`) or a validation figure is not finite; a crop
            cannot be read; the loss or the optimiser fails; or the folder cannot be written. The message names the last
            good checkpoint, which is intact. Other errors of `validate`, `report` and the callbacks keep their type,
            and get a note that names the function, the step and that checkpoint.
        PlanError: `out` is given and several adapters would be trained, but a folder stores one; the network does not
            take and return images; or calibration fails (see `lowpeft.calibrate`).
    """
    functions = {"validate": validate, "report": report, "loss": loss, "optimizer": optimizer}
    check_arguments(settings=settings, out=out, resume=resume, callbacks=callbacks, functions=functions)
    processes, folder = connect(), None if out is None else Path(out)
    source = source_of(data, settings.seed)
    check_crops(source, model)
    check_batch(settings, processes)
    if settings.validate_every_steps and validate is None and processes.main:
        raise TrainingError("settings.validate_every_steps is set, but no function was given: pass validate=")
    if resume and folder is None:
        raise TrainingError("resume=True was given without a folder to resume from: pass out=")
    if folder is not None:
        trained_name(model)
    watchers = [*callbacks, *([] if report is None else [Reporting(report)])] if processes.main else []
    run = _TrainingRun(source, settings, processes, folder, watchers)
    with run.holding_folder():
        if folder is not None:
            check_folder(folder, resume=resume, model=model)
        run.set_up(model, loss, optimizer)
        if folder is not None and resume:
            run.resume(folder)
        return run.finish(validate if processes.main else None)


class _TrainingRun:
    """One call of `train`: its arguments, and the state that its steps change.

    Attributes:
        trainee: What is trained.
        out: Folder to write to; None outside the main process.
        progress: Steps taken and figures so far.
        at: Number of the step that is being taken, for error messages.
        stopped: Why the run ends before its last step; None if it does not.
        best: Tensors of the best result, where `patience` asks for it and no folder holds it.
    """

    trainee: Trainee

    def __init__(
        self,
        crops: CropSource | Samples,
        settings: TrainSettings,
        processes: Processes,
        folder: Path | None,
        watchers: Sequence[Callback],
    ) -> None:
        self.crops, self.settings, self.processes, self.watchers = crops, settings, processes, watchers
        self.folder, self.out = folder, folder if processes.main else None
        self.progress, self.at = Progress(), 0
        self.stopped: str | None = None
        self.best: dict[str, Tensor] = {}

    @contextmanager
    def holding_folder(self) -> Iterator[None]:
        """Keep other runs out of the folder within the block, which all processes enter together."""
        with ExitStack() as stack:
            if self.out is not None:
                with self._errors_explained(OSError):
                    stack.enter_context(locked(self.out, TrainingError))
            self.processes.wait()
            yield

    def set_up(self, model: object, loss: ImageLoss | None, optimizer: MakeOptimizer | None) -> None:
        """Place the model, calibrate it, and make what trains it."""
        settings, module, of_views = self.settings, module_of(model), LossOfViews(self.settings.loss, loss)
        if self.processes.device is not None:
            module.to(self.processes.device)
        own = {what: qualified_name(f) for what, f in (("loss", loss), ("optimizer", optimizer)) if f is not None}
        with self._errors_explained(DataError, TrainingError, OSError):
            of_views.prepare(next(module.parameters()).device)
            start_from_data(module, self.crops, settings, image_facts(model), of_views)
            self.identity = {} if self.folder is None else identity(module, self.crops, settings, own)
        self.own_facts: dict[str, str | float] = {f"own {what}": name for what, name in own.items()}
        self.trainee = Trainee(model, settings, self.processes, of_views, optimizer)

    def resume(self, folder: Path) -> None:
        """Load the newest checkpoint of the folder, if one exists.

        Raises:
            TrainingError: The checkpoint or the log is damaged, the checkpoint is of another run, or the processes do
                not share the folder. Nothing is loaded.
        """
        checkpoint = read_newest(folder)
        step = 0 if checkpoint is None else checkpoint.progress.step
        if self.processes.total(torch.tensor(step, device=self.trainee.device)).item() != step * self.processes.number:
            raise TrainingError(f"the processes see different checkpoints: {folder} must be a folder that all share")
        if checkpoint is None:
            return
        saved, problems = of_other_length(
            self.identity, checkpoint.identity, step=step, why_not=self.trainee.why_no_other_length()
        )
        problems += differences(self.identity, saved) or self.trainee.problems_of(checkpoint)
        if problems:
            raise TrainingError(
                f"the checkpoint of step {step} in {folder} is of another run; train in another folder, or undo these "
                "changes:",
                problems=problems,
            )
        logged(folder, step)  # every process checks the log before the main one opens it
        self.processes.wait()
        self.trainee.restore(checkpoint)
        self.progress, self.at = checkpoint.progress, step
        self.stopped = self._out_of_patience()

    def finish(self, validate: Validate | None) -> Trained:
        """Take all remaining steps and write the result; the model is in eval mode afterwards."""
        start, trained, module = self.progress.step, None, self.trainee.module
        module.train()
        try:
            with torch.random.fork_rng(devices=[self.trainee.device] if self.trainee.device.type == "cuda" else []):
                result_step = self._loop(validate)
            self.processes.wait()
            done = self.progress
            trained = Trained(
                steps=done.step,
                resumed_at=start,
                parameters=sum(p.numel() for p in self.trainee.parameters.values()),
                loss=done.loss,
                seconds=done.seconds,
                best=done.best,
                best_step=done.best_step,
                stopped=self.stopped,
                result_step=result_step,
            )
        finally:
            module.eval()
            with ExitStack() as ends:  # every watcher is told, also if one raises an error
                for watcher in reversed(self.watchers):
                    ends.callback(self._tell_one, watcher, lambda each: each.on_end(trained))
        return trained

    def _loop(self, validate: Validate | None) -> int:
        """Take the steps, write the result, and return the number of steps after which that was taken."""
        settings, first = self.settings, self.progress.step + 1
        started = time.monotonic() - self.progress.seconds
        parts = batches(self.crops, settings, self.processes, start=first - 1, device=self.trainee.device)
        self.trainee.schedule_from(first - 1)
        last = first - 1 if self.stopped else settings.steps
        with self._errors_explained(OSError, SafetensorError, LowpeftError):
            start = Start(step=first - 1, steps=settings.steps, out=self.out, settings=settings_to_dict(settings))
            self._tell(lambda watcher: watcher.on_start(start))
            with closing(Log(self.out, first - 1)) if self.out is not None else nullcontext() as log:
                for self.at in range(first, last + 1):
                    loss, gradient_norm = self.trainee.step(next(parts), self.at, first=self.at == first)
                    step = Step(
                        step=self.at,
                        loss=loss,
                        learning_rate=learning_rate(settings, self.at - 1),
                        gradient_norm=gradient_norm,
                        seconds=time.monotonic() - started,
                    )
                    self.progress = replace(self.progress, step=self.at, loss=loss, seconds=step.seconds)
                    if log is not None and self.at == first:
                        self.trainee.values()  # what no checkpoint can hold is refused now, not at the first one
                    if self._after(step, validate, log):
                        break
            return self._write_result()

    def _after(self, step: Step, validate: Validate | None, log: Log | None) -> bool:
        """Measure, log, save and report a step; return whether the run ends here."""
        if validate is not None and self._due(self.settings.validate_every_steps):
            step = replace(step, validation=self._measure(validate))
        due = self._due(self.settings.save_every_steps) or self.at == self.settings.steps
        if log is not None:
            log.write(asdict(step))
        self._tell(lambda watcher: watcher.on_row(step))
        if log is not None and due:
            self._save(log)
        self._tell(lambda watcher: watcher.on_step(step))
        flag = torch.tensor(int(self.stopped is not None), device=self.trainee.device)
        if not self.processes.total(flag).item():
            return False
        self.stopped = self.stopped or "the main process stopped the run"
        if log is not None and not due:
            self._save(log)
        return True

    def _tell(self, call: Callable[[Callback], None]) -> None:
        for watcher in self.watchers:
            self._tell_one(watcher, call)

    def _tell_one(self, watcher: Callback, call: Callable[[Callback], None]) -> None:
        with self._of_user("report" if isinstance(watcher, Reporting) else type(watcher).__name__):
            call(watcher)

    @contextmanager
    def _of_user(self, name: str) -> Iterator[None]:
        """Note why a function of the user's stops the run; say in an error which it was, and when."""
        try:
            yield
        except StopTraining as stop:
            self.stopped = self.stopped or str(stop) or f"stopped by {name}"
        except Exception as error:
            error.add_note(f"raised by {name} at step {self.at} of a training run. {self._last_checkpoint()}")
            raise

    def _measure(self, validate: Validate) -> float | None:
        """Return the validation figure of the model as it would be saved now; save it if it is the best so far."""
        given, value = self.trainee.given, None
        with in_eval_mode(self.trainee.module), self.trainee.averaged():
            with self._of_user("validate"):
                value = figure_of(validate(given))
            if value is None:
                return None
            best = self.progress.best is None or value > self.progress.best
            if best:
                self.progress = replace(self.progress, best=value, best_step=self.at, without_gain=0)
                if self.out is not None:
                    self._write(self.out / BEST, validation=value)
                elif self.settings.patience:
                    self.best = {name: tensor.detach().clone() for name, tensor in self.trainee.result().items()}
            else:
                self.progress = replace(self.progress, without_gain=self.progress.without_gain + 1)
            measured = Measured(step=self.at, value=value, best=best, model=given, out=self.out, show=self._show)
            self._tell(lambda watcher: watcher.on_measured(measured))
        self.stopped = self.stopped or self._out_of_patience()
        return value

    def _show(self, images: Mapping[str, Tensor]) -> None:
        self._tell(lambda watcher: watcher.on_images(self.at, images))

    def _out_of_patience(self) -> str | None:
        patience, count = self.settings.patience, self.progress.without_gain
        if not patience or count < patience:
            return None
        return f"no better figure in {count} measurement{'s' * (count > 1)} (patience)"

    def _save(self, log: Log) -> None:
        """Write a checkpoint, then the result as it is now; errors are those of `write_checkpoint`, `save_product`."""
        log.flush()
        trainee = self.trainee
        checkpoint = Checkpoint(
            progress=self.progress, identity=self.identity, tensors=trainee.tensors(), optimizer=trainee.values()
        )
        write_checkpoint(log.out, checkpoint, keep=self.settings.keep_checkpoints)
        with trainee.averaged():
            self._write(log.out)

    def _write(self, folder: Path, **facts: str | float) -> None:
        """Write the result as it is now, with the settings and the number of steps that made it."""
        record_settings(self.trainee.module, replace(self.settings, steps=self.progress.step))
        save_product(self.trainee.module, folder, facts={**self._facts(), **facts})

    def _write_result(self) -> int:
        """Leave the averages, or with patience the best state, in all processes' model; write it; return its step."""
        steps, facts = self.progress.step, self._facts()
        self.trainee.overwrite(self.trainee.average)
        if best_step := self._restore_best():
            facts["training"] = f"{best_step} of {self.settings.steps} steps, the best of {steps} on the validation"
        record_settings(self.trainee.module, replace(self.settings, steps=best_step or steps))
        if self.out is not None:
            save_product(self.trainee.module, self.out, facts=facts)
            draw_curves(self.out, steps, f"{steps} steps, {self.own_facts.get('own loss', self.settings.loss)} loss")
        return best_step or steps

    def _restore_best(self) -> int:
        """Put the best result into the model of every process, and return its step; 0 if the last one is to stay.

        Raises:
            LowpeftError: The best result cannot be read from the folder.
        """
        done, processes = self.progress, self.processes
        wanted = done.best_step if self.settings.patience and done.best_step != done.step else None
        step = int(processes.from_main(torch.tensor(wanted or 0, device=self.trainee.device)).item())
        if not step:
            return 0
        best = self.best if self.out is None else read_product(self.trainee.module, self.out / BEST)
        self.trainee.put_result(best if processes.main else None)
        return step

    def _due(self, every: int) -> bool:
        """Return whether something done every `every` steps (0: never) and after the last is due after this step."""
        return bool(every) and (self.at % every == 0 or self.at == self.settings.steps)

    def _facts(self) -> dict[str, str | float]:
        """Return the facts of the run that are saved with its result."""
        steps = f"{self.progress.step} of {self.settings.steps} steps"
        return {"training": steps, **run_facts(self.crops, self.settings), **self.own_facts}

    @contextmanager
    def _errors_explained(self, *errors: type[Exception]) -> Iterator[None]:
        """Raise these errors as a TrainingError that says where the run stopped and which checkpoint is intact."""
        try:
            yield
        except errors as error:
            reason, problems = (error.message, error.problems) if isinstance(error, LowpeftError) else (str(error), ())
            explained = (DivergedError if isinstance(error, DivergedError) else TrainingError)(
                f"training stopped at step {self.at}. {self._last_checkpoint()}. The reason: {reason}",
                problems=problems,
            )
            for note in getattr(error, "__notes__", ()):
                explained.add_note(note)
            raise explained from error

    def _last_checkpoint(self) -> str:
        """Return the sentence that names the last good checkpoint, without its full stop."""
        saved = [] if self.folder is None else checkpoints(self.folder)
        return f"The last good checkpoint is {saved[-1]}" if saved else "No checkpoint has been written"
