"""`lowpeft train` from a saved adapter, with a loss of one's own, watched, on shared images, and in a log file."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

import lowpeft
from lowpeft.cli import main
from lowpeft.demo import write_scenes
from lowpeft.restoration import progress as progress_module
from lowpeft.restoration.progress import progress

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "train", range(2), size_px=(64, 128))
    write_scenes(folder / "test", range(1), size_px=(64, 128), split="test")
    return folder


def command(scenes: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--network", "unfamiliar:doubling", "--images", str(scenes / "train"), "--out", str(out)]
    return ["train", *more, *fixed, "--crop", "32", "64", "--batch", "2", "--device", "cpu", "--optimize", "none"]


def test_training_starts_from_a_saved_adapter(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(scenes, tmp_path / "a", "spatial", "--steps", "2", "--schedule", "constant")) == 0
    assert "in 2 steps, adapters learn more with about 1e-2" in capsys.readouterr().out
    warm = ["--adapter", str(tmp_path / "a")]
    still = [*warm, "--steps", "1", "--learning-rate", "1e-12"]
    assert main(command(scenes, tmp_path / "b", *still)) == 0
    one, other = (lowpeft.read_adapter(tmp_path / n) for n in "ab")
    assert all((one.tensors[k] - other.tensors[k]).abs().max() < 1e-9 for k in one.tensors)
    assert (other.recipe.name, other.recipe.training.schedule) == ("spatial", "constant")
    assert other.facts["started from"] == str(tmp_path / "a")
    assert main(command(scenes, tmp_path / "c", "spatial", *still)) == 0
    assert main(command(scenes, tmp_path / "d", "full", *warm)) == 2
    assert "was made by 'spatial'" in capsys.readouterr().err
    assert main(command(scenes, tmp_path / "d", *warm, "--set", "every=1")) == 2
    assert main(command(scenes, tmp_path / "d")) == 2
    assert "--adapter DIR" in capsys.readouterr().err
    longer = ["spatial", "--steps", "3", "--schedule", "constant", "--resume"]
    assert main(command(scenes, tmp_path / "a", *longer)) == 0
    assert lowpeft.read_adapter(tmp_path / "a").facts["training"].startswith("3 steps")


def test_losses_rates_and_watchers_of_the_command_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_losses.py").write_text("def make():\n    return lambda out, target: (out - target).abs().mean()\n")
    monkeypatch.syspath_prepend(tmp_path)
    more = ["spatial", "--steps", "3", "--loss-module", "my_losses:make", "--rates", "spatial=2", "--optimizer", "sgd"]
    more += ["--validate", str(scenes / "test"), "--validate-every-steps", "1", "--validation-images", "1"]
    more += ["--patience", "1", "--learning-rate", "1e-12", "--log-with", "tensorboard"]
    assert main(command(scenes, tmp_path / "out", *more)) == 0
    printed = capsys.readouterr()
    assert "stopped after 2 of 3 steps: no better figure in 1 measurement" in printed.out
    assert "the result is the state after 1 steps, the best: " in printed.out
    saved = lowpeft.read_adapter(tmp_path / "out")
    facts = saved.facts
    assert "no better figure" in facts["stopped"]
    assert (facts["result"], saved.recipe.training.steps) == ("the best state, after 1 steps", 1)
    assert len([*(tmp_path / "out" / "validation").rglob("*.png")]) == 2
    assert [*(tmp_path / "out" / "tensorboard").glob("events*")]
    for name, says in {"no_such:make": "no module", "my_losses:other": "other", "my_losses": "MODULE:FUNCTION"}.items():
        assert main(command(scenes, tmp_path / "x", "spatial", "--loss-module", name)) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
    assert main(command(scenes, tmp_path / "x", "spatial", "--validation-images", "1")) == 2
    assert "--validate DIR: give both" in capsys.readouterr().err


def test_images_that_are_trained_and_measured_on_are_said(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes / "train", tmp_path / "copy")
    more = ["spatial", "--steps", "1", "--test", str(tmp_path / "copy"), "--test", str(scenes / "test")]
    more += ["--validate", str(scenes / "train"), "--validate-every-steps", "1"]
    assert main(command(scenes, tmp_path / "out", *more)) == 0
    said = capsys.readouterr().err
    assert f"4 of 4 scenes of {tmp_path / 'copy'} are training images" in said
    assert f"4 of 4 scenes of {scenes / 'train'} are training images" in said
    assert f"scenes of {scenes / 'test'} are training images" not in said
    facts = lowpeft.read_adapter(tmp_path / "out").facts
    assert facts["measured on training images"] == "copy: 4 of 4 scenes"
    assert facts["validated on training images"] == "train: 4 of 4 scenes"


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(n) for n in range(1000))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress("training", 100) as advance:
        for n in range(100):
            advance(f"loss {n}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training 1/100  loss 0  ")
    assert lines[-1].startswith("training 100/100  loss 99  ")
    assert lines[-1].endswith(", 0:00:00 left")
    assert 4 <= len(lines) <= 6
    assert all("s/step  0:" in line for line in lines)
    with progress("training", 100) as advance:
        advance("a")
        advance("b")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/100", "2/100"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress("training", 2) as advance:
        advance("loss 1")
        advance("loss 2")
    shown = capsys.readouterr().err
    assert shown.index("elapsed") < shown.index("left")


def test_a_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowpeft.restoration.training import Trackers

    def interrupted(self: Trackers, step: object) -> None:
        if step.step == 2:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trackers, "on_row", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    train = command(scenes, tmp_path / "out", "spatial", "--steps", "4", "--log-with", "tensorboard")
    assert main(train) == 128 + signal.SIGTERM
    assert "stopped after 2 of 4 steps: SIGTERM came; continue with --resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    assert main([*train, "--resume"]) == 0
    assert "training 3/4" in capsys.readouterr().err


def test_an_adapter_that_was_measured_is_trained_on_without_measuring(scenes: Path, tmp_path: Path) -> None:
    measured = ["--steps", "1", "--validate", str(scenes / "test"), "--validate-every-steps", "1", "--patience", "1"]
    assert main(command(scenes, tmp_path / "out", "spatial", *measured)) == 0
    more = command(scenes, tmp_path / "more", "--adapter", str(tmp_path / "out"), "--steps", "1")
    assert main(more) == 0
    again = command(scenes, tmp_path / "again", "spatial", "--steps", "1", "--validate", str(scenes / "test"))
    assert main(again) == 0
    assert (tmp_path / "again" / "best" / "adapter_config.json").exists()  # without an interval: with the checkpoint


def test_an_invalid_degradation_is_explained(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command(scenes, tmp_path / "out", "spatial", "--degrade", "noise:50..5"))
    assert "the smaller value comes first" in capsys.readouterr().err
