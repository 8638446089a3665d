"""Experiment trackers (TensorBoard, Weights & Biases, …), by Accelerate's interface to them."""

from __future__ import annotations

import importlib.util
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import TrainingError, did_you_mean
from ...storage import write_text
from .events import Callback, Start, Step, Trained

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Names of trackers, which are also the names of their packages."""
PROJECT, RUN_ID = "lowpeft", "run-id.txt"


class Trackers(Callback):
    """Write every step's row, and the images of validations, to experiment trackers.

    A resumed run goes on in the same place, and each step appears once: TensorBoard purges the events of steps after
    the checkpoint, and W&B, to which the run's own id is given, ignores steps that it already has.

    Attributes:
        names: Names of `TRACKERS`.

    Raises:
        TrainingError: A name is unknown, or its package is not installed; all are listed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        problems = [
            f"there is no tracker {name!r}{did_you_mean(name, TRACKERS)}; known are {', '.join(TRACKERS)}"
            for name in names
            if name not in TRACKERS
        ]
        problems += [
            f"{name} is not installed: pip install {name.replace('_', '-')}"
            for name in names
            if name in TRACKERS and importlib.util.find_spec(name) is None
        ]
        if problems:
            raise TrainingError("the run cannot be tracked as asked:", problems=problems)
        self.names, self._open = tuple(dict.fromkeys(names)), list[Any]()

    def on_start(self, start: Start) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if not self.names:
            return
        if start.out is None:
            raise TrainingError("trackers need a folder for the run: pass out=")
        start.out.mkdir(parents=True, exist_ok=True)
        PartialState()  # the trackers need it for their own log messages
        for name in self.names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from the trackers' own dependencies
                tracker = _made(LOGGER_TYPE_TO_CLASS[name], name, start)
                getattr(tracker, "start", lambda: None)()  # older versions of Accelerate start in the constructor
            self._open.append(tracker)
            if name != "tensorboard":  # which has a page of its own for these, with a folder for each start
                tracker.store_init_configuration(dict(start.settings))

    def on_row(self, step: Step) -> None:
        row = {name: value for name, value in asdict(step).items() if name != "step" and value is not None}
        for tracker in self._open:
            tracker.log(row, step=step.step)

    def on_images(self, step: int, images: Mapping[str, Tensor]) -> None:
        arrays = {name: image.permute(1, 2, 0)[None].numpy() for name, image in images.items()}
        for name, tracker in zip(self.names, self._open, strict=True):
            if (log_images := getattr(tracker, "log_images", None)) is not None:  # some have no images
                log_images(arrays, step=step, **({"dataformats": "NHWC"} if name == "tensorboard" else {}))

    def on_end(self, trained: Trained | None) -> None:
        while self._open:
            self._open.pop().finish()


def _made(tracker: Any, name: str, start: Start) -> Any:
    """Return a tracker of Accelerate that goes on after the steps taken so far."""
    out = start.out or Path()
    if name == "tensorboard":
        return tracker("tensorboard", logging_dir=str(out), purge_step=start.step + 1)
    if name == "wandb":
        return tracker(
            PROJECT, name=out.resolve().name, id=_run_id(out, new=not start.step), resume="allow", dir=str(out)
        )
    return tracker(PROJECT, logging_dir=str(out)) if tracker.requires_logging_directory else tracker(PROJECT)


def _run_id(out: Path, *, new: bool) -> str:
    """Return the id of the run in a folder; a new one for a run that begins."""
    path = out / RUN_ID
    if new or not path.is_file():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()
