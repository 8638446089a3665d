"""Checkpoints of a training run: one folder each, either complete or missing. No pickle.

    checkpoints/step-00000500/
        tensors.safetensors   trained tensors, the optimiser's state, moving averages
        state.json            step, identity of the run, figures so far, numbers of the optimiser

A checkpoint is written under a temporary name, fsynced and renamed; only then are older ones removed. A killed run or a
full disk therefore leaves the last good one intact.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ... import checks
from ...errors import TrainingError
from ...storage import leftovers, new_folder
from ...version import version

SCHEMA = 4
FOLDER, TENSORS, STATE = "checkpoints", "tensors.safetensors", "state.json"
PREFIX = "step-"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: Number of optimiser steps taken.
        seconds: Training time over all sessions.
        loss: Mean loss of the last step's batch.
        best: Best validation figure so far; None before the first.
        best_step: Step after which `best` was measured; None before the first.
        without_gain: Number of measurements since the best one.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best: float | None = None
    best_step: int | None = None
    without_gain: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        progress: Progress of the run.
        identity: JSON values that identify the run: settings, adapters, base, data.
        tensors: Tensors by name; on the CPU when read.
        optimizer: Plain values of the optimiser's state; see `optimizers.optimizer_values`.
    """

    progress: Progress
    identity: dict[str, Any]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]


def checkpoints(out: Path) -> list[Path]:
    """List the complete checkpoints of a run, the newest last.

    Raises:
        TrainingError: The folder cannot be read.
    """
    try:
        return sorted(path for path in (out / FOLDER).glob(f"{PREFIX}*[0-9]") if (path / STATE).is_file())
    except OSError as error:
        raise TrainingError(f"cannot read {out / FOLDER}: {error.strerror or error}") from None


def last_step(out: Path) -> int:
    """Return the step of the newest complete checkpoint of a run; 0 if none exists."""
    return max((int(path.name.removeprefix(PREFIX)) for path in checkpoints(out)), default=0)


def write_checkpoint(out: Path, checkpoint: Checkpoint, *, keep: int) -> None:
    """Write a checkpoint, then remove all but the newest `keep`, and incomplete ones that killed runs left.

    Raises:
        TrainingError: A tensor contains NaN or infinity, so that training could not continue from it.
        OSError: The checkpoint cannot be written; existing ones are unchanged.
        SafetensorError: As for `OSError`.
    """
    if bad := [name for name, tensor in checkpoint.tensors.items() if not torch.isfinite(tensor).all()]:
        raise TrainingError("no checkpoint was written, because these tensors contain NaN or infinity:", problems=bad)
    with new_folder(out / FOLDER / f"{PREFIX}{checkpoint.progress.step:08d}") as new:
        # Cloned, because safetensors refuses tensors that share memory, and some networks have one under two names.
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in checkpoint.tensors.items()}, new / TENSORS)
        state = {
            "schema": SCHEMA,
            "lowpeft": version(),
            "progress": asdict(checkpoint.progress),
            "identity": checkpoint.identity,
            "optimizer": checkpoint.optimizer,
        }
        state["sha256"] = _sha256(new / TENSORS, state)
        (new / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    stay = set(checkpoints(out)[-keep:])
    for path in [*(out / FOLDER).glob(f"{PREFIX}*"), *leftovers(out / FOLDER)]:
        if path not in stay:
            (path / STATE).unlink(missing_ok=True)  # incomplete without its state file, so a crash here is safe
            shutil.rmtree(path)


def _sha256(path: Path, state: Mapping[str, Any]) -> str:
    """Return the digest of a file and of JSON values."""
    values = json.dumps(state, sort_keys=True).encode()
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(values, usedforsecurity=False)).hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TrainingError: The checkpoint is damaged, or has the schema of another version of lowpeft.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["schema"] != SCHEMA:
            raise TrainingError(f"{folder} has schema {state['schema']!r}, but lowpeft {version()} reads {SCHEMA}")
        if state.pop("sha256") != _sha256(folder / TENSORS, state):
            raise TrainingError(f"{folder} was changed after it was written: its checksum differs")
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        progress = _progress(state["progress"], folder)
        identity, optimizer = (_table(state[key], key, folder) for key in ("identity", "optimizer"))
        return Checkpoint(progress=progress, identity=identity, tensors=tensors, optimizer=optimizer)
    except TrainingError:
        raise
    except (AttributeError, KeyError, OSError, RecursionError, SafetensorError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def _table(value: object, name: str, folder: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TrainingError(f"{folder} cannot be read: {name} is {str(value)[:40]!r}, not a table")
    return value


def _is_figure(value: object) -> bool:
    """Return whether a value is a number, possibly NaN or infinite."""
    return type(value) in (int, float)


def _progress(values: object, folder: Path) -> Progress:
    """Return the progress from JSON values.

    Raises:
        TrainingError: A value is missing, unknown, or of another type; all are listed.
    """
    found = _table(values, "progress", folder)
    fits: dict[str, Callable[[Any], bool]] = {
        "step": lambda v: checks.is_whole(v, least=1) and folder.name == f"{PREFIX}{v:08d}",
        "seconds": lambda v: checks.is_number(v, above=-1),
        "loss": _is_figure,
        "best": lambda v: v is None or checks.is_number(v, above=-math.inf),
        "best_step": lambda v: v is None or checks.is_whole(v, least=0),
        "without_gain": lambda v: checks.is_whole(v, least=0),
    }
    problems = [f"progress.{key} is missing" for key in fits if key not in found]
    problems += [f"progress.{key} is {v!r}" for key, v in found.items() if key not in fits or not fits[key](v)]
    if problems:
        raise TrainingError(f"{folder} cannot be read:", problems=problems)
    return Progress(**found)


def read_newest(out: Path) -> Checkpoint | None:
    """Read the newest checkpoint of a run; None if none exists.

    Raises:
        TrainingError: It is damaged; the message says how to continue.
    """
    folders = checkpoints(out)
    try:
        return read_checkpoint(folders[-1]) if folders else None
    except TrainingError as error:
        then = f"continue from {folders[-2].name}" if len(folders) > 1 else "start again"
        raise TrainingError(f"{error.message}; remove {folders[-1]} to {then}") from error
