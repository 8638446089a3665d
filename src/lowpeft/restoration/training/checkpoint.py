"""Checkpoints of a training run: one folder each, complete or not there at all. Never pickle.

    checkpoints/step-00000500/
        tensors.safetensors   trained tensors, AdamW's state, moving averages
        state.json            step, what the run is, figures so far, lengths of the logs

A checkpoint is written under another name, flushed to the disk and renamed; only then are older ones removed. So a run
that is killed, or a disk that is full, leaves the last good one.
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
    """How far a run is.

    Attributes:
        step: Optimiser steps taken.
        seconds: Spent on them, in all sessions.
        loss: Of the last step.
        best: The best validation figure so far, None before the first.
        best_step: When it was measured.
        logs: Length of each log file in bytes.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best: float | None = None
    best_step: int | None = None
    logs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint as read from its folder.

    Attributes:
        progress: How far the run was.
        identity: What the run is: settings, adapters, base, data.
        tensors: By name, on the CPU.
    """

    progress: Progress
    identity: dict[str, Any]
    tensors: dict[str, Tensor]


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, the newest last.

    Raises:
        TrainingError: The folder cannot be read.
    """
    try:
        found = (out / FOLDER).glob(f"{PREFIX}*[0-9]")
        return sorted(path for path in found if (path / STATE).is_file())
    except OSError as error:
        raise TrainingError(f"cannot read {out / FOLDER}: {error.strerror or error}") from None


def last_step(out: Path) -> int:
    """The step of the newest complete checkpoint of a run, 0 if there is none."""
    return max((int(path.name.removeprefix(PREFIX)) for path in checkpoints(out)), default=0)


def write_checkpoint(out: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Raises:
        OSError: It cannot be written; what was there is as it was.
        SafetensorError: Likewise.
    """
    folder = out / FOLDER / f"{PREFIX}{checkpoint.progress.step:08d}"
    with new_folder(folder) as new:
        # Clones, because a file holds no tensor twice, and some networks hold one under two names.
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
    """Remove older checkpoints, and what killed runs left of others."""
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
        TrainingError: It is damaged, or of another version of lowpeft.
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
    """What makes two runs different ones, as lines for people."""
    here, there = _flat(now), _flat(then)
    missing = object()
    return [
        f"{key.replace('_', ' ')} is {_shown(here.get(key, missing), missing)}, "
        f"in the checkpoint {_shown(there.get(key, missing), missing)}"
        for key in dict.fromkeys([*here, *there])
        if here.get(key, missing) != there.get(key, missing)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested tables and lists as one, with dotted names."""
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
