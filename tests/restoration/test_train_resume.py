"""Killed, stopped and broken runs: what is resumed ends as if nothing had happened, and nothing good is ever lost."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import lowpeft
import training_runs
from lowpeft import storage
from lowpeft.errors import DataError, DivergedError, TrainingError
from lowpeft.restoration.training import Processes, checkpoint, checkpoints, last_step, train
from tiers import by_default
from training_runs import SETTINGS, Samples, go, model_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")

RECIPES = ("stereo", "spatial", "full", "whole")
PRODUCT = {"whole": "network.safetensors"}
VALIDATED = replace(SETTINGS, validate_every_steps=2)


class Stop(BaseException):
    """What no code catches, as a power cut."""


def stop_after(step: int) -> Callable[[Any], None]:
    def report(done: Any) -> None:
        if done.step == step:
            raise Stop

    return report


def figure(model: torch.nn.Module) -> float:
    """Something that depends on the trained tensors, and draws random numbers."""
    torch.rand(3)
    return -float(sum(p.double().abs().sum() for p in model.parameters()))


def product(out: Path, recipe: str) -> dict[str, Tensor]:
    return load_file(out / PRODUCT.get(recipe, "adapter_model.safetensors"))


def log_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same(one: Path, other: Path, recipe: str) -> bool:
    a, b = product(one, recipe), product(other, recipe)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and log_of(one) == log_of(other)


# Differences and the network itself by default: what a run keeps of an adapter is the same for every kind.
@pytest.fixture(scope="module", params=by_default(["stereo", "whole"], RECIPES))
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A recipe, and the folder of its run that was not disturbed."""
    out = tmp_path_factory.mktemp("intact") / request.param
    go(request.param, VALIDATED, out=out, validate=figure)
    return request.param, out


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `full` that was not disturbed."""
    out = tmp_path_factory.mktemp("reference")
    go("full", SETTINGS, out=out)
    return out


# --- Exactness
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(intact: tuple[str, Path], step: int, tmp_path: Path) -> None:
    recipe, reference = intact
    with pytest.raises(Stop):
        go(recipe, VALIDATED, out=tmp_path, validate=figure, report=stop_after(step))
    model, done = go(recipe, VALIDATED, out=tmp_path, validate=figure, resume=True)
    assert done.resumed_at == step - step % 2
    assert same(tmp_path, reference, recipe)
    states = [load_file(last(folder) / "tensors.safetensors") for folder in (tmp_path, reference)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[1])
    assert {key.split(".")[0] for key in states[1]} == {"model", "average", "optimizer"}
    if recipe != "whole":
        saved = product(reference, recipe)
        assert all(torch.equal(v, saved[k]) for k, v in lowpeft.adapter_state_dict(model).items())


def last(out: Path) -> Path:
    return checkpoints(out)[-1]


def test_the_best_is_that_of_the_whole_run(intact: tuple[str, Path], tmp_path: Path) -> None:
    recipe, reference = intact
    with pytest.raises(Stop):
        go(recipe, VALIDATED, out=tmp_path, validate=figure, report=stop_after(5))
    _, done = go(recipe, VALIDATED, out=tmp_path, validate=figure, resume=True)
    best, expected = product(tmp_path / "best", recipe), product(reference / "best", recipe)
    assert all(torch.equal(best[k], expected[k]) for k in expected)
    rows = {row["step"]: row["validation"] for row in log_of(tmp_path) if row["validation"] is not None}
    assert (done.best_step, done.best) == max(rows.items(), key=lambda item: item[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("recipe", ["whole", "stereo"])
def test_a_run_that_was_killed_ten_times_ends_as_one_that_was_not(recipe: str, seed: int, tmp_path: Path) -> None:
    """SIGKILL after ten random steps and delays; the checkpoints of `whole` are written at every step."""
    out = tmp_path / recipe
    command = [sys.executable, training_runs.__file__, "kills", str(out), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    report = json.loads(done.stdout)
    assert report["ends"] == [0, 0]
    assert len([rows for rows in report["moments"] if rows >= 0]) == 10
    assert same(out / "killed", out / "intact", recipe)
    steps = [*range(1, training_runs.ENDS[recipe] + 1)]  # it is out of patience before the last step
    assert [row["step"] for row in log_of(out / "killed")] == steps
    events = EventAccumulator(str(out / "killed" / "tensorboard"), {"scalars": 0}).Reload().Scalars("loss")
    assert [event.step for event in events] == steps
    best = [product(out / name / "best", recipe) for name in ("killed", "intact")]
    assert all(torch.equal(best[0][k], best[1][k]) for k in best[1])


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    model, done = go("full", SETTINGS, out=tmp_path)
    before = product(tmp_path, "full")
    again, same_run = go("full", SETTINGS, out=tmp_path, resume=True)
    assert (same_run.steps, same_run.resumed_at, same_run.loss) == (6, 6, done.loss)
    after = product(tmp_path, "full")
    assert all(torch.equal(before[k], after[k]) for k in before)
    state = lowpeft.adapter_state_dict(model)
    assert all(torch.equal(v, state[k]) for k, v in lowpeft.adapter_state_dict(again).items())
    assert len(log_of(tmp_path)) == 6


def test_settings_that_change_nothing_may_change(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        go("full", SETTINGS, out=tmp_path, report=stop_after(3))
    other = replace(SETTINGS, save_every_steps=1, keep_checkpoints=2, workers=1)
    go("full", other, out=tmp_path, resume=True)
    assert same(tmp_path, reference, "full")


# --- Another run's checkpoint
def other_base() -> torch.nn.Module:
    base = training_runs.edt()
    with torch.no_grad():
        base.module.body.norm.bias.add_(1)
    return lowpeft.adapt(base, "stereo")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stereo run that was stopped after its first checkpoint."""
    out = tmp_path_factory.mktemp("begun")
    with pytest.raises(Stop):
        go("stereo", SETTINGS, out=out, report=stop_after(3))
    return out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"settings": replace(SETTINGS, learning_rate=0.5)}, "setting.learning_rate is 0.5, in the checkpoint 0.001"),
        ({"settings": replace(SETTINGS, steps=7)}, "setting.steps is 7"),
        ({"settings": replace(SETTINGS, ema_decay=0.0)}, "setting.ema_decay is 0.0"),
        ({"model": lambda: model_of("stereo-only")}, "adapter.default.adapter.0.kind is 'stereo'"),
        ({"model": other_base}, "base.weights is"),
        ({"crops": Samples(scenes=[training_runs.Named("c")])}, "data.scenes is 1"),
        ({"crops": Samples(seed=1)}, "data.first crop.0 is"),
        ({"crops": Samples(crop_px=(48, 48))}, "data.crop px.0 is 48"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    change: dict[str, Any], sentence: str, begun: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    model = change.get("model", lambda: model_of("stereo"))()
    before = {k: v.clone() for k, v in lowpeft.adapter_state_dict(model).items()}
    crops, settings = change.get("crops", Samples()), change.get("settings", SETTINGS)
    with pytest.raises(TrainingError, match="step 2") as caught:
        train(model, crops, settings, out=out, resume=True)
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems
    assert files(out) == files(begun)
    assert all(torch.equal(v, before[k]) for k, v in lowpeft.adapter_state_dict(model).items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_with_a_run_is_not_overwritten(begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    with pytest.raises(TrainingError, match="step-00000002"):
        go("stereo", SETTINGS, out=out)
    assert files(out) == files(begun)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("recipe", by_default(["whole"], ["full", "whole"]))
def test_a_result_whose_checkpoints_were_deleted_is_not_overwritten(recipe: str, resume: bool, tmp_path: Path) -> None:
    go(recipe, SETTINGS, out=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = files(tmp_path)
    with pytest.raises(TrainingError, match=r"(adapter_model|network)\.safetensors"):
        go(recipe, SETTINGS, out=tmp_path, resume=resume)
    assert files(tmp_path) == before


def test_without_a_checkpoint_resuming_is_beginning(tmp_path: Path) -> None:
    _, done = go("stereo", SETTINGS, out=tmp_path / "new", resume=True)
    assert (done.resumed_at, done.steps) == (0, 6)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be_read_is_named(resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path, pattern: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "glob", locked)
    with pytest.raises(TrainingError, match=f"{tmp_path / 'checkpoints'}: Permission denied"):
        go("full", SETTINGS, out=tmp_path, resume=resume)


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(TrainingError, match="out="):
        go("full", SETTINGS, resume=True)


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    def tied() -> torch.nn.Module:
        model = training_runs.small().module
        model.other_task.weight = model.tail.weight
        return model

    with pytest.raises(Stop):
        train(tied(), Samples(), SETTINGS, out=tmp_path / "a", report=stop_after(3))
    train(tied(), Samples(), SETTINGS, out=tmp_path / "a", resume=True)
    train(tied(), Samples(), SETTINGS, out=tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b", "whole")


# --- One run in a folder
# Another process that locks the folder. Its packages are empty, because lowpeft's own import torch, for seconds.
ANOTHER = """
import pathlib, sys, types

for name in ("lowpeft", "lowpeft.restoration", "lowpeft.restoration.training"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(pathlib.Path(sys.argv[1], *name.split(".")))]

from lowpeft.errors import TrainingError
from lowpeft.locking import locked

with locked(pathlib.Path(sys.argv[2]), TrainingError):
    pass
"""


class Holding(Samples):
    """Tries to train in a folder, in this process and in another, while its first crop is read."""

    out: Path
    said: tuple[str, ...] = ()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not self.said:
            self.said = ("trying",)
            with pytest.raises(TrainingError) as caught:
                go("full", SETTINGS, out=self.out, resume=True)
            command = [sys.executable, "-c", ANOTHER, str(Path(lowpeft.__file__).parents[1]), str(self.out)]
            other = subprocess.run(command, check=False, capture_output=True, text=True)
            self.said = (str(caught.value), other.stderr.strip().splitlines()[-1])
        return super().__getitem__(index)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    crops = Holding()
    crops.out = tmp_path
    train(model_of("full"), crops, SETTINGS, out=tmp_path)
    assert all(f"another run is writing into {tmp_path} (" in said for said in crops.said), crops.said
    assert f"process {os.getpid()} on" in crops.said[1]
    assert not [*tmp_path.glob(".*")]
    assert go("full", SETTINGS, out=tmp_path, resume=True)[1].resumed_at == 6


class Msvcrt(types.ModuleType):
    """Python's module of Windows: a byte that is locked cannot be locked again."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: set[tuple[int, int]] = set()

    def locking(self, handle: int, mode: int, size: int) -> None:
        byte = os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        if mode == self.LK_UNLCK:
            self.held.remove(byte)
        elif byte in self.held:
            raise PermissionError(errno.EACCES, "Permission denied")
        else:
            self.held.add(byte)


def test_a_folder_is_locked_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's module replaced; the second copy of ours stands for another process."""
    stub = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", stub)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    name = "lowpeft.locking"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    one, other = (importlib.util.module_from_spec(spec) for _ in range(2))
    with monkeypatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        spec.loader.exec_module(one)
        spec.loader.exec_module(other)
    with one.locked(tmp_path, TrainingError):
        with (
            pytest.raises(TrainingError, match=rf"another run .* \(process {os.getpid()} on "),
            other.locked(tmp_path, TrainingError),
        ):
            pass
        assert len(stub.held) == 1
    assert not stub.held
    assert not [*tmp_path.iterdir()]
    with other.locked(tmp_path, TrainingError):
        pass


def test_a_lock_that_a_killed_run_left_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / ".lowpeft.lock").write_text("process 1 on another")
    assert go("full", replace(SETTINGS, steps=1), out=tmp_path)[1].steps == 1


def test_without_resume_nothing_is_read(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a checkpoint appears after the folder was checked."""
    monkeypatch.setattr("lowpeft.restoration.training.loop.check_folder", lambda folder, **options: None)
    out = shutil.copytree(begun, tmp_path / "out")
    assert go("stereo", replace(SETTINGS, steps=1), out=out)[1].resumed_at == 0


# --- Damage
def truncate(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def change_a_byte(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def change_the_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 5'))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (truncate, "checksum"),
        (change_a_byte, "checksum"),
        (lambda folder: (folder / "tensors.safetensors").unlink(), "tensors.safetensors"),
        (lambda folder: (folder / "state.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "state.json").write_text('{"schema": 9}'), "schema 9"),
        (lambda folder: (folder / "state.json").write_text('{"schema": 4}'), "sha256"),
        (change_the_state, "checksum"),
    ],
    ids=["truncated", "changed", "no tensors", "no JSON", "schema", "empty", "changed state"],
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], None], word: str, begun: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    damage(last(out))
    with pytest.raises(TrainingError, match=rf"{word}(.|\n)*remove {last_folder(out)}"):
        go("stereo", SETTINGS, out=out, resume=True)


def last_folder(out: Path) -> Path:
    return out / "checkpoints" / "step-00000002"


def test_a_damaged_checkpoint_says_which_one_is_before_it(reference: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, keep_checkpoints=2)
    with pytest.raises(Stop):
        go("full", settings, out=tmp_path, report=stop_after(5))
    truncate(last(tmp_path))
    with pytest.raises(TrainingError, match=r"remove .*step-00000004 to .* step-00000002"):
        go("full", settings, out=tmp_path, resume=True)
    shutil.rmtree(last(tmp_path))
    assert go("full", settings, out=tmp_path, resume=True)[1].resumed_at == 2
    assert same(tmp_path, reference, "full")


def test_what_a_kill_leaves_is_no_checkpoint_and_goes_away(begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    shutil.copytree(last(out), out / "checkpoints" / "step-00000004.new")
    (out / "checkpoints" / "step-00000001").mkdir()
    assert last_step(out) == 2
    go("stereo", SETTINGS, out=out, resume=True)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000006"]


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    go("whole", replace(SETTINGS, save_every_steps=1, keep_checkpoints=3), out=tmp_path)
    assert [last_step(tmp_path), *(p.name[-1] for p in checkpoints(tmp_path))] == [6, "4", "5", "6"]


def test_a_checkpoint_holds_tensors_and_json_alone(begun: Path) -> None:
    assert sorted(p.name for p in last(begun).iterdir()) == ["state.json", "tensors.safetensors"]


DAMAGED_LOGS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "cut": (lambda rows: rows[:1], "ends at step 1"),
    "cut within a row": (lambda rows: [rows[0], rows[1][:40]], "ends at step 1"),
    "edited": (lambda rows: [rows[0].replace("loss", "los"), *rows[1:]], "line 1 "),
    "no JSON": (lambda rows: [*rows[:1], "}\n"], "line 2 "),
}


@pytest.mark.parametrize("damage", DAMAGED_LOGS)
def test_a_damaged_log_is_refused(damage: str, begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    log, (change, says) = out / "training.jsonl", DAMAGED_LOGS[damage]
    log.write_text("".join(change(log.read_text().splitlines(keepends=True))))
    before, model = files(out), model_of("stereo")
    state = {k: v.clone() for k, v in lowpeft.adapter_state_dict(model).items()}
    with pytest.raises(TrainingError, match=re.escape(str(log))) as caught:
        train(model, Samples(), SETTINGS, out=out, resume=True)
    assert says in str(caught.value)
    assert files(out) == before
    assert all(torch.equal(v, state[k]) for k, v in lowpeft.adapter_state_dict(model).items())


# Without its log, a run is the same whatever the log was like.
@pytest.mark.parametrize("damage", by_default(["cut"], DAMAGED_LOGS))
def test_after_a_damaged_log_a_new_one_can_be_started(damage: str, begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    log, (change, _) = out / "training.jsonl", DAMAGED_LOGS[damage]
    log.write_text("".join(change(log.read_text().splitlines(keepends=True))))
    with pytest.raises(TrainingError, match=re.escape(str(log))):
        go("stereo", SETTINGS, out=out, resume=True)
    log.unlink()
    go("stereo", SETTINGS, out=out, resume=True)
    assert [row["step"] for row in log_of(out)] == [3, 4, 5, 6]


def test_a_run_that_is_killed_after_its_log_was_removed_goes_on(begun: Path, tmp_path: Path) -> None:
    """The new log has no rows of the steps that the last checkpoint counts."""
    out = shutil.copytree(begun, tmp_path / "out")
    (out / "training.jsonl").unlink()
    with pytest.raises(Stop):
        go("stereo", SETTINGS, out=out, resume=True, report=stop_after(3))
    assert [row["step"] for row in log_of(out)] == [3]
    assert go("stereo", SETTINGS, out=out, resume=True)[1].resumed_at == 2
    assert [row["step"] for row in log_of(out)] == [3, 4, 5, 6]


# --- Disk full, bad numbers, bad images
def full_disk(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def partly(path: Path, *args: Any, **options: Any) -> None:
    """Write some bytes, then find the disk full."""
    path.write_bytes(b"x" * 100)
    full_disk()


PLACES: dict[str, tuple[Any, str, Any]] = {
    "tensors": (checkpoint, "save_file", lambda tensors, path, *rest: partly(Path(path))),
    "folder": (Path, "mkdir", full_disk),
    "json": (Path, "write_text", full_disk),
    "flush": (storage, "fsync", full_disk),
    "rename": (Path, "rename", full_disk),
    "adapter": (lowpeft.core.files.saving, "save_file", lambda tensors, path, *rest: partly(Path(path))),
    "log": (lowpeft.restoration.training.log.Log, "write", full_disk),
}


@pytest.mark.parametrize("place", by_default(["tensors", "adapter", "log"], PLACES))
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    place: str, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(done: Any) -> None:
        if done.step == 3:
            monkeypatch.setattr(*PLACES[place])

    with pytest.raises(TrainingError, match="No space left on device") as caught:
        go("full", SETTINGS, out=tmp_path / "out", report=fill)
    monkeypatch.undo()
    found = last(tmp_path / "out")
    assert found.name == ("step-00000004" if place == "adapter" else "step-00000002")
    assert f"The last good checkpoint is {found}" in str(caught.value)
    assert not [*(tmp_path / "out" / "checkpoints").glob("*.new")]
    checkpoint.read_checkpoint(found)
    lowpeft.read_adapter(tmp_path / "out")
    go("full", SETTINGS, out=tmp_path / "out", resume=True)
    assert same(tmp_path / "out", reference, "full")


def test_a_folder_that_cannot_be_made_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="step 0"):
        go("stereo", SETTINGS, out=tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("where", "reason"),
    [("tail", "loss is nan"), ("other_task", "NaN or infinity:\n.*other_task")],
)
def test_what_is_not_finite_stops_the_run_and_gets_into_no_checkpoint(
    where: str, reason: str, reference: Path, tmp_path: Path
) -> None:
    model = model_of("full")

    def poison(done: Any) -> None:
        if done.step == 3:
            with torch.no_grad():
                next(p for n, p in lowpeft.adapter_parameters(model) if n.startswith(where)).fill_(math.nan)

    with pytest.raises(TrainingError, match=rf"step 4\b.*step-00000002\b.* {reason}") as caught:
        train(model, Samples(), SETTINGS, out=tmp_path, report=poison)
    assert isinstance(caught.value, DivergedError) == reason.startswith("loss")
    go("full", SETTINGS, out=tmp_path, resume=True)
    assert same(tmp_path, reference, "full")


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    """The square root of 0 has an infinite slope, and 0 times infinity is no number."""

    class Edge(training_runs.Small):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out + (out - out).abs().sqrt().sum() * 0

    model = Edge()
    before = {k: v.clone() for k, v in model.state_dict().items() if "norm" not in k}
    with pytest.raises(DivergedError, match=r"step 1\b.* gradient is nan"):
        train(model, Samples(), SETTINGS, out=tmp_path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


class Holed(Samples):
    """The eleventh crop is of a damaged image."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 10:
            raise DataError("scene b: b_L.png is damaged", problems=["the file ends early"])
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_the_run_and_is_named(workers: int, reference: Path, tmp_path: Path) -> None:
    model = model_of("full")
    with pytest.raises(TrainingError, match=r"step 4\b.*step-00000002\b.*scene b: b_L.png") as caught:
        train(model, Holed(), replace(SETTINGS, workers=workers), out=tmp_path)
    assert caught.value.problems == ("the file ends early",)
    go("full", SETTINGS, out=tmp_path, resume=True)
    assert same(tmp_path, reference, "full")


class Unreadable(Samples):
    """The first crop cannot be read, and the error is of the operating system or of lowpeft."""

    error: Exception = DataError("scene a: a_L.png is damaged", problems=["the file ends early"])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise self.error


@pytest.mark.parametrize("error", [Unreadable.error, OSError(errno.EIO, "Input/output error", "a_L.png")])
@pytest.mark.parametrize("out", [True, False], ids=["folder", "no folder"])
def test_a_first_crop_that_cannot_be_read_is_the_same_error_as_a_later_one(
    error: Exception, out: bool, tmp_path: Path
) -> None:
    """It is read for the run's identity, or in the first step."""
    crops = Unreadable()
    crops.error = error
    with pytest.raises(TrainingError, match=r"step [01]\b.*a_L.png") as caught:
        train(model_of("full"), crops, SETTINGS, out=tmp_path / "out" if out else None)
    assert caught.value.problems == getattr(error, "problems", ())
    assert not (tmp_path / "out" / "checkpoints").exists()


class Second(Processes):
    """Takes all samples, and writes nothing."""

    @property
    def main(self) -> bool:
        return False


def test_a_process_that_writes_nothing_names_the_checkpoint_too(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of several processes may be the one that finds the damaged image."""
    out = shutil.copytree(begun, tmp_path / "out")
    monkeypatch.setattr("lowpeft.restoration.training.loop.connect", lambda: Second(number=1, index=0, device=None))
    model = model_of("stereo")
    with pytest.raises(TrainingError, match=r"step 4\b.*step-00000002\b.*scene b: b_L.png"):
        train(model, Holed(), SETTINGS, out=out, resume=True)
    assert files(out) == files(begun)
