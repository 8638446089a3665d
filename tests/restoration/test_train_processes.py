"""Several processes give what one gives: the same samples, the same loss, the same adapter up to rounding."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import training_runs
from lowpeft.errors import TrainingError
from lowpeft.restoration.training import connect
from lowpeft.restoration.training.samples import shares

TOLERANCE = 1e-5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of two processes, which talk over gloo."""
    out = tmp_path_factory.mktemp("two")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, training_runs.__file__, "ranks", str(out)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
    return out


@pytest.mark.parametrize("name", training_runs.RUNS)
@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(name: str, two: Path, tmp_path: Path) -> None:
    recipe, settings = training_runs.RUNS[name]
    training_runs.go(recipe, settings, out=tmp_path)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, two / name))
    assert max((one[k] - other[k]).abs().max().item() for k in one) < TOLERANCE
    logs = [(folder / "training.jsonl").read_text().splitlines() for folder in (tmp_path, two / name)]
    for mine, theirs in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)


@pytest.mark.slow
def test_with_patience_every_process_has_the_best_state(two: Path) -> None:
    """The main process alone measures; the state after the first step is the best, and the run ends after two."""
    one, other = (load_file(two / f"best-{rank}.safetensors") for rank in "01")
    assert one["step"] == 1
    assert training_runs.equal(one, other)
    first = training_runs.replace(training_runs.BEST, steps=1, patience=0)
    alone = training_runs.state_of(training_runs.go("stereo", first, validate=lambda m: 0.0)[0])
    assert max((alone[k] - one[k]).abs().max().item() for k in alone) < TOLERANCE


@pytest.mark.slow
def test_parts_of_a_batch_give_the_adapter_of_the_whole(tmp_path: Path) -> None:
    recipe, settings = training_runs.RUNS["uneven"]
    for parts in (1, 2, 5):
        training_runs.go(recipe, training_runs.replace(settings, accumulate=parts), out=tmp_path / str(parts))
    whole, *others = (load_file(tmp_path / n / "adapter_model.safetensors") for n in "125")
    assert max((whole[k] - o[k]).abs().max().item() for o in others for k in whole) < TOLERANCE


@given(batch=st.integers(1, 40), processes=st.integers(1, 6), parts=st.integers(1, 6))
def test_every_sample_of_a_batch_is_run_once_and_in_order(batch: int, processes: int, parts: int) -> None:
    split = shares(batch, processes, parts)
    assert [len(share) for share in split] == [parts] * processes
    assert list(itertools.chain.from_iterable(itertools.chain.from_iterable(split))) == list(range(batch))
    sizes = {len(part) for share in split for part in share}
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_smaller_than_its_parts_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"batch of 3\b.* 4 samples"):
        training_runs.go("stereo", training_runs.replace(training_runs.SETTINGS, accumulate=4))


def test_alone_there_is_one_process_on_the_device_of_the_model_without_accelerate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it raises
    processes = connect()
    assert (processes.number, processes.index, processes.device, processes.main) == (1, 0, None, True)
    assert processes.total(torch.tensor(3.0)).item() == 3
    processes.wait()
    processes.leave()


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate.PartialState(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 processes.* 1\b"):
        connect()
