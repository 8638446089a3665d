"""Weights, recipes, experiments and checkpoints of training that were damaged at random: read, or one LowpeftError.

Adapter folders are in `tests/core/test_fuzzed_files.py`.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lowpeft
from fuzzing import CASES, MANY_CASES, damaged
from lowpeft import LowpeftError
from lowpeft.demo import demo_backbone
from lowpeft.paper.experiments import load_experiment
from lowpeft.restoration.training.checkpoint import Checkpoint, Progress, read_newest, write_checkpoint
from training_runs import edt, small


@dataclass(frozen=True)
class Input:
    """A file that users give, or that strangers may have written.

    Attributes:
        write: Function that writes it, whole, to a folder, and returns it.
        read: Function that reads it.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], object]


def torch_file(folder: Path) -> Path:
    torch.save({"params_ema": small().module.state_dict(), "step": 3}, folder / "net.pth")
    return folder / "net.pth"


def old_torch_file(folder: Path) -> Path:
    state = small().module.state_dict()
    torch.save({"params": state, "optimizer": {"state": {}}}, folder / "net.pth", _use_new_zipfile_serialization=False)
    return folder / "net.pth"


def safetensors_file(folder: Path) -> Path:
    save_file(small().module.state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


def known_file(folder: Path) -> Path:
    save_file(demo_backbone().module.state_dict(), folder / "hat.safetensors")
    return folder / "hat.safetensors"


def bundled(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = Path(lowpeft.__file__).parent / name
        return Path(shutil.copy(source, folder / source.name))

    return write


def checkpoint(folder: Path) -> Path:
    tensors = {"weight": torch.rand(3, 4), "momentum": torch.rand(3, 4)}
    progress = Progress(step=7, seconds=1.5, loss=0.25, best=30.0, best_step=7)
    written = Checkpoint(progress=progress, identity={"seed": 0}, tensors=tensors, optimizer={"lr": [0.1]})
    write_checkpoint(folder, written, keep=1)
    return folder / "checkpoints" / "step-00000007"


def same_checkpoint(file: Path) -> object:
    found = read_newest(file.parents[2])
    assert found is not None
    assert (found.progress.step, found.progress.best, found.identity) == (7, 30.0, {"seed": 0})
    return found


def plan_of(recipe: Path) -> object:
    return lowpeft.plan(edt(), lowpeft.load_recipe(recipe))


INPUTS = {
    "torch file": Input(torch_file, lambda file: lowpeft.load_backbone(file, network=small())),
    "torch file of before 1.6": Input(old_torch_file, lambda file: lowpeft.load_backbone(file, network=small())),
    "safetensors file": Input(safetensors_file, lambda file: lowpeft.load_backbone(file, network=small())),
    "file of a known network": Input(known_file, lowpeft.load_backbone),
    "recipe": Input(bundled("recipes/lora.toml"), plan_of),
    "recipe of several kinds": Input(bundled("recipes/stereo.toml"), plan_of),
    "experiment": Input(bundled("paper/experiments/placement.toml"), load_experiment),
    "state of a checkpoint": Input(lambda folder: checkpoint(folder) / "state.json", same_checkpoint),
    "tensors of a checkpoint": Input(lambda folder: checkpoint(folder) / "tensors.safetensors", same_checkpoint),
}


def surprises(name: str, folder: Path, numbers: range) -> list[str]:
    """Read damaged files; return what came of those that were neither read nor refused in one way."""
    file = INPUTS[name].write(folder)
    whole, found = file.read_bytes(), []
    INPUTS[name].read(file)
    for number in numbers:
        file.write_bytes(damaged(whole, random.Random(f"{name} {number}")))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                INPUTS[name].read(file)
        except LowpeftError as error:
            if len(str(error)) > 20_000:
                found.append(f"case {number}: a message of {len(str(error))} characters")
        except Exception as error:  # noqa: BLE001  (whatever it is, it is a surprise)
            found.append(f"case {number}: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("name", INPUTS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    assert surprises(name, tmp_path, range(CASES // len(INPUTS))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_many_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    assert surprises(name, tmp_path, range(CASES, CASES + MANY_CASES // len(INPUTS))) == []
