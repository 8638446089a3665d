"""Checkpoints of a training run: one folder each, either complete or missing. No pickle.

    checkpoints/step-00000500/
        tensors.safetensors   trained tensors, AdamW's state, moving averages
        state.json            step, identity of the run, figures so far, lengths of the logs

A checkpoint is written under a temporary name, fsynced and renamed; only then are older ones removed. A killed run or a
full disk therefore leaves the last good one intact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import TrainingError
from ...storage import leftovers, new_folder
from ...version import version

SCHEMA = 1
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
        logs: Length in bytes of each log file, by name.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best: float | None = None
    best_step: int | None = None
    logs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        progress: Progress of the run.
        identity: JSON values that identify the run: settings, adapters, base, data.
        tensors: Tensors by name; on the CPU when read.
    """

    progress: Progress
    identity: dict[str, Any]
    tensors: dict[str, Tensor]


def checkpoints(out: Path) -> list[Path]:
    """List the complete checkpoints of a run, the newest last.

    Raises:
        TrainingError: The folder cannot be read.
    """
    try:
        found = (out / FOLDER).glob(f"{PREFIX}*[0-9]")
        return sorted(path for path in found if (path / STATE).is_file())
    except OSError as error:
        raise TrainingError(f"cannot read {out / FOLDER}: {error.strerror or error}") from None


def last_step(out: Path) -> int:
    """Return the step of the newest complete checkpoint of a run; 0 if none exists."""
    return max((int(path.name.removeprefix(PREFIX)) for path in checkpoints(out)), default=0)


def write_checkpoint(out: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Raises:
        OSError: The checkpoint cannot be written; existing ones are unchanged.
        SafetensorError: As for `OSError`.
    """
    folder = out / FOLDER / f"{PREFIX}{checkpoint.progress.step:08d}"
    with new_folder(folder) as new:
        # Cloned, because safetensors refuses tensors that share memory, and some networks have one under two names.
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in checkpoint.tensors.items()}, new / TENSORS)
        state = {
            "schema": SCHEMA,
            "lowpeft": version(),
            "progress": asdict(checkpoint.progress),
            "identity": checkpoint.identity,
            "sha256": _digest(new / TENSORS),
        }
        (new / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    _remove_all_but(out, keep)
    return folder


def _remove_all_but(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and incomplete ones that killed runs left."""
    stay = set(checkpoints(out)[-keep:])
    for path in [*(out / FOLDER).glob(f"{PREFIX}*"), *leftovers(out / FOLDER)]:
        if path not in stay:
            (path / STATE).unlink(missing_ok=True)  # incomplete without its state file, so a crash here is safe
            shutil.rmtree(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(usedforsecurity=False)).hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TrainingError: The checkpoint is damaged, or has the schema of another version of lowpeft.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["schema"] != SCHEMA:
            raise TrainingError(f"{folder} has schema {state['schema']!r}, this lowpeft ({version()}) reads {SCHEMA}")
        if state["sha256"] != _digest(folder / TENSORS):
            raise TrainingError(f"{folder / TENSORS} is not the file that was written: its checksum differs")
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        return Checkpoint(progress=Progress(**state["progress"]), identity=state["identity"], tensors=tensors)
    except (KeyError, OSError, SafetensorError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """List the differences between the identities of two runs, one line of text each."""
    here, there = _flat(now), _flat(then)
    missing = object()
    return [
        f"{key.replace('_', ' ')} is {_shown(here.get(key, missing), missing)}, "
        f"in the checkpoint {_shown(there.get(key, missing), missing)}"
        for key in dict.fromkeys([*here, *there])
        if here.get(key, missing) != there.get(key, missing)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists into one dict with dotted names, e.g. "setting.betas.0"."""
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        flat |= _flat(inner, f"{name}.{key}" if name else key)
    return flat


def _shown(value: Any, missing: object) -> str:
    if value is missing:
        return "not there"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-5:]}"
