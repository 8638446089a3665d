"""`lowpeft train`: its options, what it refuses, what it writes, and runs in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lowpeft
from lowpeft.backbones.own import Factory
from lowpeft.cli import main, parser
from lowpeft.cli.training_options import CROP
from lowpeft.demo import write_scenes
from lowpeft.recipes import TrainSettings
from unfamiliar import doubling

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")

OWN = ["--network", "unfamiliar:doubling"]
DEMO = ["--weights", "demo"]
SIZE = ["--crop", "32", "64", "--batch", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs to train on, and one to test on."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "train", range(2), size_px=(64, 128))
    write_scenes(folder / "test", range(1), size_px=(64, 128), split="test")
    return folder


def command(
    recipe: str, scenes: Path, out: Path, *more: str, source: str = "--data", network: list[str] = OWN
) -> list[str]:
    return ["train", recipe, *network, source, str(scenes / "train"), "--out", str(out), *SIZE, *more]


def own_base() -> lowpeft.Backbone:
    """The network that `--network unfamiliar:doubling` makes."""
    return Factory(name=OWN[1]).load()


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return lowpeft.read_adapter(out).tensors


@pytest.fixture(scope="module")
def options() -> dict[str, object]:
    return vars(parser().parse_args(command("stereo", Path(), Path())))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(TrainSettings)])
def test_every_setting_has_an_option_with_help(name: str, options: dict[str, object]) -> None:
    assert name in (*options, *CROP)


def test_settings_of_the_command_line_count(scenes: Path, tmp_path: Path) -> None:
    more = ["--steps", "2", "--schedule", "multistep", "--milestones", "1", "--milestone-factor", "0.1", "--betas"]
    more += ["0.8", "0.99", "--loss", "mse", "--ema-decay", "0.5", "--learning-rate", "1e-4", "--accumulate", "2"]
    more += ["--optimize", "none"]
    assert main(command("stereo", scenes, tmp_path, *more)) == 0
    assert "optimised" not in lowpeft.read_adapter(tmp_path).facts
    settings = lowpeft.read_adapter(tmp_path).recipe.training
    expected = {"milestones": (1,), "betas": (0.8, 0.99), "loss": "mse", "ema_decay": 0.5, "accumulate": 2}
    assert {name: getattr(settings, name) for name in expected} == expected
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-4, 1e-5])


def test_validation_keeps_the_best_and_says_so(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "2", "--validate", str(scenes / "test"), "--validate-every-steps", "1", "--ema-decay", "0.9"]
    assert main(command("stereo", scenes, tmp_path, *more, "--test", str(scenes / "test"))) == 0
    assert "same view" in capsys.readouterr().out
    facts = lowpeft.read_adapter(tmp_path).facts
    assert "dB after" in facts["best validation"]
    assert facts["trained tensors"] == "moving average (EMA), decay 0.9"
    model = lowpeft.adapt(doubling(), "stereo")
    assert facts["trained parameters"] == sum(p.numel() for _, p in lowpeft.adapter_parameters(model))
    assert lowpeft.read_adapter(tmp_path / "best").facts["training"].endswith("of 2 steps")


def test_single_images_train_recipes_that_take_one_view(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "1", "--test", str(scenes / "test")]
    assert main(command("spatial", scenes, tmp_path, *more, source="--images")) == 0
    printed = capsys.readouterr().out
    assert "4 training scenes, 1 step of 2 images" in printed
    assert all(word in printed for word in ("bicubic", "frozen", "adapted"))
    assert "PSNR in dB, RGB, test, adapted" in lowpeft.read_adapter(tmp_path).facts


def test_figures_of_test_folders_of_one_name_are_all_kept(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "test", tmp_path / "other" / "test")
    more = ["--steps", "1", "--test", str(scenes / "test"), "--test", str(tmp_path / "other" / "test")]
    assert main(command("spatial", scenes, tmp_path / "out", *more)) == 0
    facts = lowpeft.read_adapter(tmp_path / "out").facts
    assert [f"PSNR in dB, (L+R)/2, {name}/test, adapted" in facts for name in (scenes.name, "other")] == [True, True]


def test_single_images_are_cut_to_the_clean_rectangle_of_their_pair(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes / "train", tmp_path / "train")
    name = lowpeft.restoration.data.find_scenes(tmp_path / "train")[0].name
    entries = [{"scene": name, "clean_crop": [0, 0, 60, 60]}]
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(entries))
    assert main(command("spatial", tmp_path, tmp_path / "out", "--steps", "1", source="--images")) == 2
    message = capsys.readouterr().err
    assert [f"scene {name}_{side}: height 60, width 60 px" in message for side in "LR"] == [True, True]
    assert "--crop H W" in message


def full_disk(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_network_that_cannot_be_written_is_one_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowpeft.restoration.training.models.save_file", full_disk)
    assert main(command("full", scenes, tmp_path, "--steps", "1", "--merge")) == 2
    assert f"cannot write the network to {tmp_path}" in capsys.readouterr().err


def test_a_network_from_scratch_is_written_as_a_checkpoint(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "1", "--test", str(scenes / "test")]
    assert main(command("scratch", scenes, tmp_path, *more, network=DEMO)) == 0
    assert "478,795 parameters, all trained, from new weights" in capsys.readouterr().out
    opened = lowpeft.load_backbone(tmp_path / "network.safetensors")
    assert (opened.family, opened.scale, opened.parameters) == ("hat", 2, 478_795)
    assert not (tmp_path / "adapter_config.json").exists()


def test_full_fine_tuning_writes_the_differences_and_the_network(scenes: Path, tmp_path: Path) -> None:
    assert main(command("full", scenes, tmp_path, "--steps", "1", "--merge")) == 0
    base = own_base()
    network = lowpeft.load_backbone(tmp_path / "network.safetensors", network=doubling()).module.eval()
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        before = base.module(image)
        adapted = lowpeft.load_adapter(base, tmp_path).eval()
        assert torch.equal(adapted(image), network(image))
        assert not torch.equal(adapted(image), before)


def test_a_run_goes_on_only_when_it_is_asked_to(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command("stereo", scenes, tmp_path, "--steps", "2")
    assert main([*arguments, "--resume"]) == 0
    before = tensors(tmp_path)
    assert main(arguments) == 2
    assert "step-00000002" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--learning-rate", "1"]) == 2
    assert "setting.learning_rate is 1.0, in the checkpoint 0.0005" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "nothing left to train: 2 of 2 steps" in capsys.readouterr().out
    after = tensors(tmp_path)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("recipe", "more", "sentence"),
    [
        ("stereo", ["--merge"], "spatial, stereo adapters are not linear in a weight"),
        ("scratch", ["--merge"], "no adapters"),
        ("scratch", ["--set", "every=1"], "every"),
        ("scratch", ["--set", "train_also='**'"], "from scratch"),
        ("stereo", ["--validate-every-steps", "2"], "give --validate DIR"),
        ("stereo", ["--accumulate", "3"], "a batch of 2"),
        ("stereo", ["--seed", str(2**63)], "seed must be below 2**63"),
        ("stereo", ["--precision", "fp16"], "precision must be one of no, bf16"),
        ("stereo", ["--milestones", "3"], "milestones are used only by schedule 'multistep'"),
        ("stereo", ["--test-lr", "{scenes}"], "--test-lr needs exactly one --test folder"),
        ("stereo", ["--data-lr", "{scenes}/nothing"], "nothing"),
    ],
)
def test_what_does_not_work_is_refused_before_training(
    recipe: str, more: list[str], sentence: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [part.replace("{scenes}", str(scenes)) for part in more]
    assert main(command(recipe, scenes, tmp_path / "out", "--steps", "1", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stereo_recipe_does_not_train_on_single_images(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("stereo", scenes, tmp_path, source="--images")) == 2
    assert "--data" in capsys.readouterr().err


# --- In processes of their own
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_command_that_is_resumed_ends_as_one_that_was_not(scenes: Path, tmp_path: Path) -> None:
    arguments = ["--steps", "12", "--save-every-steps", "3", "--resume"]
    lowpeft_command = [sys.executable, "-m", "lowpeft"]
    killed = [*lowpeft_command, *command("stereo", scenes, tmp_path / "killed", *arguments, network=DEMO)]
    process = subprocess.Popen(killed, env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "training.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(killed, env=ALONE, check=True, capture_output=True)
    intact = [*lowpeft_command, *command("stereo", scenes, tmp_path / "intact", *arguments, network=DEMO)]
    subprocess.run(intact, env=ALONE, check=True, capture_output=True)
    one, other = tensors(tmp_path / "killed"), tensors(tmp_path / "intact")
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        (["accelerate.commands.launch", "--cpu", "--num_processes", "1"], 1),
        (["torch.distributed.run", "--standalone", "--nproc-per-node", "2"], 2),
    ],
    ids=["accelerate", "torchrun"],
)
def test_under_a_launcher_the_main_process_alone_prints_and_writes(
    launcher: list[str], processes: int, scenes: Path, tmp_path: Path
) -> None:
    more = ["--steps", "2", "--test", str(scenes / "test")]
    arguments = command("stereo", scenes, tmp_path / "launched", *more, network=DEMO)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "lowpeft", *arguments],
        env=ALONE, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trainable") == done.stdout.count("adapter written") == 1
    assert (f"on {processes} processes" in done.stdout) is (processes > 1)
    assert main(command("stereo", scenes, tmp_path / "alone", *more, network=DEMO)) == 0
    one, other = tensors(tmp_path / "launched"), tensors(tmp_path / "alone")
    assert max((one[k] - other[k]).abs().max().item() for k in one) < 1e-5
    assert len((tmp_path / "launched" / "training.jsonl").read_text().splitlines()) == 2
