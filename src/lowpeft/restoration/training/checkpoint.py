"""Checkpoints of a training run: one folder each, either complete or missing. No pickle.

    checkpoints/step-00000500/
        tensors.safetensors   trained tensors, AdamW's state, moving averages
        state.json            step, identity of the run, figures so far

A checkpoint is written under a temporary name, fsynced and renamed; only then are older ones removed. A killed run or a
full disk therefore leaves the last good one intact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...core.attachment.record import is_adapted, record_of, unwrap
from ...core.observation.fingerprint import digest, fingerprint
from ...errors import TrainingError
from ...recipes import TrainSettings, recipe_to_dict, settings_to_dict
from ...storage import leftovers, new_folder
from ...version import version
from .samples import CropSource, control_facts, names_digest

SCHEMA = 2
FOLDER, TENSORS, STATE = "checkpoints", "tensors.safetensors", "state.json"
PREFIX = "step-"

_MISSING = object()

FREE = ("accumulate", "keep_checkpoints", "save_every_steps", "workers")
"""Settings that may differ in a resumed run. Of these only `accumulate` changes results: the order of additions and the
dropout masks."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: Number of optimiser steps taken.
        seconds: Training time over all sessions.
        loss: Mean loss of the last step's batch.
        best: Best validation figure so far; None before the first.
        best_step: Step after which `best` was measured; None before the first.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best: float | None = None
    best_step: int | None = None


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
        return Checkpoint(progress=Progress(**state["progress"]), identity=state["identity"], tensors=tensors)
    except (KeyError, OSError, SafetensorError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


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


def identity(model: nn.Module, crops: CropSource, settings: TrainSettings) -> dict[str, Any]:
    """Return JSON values that identify a run; a checkpoint with other values is refused.

    Raises:
        DataError: The first crop cannot be read.
    """
    values: dict[str, Any] = {
        "setting": {key: value for key, value in settings_to_dict(settings).items() if key not in FREE},
        "data": {
            "scenes": len(crops.scenes),
            "names of the scenes": names_digest(crops),
            "crop px": crops.crop_px,
            "scale": crops.scale,
            "views": crops.views,
            "first crop": [digest(image) for image in crops[0]],
            **control_facts(crops),
        },
    }
    if is_adapted(model):
        record = record_of(unwrap(model))
        recipes = {name: recipe_to_dict(plan.recipe) for name, plan in record.plans.items()}
        values["adapter"] = {n: {k: r[k] for k in ("adapter", "freeze_statistics")} for n, r in recipes.items()}
        values["base"] = record.base.as_dict()
    else:
        values["network"] = fingerprint(model).as_dict()
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def differences(run: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[str]:
    """List the differences between a run and a checkpoint, e.g. "setting.steps is 7, in the checkpoint 6".

    Tensors differ if their shapes do.
    """
    here, saved = _flat(run), _flat(checkpoint)
    keys = [key for key in {**here, **saved} if here.get(key, _MISSING) != saved.get(key, _MISSING)]
    return [
        f"{key} is {_short(here.get(key, _MISSING))}, in the checkpoint {_short(saved.get(key, _MISSING))}"
        for key in keys
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists into one dict with dotted names, e.g. "setting.betas.0"."""
    if isinstance(value, Tensor):
        return {name: tuple(value.shape)}
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {name: value}
    inner = [_flat(v, f"{name}.{key}" if name else str(key)) for key, v in value.items()]
    return {key: leaf for leaves in inner for key, leaf in leaves.items()}


def _short(value: Any) -> str:
    text = "missing" if value is _MISSING else repr(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-5:]}"
