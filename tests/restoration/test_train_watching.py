"""What watches a run, early stop, trackers, longer runs, and checkpoints that were tampered with."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import types
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lowpeft
from lowpeft.errors import PlanError, TrainingError
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.data import Example
from lowpeft.restoration.images import matlab_downscale, read_image
from lowpeft.restoration.training import (
    Callback,
    Measured,
    Start,
    Step,
    StopTraining,
    Trackers,
    Trained,
    ValidationImages,
    checkpoints,
    train,
)
from lowpeft.restoration.training.checkpoint import _sha256, read_checkpoint
from tiers import by_default
from training_runs import CONSTANT, PLAIN, SETTINGS, VALIDATED, Samples, Stop, equal, go, model_of, state_of, stop_after

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")


# --- Watchers
class Watcher(Callback):
    """Notes what it is told; stops at a step or a measurement."""

    def __init__(self, **stops: int) -> None:
        self.told: list[str] = []
        self.stops = stops

    def on_start(self, start: Start) -> None:
        self.told.append(f"start {start.step}/{start.steps}")

    def on_measured(self, measured: Measured) -> None:
        self.told.append(f"measured {measured.step}")
        assert not measured.model.training
        if measured.step == self.stops.get("measured"):
            raise StopTraining("seen enough")

    def on_step(self, step: Step) -> None:
        self.told.append(f"step {step.step}")
        if step.step == self.stops.get("step"):
            raise StopTraining

    def on_end(self, trained: Trained | None) -> None:
        self.told.append("end" if trained is None else f"end {trained.steps} {trained.stopped}")


def test_a_callback_is_told_everything_in_order() -> None:
    watcher = Watcher()
    go("full", replace(PLAIN, steps=2, validate_every_steps=2), validate=lambda m: 1.0, callbacks=[watcher])
    assert watcher.told == ["start 0/2", "step 1", "measured 2", "step 2", "end 2 None"]
    with pytest.raises(Stop):
        go("full", PLAIN, callbacks=[watcher], report=stop_after(1))
    assert watcher.told[-1] == "end"


@pytest.mark.parametrize("place", ["step", pytest.param("measured", marks=pytest.mark.slow), "report"])
def test_a_run_that_a_watcher_stops_is_saved_and_goes_on_when_resumed(place: str, tmp_path: Path) -> None:
    def report(step: Step) -> None:
        if place == "report" and step.step == 3:
            raise StopTraining("enough")

    stopper = Watcher(**{place: 3})
    settings = replace(VALIDATED, save_every_steps=4)
    options: dict[str, Any] = {"out": tmp_path, "validate": lambda m: 1.0}
    _, done = go("full", settings, **options, callbacks=[stopper], report=report)
    assert (done.steps, done.stopped is None) == (3, False)
    assert lowpeft.read_adapter(tmp_path).recipe.training.steps == 3
    again, done = go("full", settings, **options, resume=True)
    assert (done.resumed_at, done.steps, done.stopped) == (3, 8, None)
    assert equal(state_of(again), state_of(go("full", settings, validate=lambda m: 1.0)[0]))


@pytest.mark.parametrize("killed", [*(pytest.param(n, marks=pytest.mark.slow) for n in (None, 2, 5)), 4])
def test_a_run_without_gain_stops_early_also_when_it_was_resumed(killed: int | None, tmp_path: Path) -> None:
    values = [1.0, 3.0, 2.0, 2.5, 1.0, 9.0, 9.0, 9.0]
    steps: list[int] = []

    def figure(model: nn.Module) -> float:
        return values[steps[-1] if steps else 0]

    def count(step: Step) -> None:
        steps.append(step.step)
        if step.step == killed and len(steps) == killed:
            raise Stop

    settings = replace(VALIDATED, patience=3, save_every_steps=2)
    if killed is not None:
        with pytest.raises(Stop):
            go("full", settings, out=tmp_path, validate=figure, report=count)
        steps.append(max(n for n in (0, 2, 4) if n <= killed))
    _, done = go("full", settings, out=tmp_path, validate=figure, report=count, resume=True)
    assert (done.steps, done.best, done.best_step) == (5, 3.0, 2)
    assert "no better figure in 3 measurements" in str(done.stopped)
    again = go("full", settings, out=tmp_path, validate=figure, resume=True)[1]
    assert (again.resumed_at, again.steps, again.stopped) == (5, 5, done.stopped)
    more = go("full", replace(settings, patience=9), out=tmp_path, validate=figure, report=count, resume=True)[1]
    assert (more.resumed_at, more.steps, more.stopped) == (5, 8, None)


@pytest.mark.parametrize(
    ("recipe", "place"),
    by_default(
        [("whole", "folder"), ("stereo", "resumed")], product(("whole", "stereo"), ("folder", "memory", "resumed"))
    ),
)
def test_with_patience_the_result_is_the_best_state(recipe: str, place: str, tmp_path: Path) -> None:
    """Of the whole network with its moving statistics; the checkpoint keeps the last state, from which it goes on."""
    values, states = iter([1.0, 3.0, 2.0, 2.5, 9.0]), []

    def figure(model: nn.Module) -> float:
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(values)

    settings = replace(VALIDATED, patience=2, save_every_steps=1)
    out = None if place == "memory" else tmp_path
    if place == "resumed":
        with pytest.raises(Stop):
            go(recipe, settings, out=out, validate=figure, report=stop_after(3))
    model, done = go(recipe, settings, out=out, validate=figure, resume=place == "resumed")
    assert (done.steps, done.best_step, done.result_step) == (4, 2, 2)
    assert equal(model.state_dict(), states[1])
    assert not equal(model.state_dict(), states[3])
    if out is None:
        return
    name = "network" if recipe == "whole" else "adapter_model"
    saved = [load_file(folder / f"{name}.safetensors") for folder in (out, out / "best")]
    assert equal(*saved)
    if recipe == "stereo":
        assert lowpeft.read_adapter(out).facts["training"] == "2 of 8 steps, the best of 4 on the validation"
    _, more = go(recipe, replace(settings, steps=5, patience=3), out=out, validate=figure, resume=True)
    assert (more.resumed_at, more.steps, more.best_step, more.result_step) == (4, 5, 5, 5)


def test_a_best_state_that_was_removed_is_missed_with_the_last_checkpoint_named(tmp_path: Path) -> None:
    settings = replace(VALIDATED, patience=2, save_every_steps=1)
    values = iter([2.0, 1.0, 1.0])
    go("full", settings, out=tmp_path, validate=lambda m: next(values))
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(TrainingError, match=r"step-00000003.*/best is not an adapter folder"):
        go("full", settings, out=tmp_path, validate=lambda m: 1.0, resume=True)
    done = go("full", replace(settings, patience=0), out=tmp_path, validate=lambda m: 1.0, resume=True)[1]
    assert (done.steps, done.result_step) == (8, 8)


# --- Errors of a user's functions
class Broken(Callback):
    """Fails after a step, or at the end."""

    def __init__(self, place: str) -> None:
        self.place = place

    def on_step(self, step: Step) -> None:
        if self.place == "Broken" and step.step == 3:
            raise KeyError("mine")

    def on_end(self, trained: Trained | None) -> None:
        if self.place == "end":
            raise KeyError("mine")


@pytest.mark.parametrize("place", ["validate", "report", "Broken"])
def test_an_error_of_the_users_keeps_its_type_and_says_where(place: str, tmp_path: Path) -> None:
    def validate(model: nn.Module) -> float:
        validated.append(1)
        return {1: 1.0, 2: 2.0}[len(validated)] if place == "validate" else 1.0

    def report(step: Step) -> None:
        if place == "report" and step.step == 3:
            raise KeyError("mine")

    validated: list[int] = []
    settings = replace(VALIDATED, steps=4, save_every_steps=2)
    with pytest.raises(KeyError) as caught:
        go("full", settings, out=tmp_path, validate=validate, report=report, callbacks=[Broken(place)])
    (note,) = caught.value.__notes__
    found = checkpoints(tmp_path)[-1]
    assert note == f"raised by {place} at step 3 of a training run. The last good checkpoint is {found}"
    assert found.name == "step-00000002"
    again, done = go("full", settings, out=tmp_path, validate=lambda m: 1.0, resume=True)
    assert (done.resumed_at, done.steps) == (2, 4)
    assert equal(state_of(again), state_of(go("full", settings, validate=lambda m: 1.0)[0]))


def test_every_watcher_is_told_of_the_end_though_one_fails(tmp_path: Path) -> None:
    watchers = [Watcher(), Broken("end"), Watcher()]
    with pytest.raises(KeyError, match="mine"):
        go("full", replace(PLAIN, steps=2), out=tmp_path, callbacks=watchers)
    assert [watcher.told[-1] for watcher in (watchers[0], watchers[2])] == ["end 2 None"] * 2  # type: ignore[union-attr]
    assert lowpeft.read_adapter(tmp_path).recipe.training.steps == 2


def test_patience_needs_measurements() -> None:
    with pytest.raises(PlanError, match="validate_every_steps"):
        TrainSettings(patience=2)


# --- Images and trackers
def scene() -> Example:
    hr = (torch.rand(3, 24, 48) * 255).to(torch.uint8)
    return Example("scene", (matlab_downscale(hr, 2),), (hr,))


class Wandb(types.ModuleType):
    """A stub of W&B: a resumed run ignores steps that it has, and what is logged to one step is one row."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs: dict[str, dict[int, dict[str, Any]]] = {}
        self.config = types.SimpleNamespace(update=lambda values, allow_val_change: None)
        self.Image = lambda array: array.shape

    def init(self, **options: Any) -> Any:
        rows = self.runs.setdefault(options["id"], {})
        first = max(rows, default=-1) + 1
        assert options["resume"] == "allow"

        def log(values: dict[str, Any], step: int) -> None:
            if step >= first:
                assert not values.keys() & rows.setdefault(step, {}).keys()
                rows[step] |= values

        return types.SimpleNamespace(log=log, finish=lambda: None)


def test_wandb_gets_each_step_once_and_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    settings = replace(SETTINGS, validate_every_steps=3)
    for resume in (False, True):
        watchers = [Trackers(["wandb"]), ValidationImages([scene()])]
        options: dict[str, Any] = {"out": tmp_path, "validate": lambda m: 1.0, "callbacks": watchers}
        if resume:
            go("full", settings, **options, resume=True)
        else:
            with pytest.raises(Stop):
                go("full", settings, **options, report=stop_after(3))
    (rows,) = stub.runs.values()
    assert [step for step, values in rows.items() if "loss" in values] == [1, 2, 3, 4, 5, 6]
    shown = {step: values["scene"] for step, values in rows.items() if "scene" in values}
    assert shown == {3: [(24, 48, 3)], 6: [(24, 48, 3)]}
    assert read_image(tmp_path / "validation" / "step-00000003" / "scene.png").shape == (3, 24, 48)
    assert read_image(tmp_path / "validation" / "step-00000006" / "scene.png").shape == (3, 24, 48)


def test_tensorboard_has_each_step_once_after_a_stop(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = replace(SETTINGS, validate_every_steps=3)
    options: dict[str, Any] = {"out": tmp_path, "validate": lambda m: 1.0}
    with pytest.raises(Stop):
        go("full", settings, **options, callbacks=[Trackers(["tensorboard"])], report=stop_after(3))
    watchers = [Trackers(["tensorboard"]), ValidationImages([scene()])]
    go("full", settings, **options, callbacks=watchers, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("scene/0" if "scene/0" in events.Tags()["images"] else "scene")] == [
        3,
        6,
    ]


def test_trackers_that_are_not_there_are_named() -> None:
    with pytest.raises(TrainingError, match="tracked") as caught:
        Trackers(["tensorbord", "wandb"])
    problems = caught.value.problems
    assert "did you mean 'tensorboard'" in problems[0]
    assert problems[1] == "wandb is not installed: pip install wandb"
    with pytest.raises(TrainingError, match="out="):
        go("full", PLAIN, callbacks=[Trackers(["tensorboard"])])


class Stopper(Callback):
    """Stops the run at its start or at its end."""

    def __init__(self, place: str) -> None:
        self.place = place

    def on_start(self, start: Start) -> None:
        if self.place == "start":
            raise StopTraining("at once")

    def on_end(self, trained: Trained | None) -> None:
        if self.place == "end":
            raise StopTraining("too late")


def test_a_run_may_be_stopped_at_its_start_and_at_its_end(tmp_path: Path) -> None:
    _, done = go("full", CONSTANT, out=tmp_path, callbacks=[Stopper("start")])
    assert (done.steps, done.stopped) == (1, "at once")
    _, done = go("full", CONSTANT, out=tmp_path, resume=True, callbacks=[Stopper("end")])
    assert (done.resumed_at, done.steps, done.stopped) == (1, 6, None)


# --- Longer runs
def test_a_constant_schedule_goes_on_exactly(tmp_path: Path) -> None:
    go("full", replace(CONSTANT, steps=4), out=tmp_path / "run")
    longer, done = go("full", CONSTANT, out=tmp_path / "run", resume=True)
    assert (done.resumed_at, done.steps) == (4, 6)
    assert equal(state_of(longer), state_of(go("full", CONSTANT)[0]))
    with pytest.raises(TrainingError, match="another run") as caught:
        go("full", replace(CONSTANT, steps=5), out=tmp_path / "run", resume=True)
    assert caught.value.problems == ("setting.steps is 5, in the checkpoint 6, of which 6 are done",)


def test_another_length_of_cosine_is_refused_with_the_way(tmp_path: Path) -> None:
    go("full", SETTINGS, out=tmp_path)
    with pytest.raises(TrainingError, match="another run") as caught:
        go("full", replace(SETTINGS, steps=9), out=tmp_path, resume=True)
    (problem,) = caught.value.problems
    assert problem.startswith("setting.steps is 9, in the checkpoint 6: the cosine schedule")
    assert "--adapter" in problem


# --- Tampered checkpoints
@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun")
    with pytest.raises(Stop):
        go("full", SETTINGS, out=out, report=stop_after(3))
    return out


STRANGE = (None, True, -1, 10**400, 1.5, "x", [], {}, [1], {"a": 1})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in inner for p in places(item, (*path, key)))] if path else [
        p for key, item in inner for p in places(item, (key,))
    ]  # fmt: skip


def tampered(state: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(state))
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def test_no_tampering_with_the_state_is_a_raw_error_or_another_result(begun: Path, tmp_path: Path) -> None:
    """Without a new checksum every change is found; with one, whatever has another type, or another step."""
    out = shutil.copytree(begun, tmp_path / "out")
    (folder,) = checkpoints(out)
    file, state = folder / "state.json", json.loads((folder / "state.json").read_text())
    for place in places(state):
        for value in STRANGE:
            if json.dumps(changed := tampered(state, place, value)) == json.dumps(state):
                continue
            file.write_text(json.dumps(changed))
            with pytest.raises(TrainingError, match="step-00000002"):
                read_checkpoint(folder)
    strange = [("progress", key) for key in state["progress"]] + [(k,) for k in ("progress", "identity", "optimizer")]
    for place in strange:
        for value in ("x", True, [1], -2 if place[-1] != "best" else float("inf")):
            changed = tampered(state, place, value)
            changed.pop("sha256")
            changed["sha256"] = _sha256(folder / "tensors.safetensors", changed)
            if place == ("progress", "loss") and value == -2:
                continue
            file.write_text(json.dumps(changed))
            with pytest.raises(TrainingError, match="step-00000002"):
                read_checkpoint(folder)
    model = model_of("full")
    before = state_of(model)
    group = ("optimizer", "groups", 0)
    for place, value in [
        *(((*at, key), "x") for at, key in ((("optimizer",), "name"), (("optimizer",), "state"), (group, "betas"))),
        *((("optimizer", "groups"), value) for value in ("x", [1], [{}])),
        *(((*group, "betas"), value) for value in (None, [1])),
        *(((*group, "eps"), value) for value in (None, "x", -1, 10**400)),
        (("optimizer", "tensors"), {}),
        (("identity", "setting"), "x"),
    ]:
        changed = tampered(state, place, value)
        changed.pop("sha256")
        changed["sha256"] = _sha256(folder / "tensors.safetensors", changed)
        file.write_text(json.dumps(changed))
        with pytest.raises(TrainingError, match="step 2"):
            train(model, Samples(), SETTINGS, out=out, resume=True)
    assert equal(before, state_of(model))


@pytest.mark.parametrize("change", ["removed", "of another shape"])
def test_a_state_of_the_optimiser_without_some_tensors_is_refused(change: str, begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    (folder,) = checkpoints(out)
    file, tensors = folder / "state.json", load_file(folder / "tensors.safetensors")
    name = next(name for name in tensors if name.startswith("optimizer.exp_avg."))
    tensors[name] = torch.zeros(2)
    if change == "removed":
        del tensors[name]
    save_file(tensors, folder / "tensors.safetensors")
    state = json.loads(file.read_text())
    state.pop("sha256")
    file.write_text(json.dumps({**state, "sha256": _sha256(folder / "tensors.safetensors", state)}))
    with pytest.raises(TrainingError, match="step 2") as caught:
        go("full", SETTINGS, out=out, resume=True)
    assert caught.value.problems == ("tensors of the state of AdamW are missing or changed",)
