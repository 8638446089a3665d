"""Runs and data that are odd but legal: left-over gradients, threads, grey pairs, exact images, odd manifests."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import TrainingError
from lowpeft.cli.main import main
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.data import Crops, Example, Loading, Scene, check_pairs, find_scenes, read_clean_crops
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.evaluation import OtherView, Report, ReportRow
from lowpeft.restoration.images import write_image
from lowpeft.restoration.metrics import WHOLE_RGB
from lowpeft.restoration.training import train, validation
from lowpeft.restoration.training.sources import names_digest

SETTINGS = TrainSettings(steps=3, batch=1, learning_rate=1e-2)
INFINITE = float("inf")


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 3, 3, padding=1, bias=False))
    return lowpeft.adapt(lowpeft.describe(network, scale=1, channels=3, value_range=(0, 1)), "lora", rank=2)


def pairs() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 16, 16, generator=generator), torch.rand(3, 16, 16, generator=generator))]


def state(model: nn.Module) -> list[Tensor]:
    return [*lowpeft.adapter_state_dict(model).values()]


def test_a_run_begins_without_the_gradients_of_what_was_before() -> None:
    alone = denoiser()
    train(alone, pairs(), SETTINGS)
    model = denoiser()
    (100 * model(torch.rand(1, 3, 16, 16)).mean()).backward()
    train(model, pairs(), SETTINGS)
    assert all(map(torch.equal, state(alone), state(model)))
    model = denoiser()
    with pytest.raises(TrainingError, match="the loss is inf"):
        train(model, pairs(), SETTINGS, loss=lambda output, target: (output - target).abs().mean() * INFINITE)
    train(model, pairs(), SETTINGS)
    assert all(map(torch.equal, state(alone), state(model)))


def test_threads_that_run_one_network_leave_its_modes_to_the_last() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 3, 3, padding=1)
    )
    backbone = lowpeft.describe(network.train(), scale=1, channels=3, value_range=(0, 1))
    image, mean = torch.rand(3, 96, 96), network[1].running_mean.clone()
    wanted, wrong = lowpeft.enhance(backbone, image), []

    def work() -> None:
        wrong.extend(number for number in range(20) if not torch.equal(wanted, lowpeft.enhance(backbone, image)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(network[1].running_mean, mean)
    assert all(module.training for module in network.modules())


def smooth(seed: int) -> Tensor:
    image = torch.rand(1, 3, 24, 56, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(image, size=(96, 224), mode="bicubic")[0].clamp(0.1, 0.9)


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """A pair of grey views, the right one at 0.7 of the brightness."""
    folder = tmp_path / "grey"
    folder.mkdir()
    scene = smooth(0)[:1].expand(3, -1, -1)
    write_image((255 * scene[..., :200]).round().to(torch.uint8), folder / "a_L.png")
    write_image((0.7 * 255 * scene[..., 8:208]).round().to(torch.uint8), folder / "a_R.png")
    return folder


@pytest.mark.parametrize("loading", [Loading(channels=1), Loading(degrade=degradation("down:2,noise:1"))])
def test_the_gain_of_pairs_is_found_of_grey_and_of_float_views(loading: Loading, grey: Path) -> None:
    check = check_pairs(find_scenes(grey), 2, loading=loading).scenes["a"]
    assert check.gain == pytest.approx(0.7, abs=0.03)


def test_a_scene_that_is_restored_exactly_does_not_end_a_run(tmp_path: Path) -> None:
    black, other = torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((3, 16, 16), 9, dtype=torch.uint8)
    validate = validation([Example("black", (black,), (black,)), Example("other", (black,), (other,))])
    settings = TrainSettings(steps=2, batch=1, validate_every_steps=1)
    done = train(denoiser(), pairs(), settings, out=tmp_path / "run", validate=validate)
    assert done.best is not None
    assert 50 < done.best < 100


def test_what_the_other_view_gives_of_exact_scenes() -> None:
    def report(method: str, *values: float) -> Report:
        rows = tuple(ReportRow(scene=str(i), values=(value,)) for i, value in enumerate(values))
        return Report(method=method, protocol=WHOLE_RGB, rows=rows)

    both = OtherView(adapted=report("adapted", 30, INFINITE), controls={"same view": report("same", 29, INFINITE)})
    assert both.claim().startswith("the other view: +0.500 dB (mean of the views), from +0.000 (1) to +1.000 (0)")
    apart = OtherView(adapted=report("adapted", INFINITE, 30), controls={"same view": report("same", 29, INFINITE)})
    assert "nan" in apart.claim()  # no figure says which is better


def square(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(torch.zeros(3, 64, 64, dtype=torch.uint8), path)


def test_a_manifest_is_found_where_the_scenes_are(tmp_path: Path) -> None:
    for side in "LR":
        square(tmp_path / "data" / f"a_{side}.png")
    (tmp_path / "data" / "manifest.json").write_text(json.dumps([{"scene": "a", "clean_crop": [0, 0, 32, 32]}]))
    assert [scene.name for scene in find_scenes(tmp_path)] == ["a"]
    assert read_clean_crops(tmp_path) == read_clean_crops(tmp_path / "data") == {"a": (0, 0, 32, 32)}


def test_a_rectangle_of_a_clean_image_is_that_of_all_its_degraded_ones(tmp_path: Path) -> None:
    for path in ("GT/1.png", "LQ/1_1.png", "LQ/1_2.png"):
        square(tmp_path / path)
    (tmp_path / "manifest.json").write_text(json.dumps([{"scene": "1", "clean_crop": [0, 0, 32, 32]}]))
    scenes, clean = find_scenes(tmp_path, scale=1, views=1), read_clean_crops(tmp_path, views=1)
    assert [scene.name for scene in scenes] == ["1_1", "1_2"]
    with pytest.raises(lowpeft.DataError, match="height 32, width 32 px can be used"):
        Crops(scenes, 1, crop_px=(48, 48), clean_crops=clean)
    assert Crops(scenes, 1, crop_px=(32, 32), clean_crops=clean)[0][0].shape == (1, 3, 32, 32)


def test_shot_noise_of_single_photons_stays_an_image() -> None:
    (view,) = degradation("poisson:1").views([torch.ones(3, 700, 700)], 1, "key")
    assert view.max() <= 8
    network = lowpeft.describe(nn.Conv2d(3, 3, 1), scale=1, channels=3)
    assert lowpeft.enhance(network, view).shape == view.shape


def test_a_name_that_is_no_text_has_a_digest(tmp_path: Path) -> None:
    class Source:
        scenes = (Scene(os.fsdecode(b"caf\xe9"), (tmp_path / "x.png",)),)

    source: Any = Source()
    assert len(names_digest(source)) == 64


def test_a_control_that_is_trained_on_keeps_its_batch(
    grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "--weights",
        "demo",
        "--data",
        str(grey),
        "--steps",
        "1",
        "--crop",
        "32",
        "64",
        "--device",
        "cpu",
    ]
    command += ["--each-view-twice"]
    assert main([*command, "stereo", "--batch", "2", "--out", str(tmp_path / "first")]) == 0
    assert "1 step of 4 views" in capsys.readouterr().out
    assert main([*command, "--adapter", str(tmp_path / "first"), "--out", str(tmp_path / "second")]) == 0
    assert "1 step of 4 views" in capsys.readouterr().out
