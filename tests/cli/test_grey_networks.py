"""Grey networks from files to files, networks of other channels, and values of another range: used, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from spandrel.architectures.DnCNN import DnCNN
from torch import nn

import lowpeft
from lowpeft.cli import main
from lowpeft.errors import DataError, PlanError, TrainingError
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.data import Crops, Loading, find_scenes, prepare
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.images import as_picture, read_image, write_image
from lowpeft.restoration.metrics import psnr, ssim
from lowpeft.restoration.training import train
from lowpeft.storage import new_file
from scene_files import noise

DEGRADE = ("--degrade", "noise:25")


class Denoiser(nn.Module):
    """Keeps the size; any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def described(channels: int) -> lowpeft.Backbone:
    return lowpeft.describe(Denoiser(channels), scale=1, channels=channels, value_range=(0, 1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grey and a colour image, and a grey DnCNN."""
    (tmp_path / "clean").mkdir()
    write_image(noise(24, 24)[:1], tmp_path / "clean" / "grey.png")
    write_image(noise(24, 24, 1), tmp_path / "clean" / "colour.png")
    torch.manual_seed(0)
    torch.save(DnCNN(in_nc=1, out_nc=1, nc=8, nb=17, act_mode="R").state_dict(), tmp_path / "grey.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_grey_network_is_trained_measured_and_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ("--weights", "grey.pth", "--device", "cpu")
    settings = ("--steps", "2", "--batch", "1", "--crop", "16", "16", "--set", 'target=["**"]', "--set", "rank=1")
    images = ("--images", "clean", *DEGRADE, "--test", "clean", "--out", "run")
    assert main(["train", "lora", *weights, *settings, *images]) == 0
    measured = ("--data", "clean", *DEGRADE, "--bicubic", "--out", "measured")
    for protocol in ("rgb", "single-image"):
        assert main(["evaluate", *weights, "--adapter", "run", *measured, "--protocol", protocol]) == 0
        said = capsys.readouterr().out + (folder / "measured" / "report.md").read_text()
        assert "RGB" not in said
        assert ("PSNR grey" in said) == (protocol == "rgb")
    assert main(["enhance", "clean/colour.png", *weights, "--adapter", "run", "--out", "out"]) == 0
    (result,) = (folder / "out").iterdir()
    image = read_image(result)
    assert image.shape == (3, 24, 24)
    assert torch.equal(image[0], image[2])
    capsys.readouterr()


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_other_channels_are_refused_before_training(folder: Path, channels: int) -> None:
    model = described(channels)
    crops = Crops(find_scenes("clean", views=1, scale=2), 2, crop_px=(16, 16), loading=Loading(channels=4 - channels))
    with pytest.raises(TrainingError, match=rf"images of {channels} channels.*channels={channels}"):
        train(model, crops, TrainSettings(steps=1, batch=1))


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_image_files_are_refused_for_networks_of_other_channels(channels: int) -> None:
    from lowpeft.cli.common import image_channels

    with pytest.raises(DataError, match=f"{channels} channels"):
        image_channels(described(channels))


# --- Values of another range
WIDE = torch.rand(3, 16, 16) * 255


@pytest.mark.parametrize(
    "call",
    [
        lambda image, folder: psnr(image, torch.rand(3, 16, 16)),
        lambda image, folder: ssim(torch.rand(3, 16, 16), image),
        lambda image, folder: write_image(image, folder / "a.png"),
        lambda image, folder: as_picture(image),
        lambda image, folder: lowpeft.enhance(described(3), image),
    ],
    ids=["psnr", "ssim", "write_image", "as_picture", "enhance"],
)
def test_floats_up_to_255_are_refused(tmp_path: Path, call: Callable[[torch.Tensor, Path], object]) -> None:
    call(torch.rand(3, 16, 16) + 0.6 * torch.randn(3, 16, 16), tmp_path)  # strong noise is none of it
    for image in (WIDE, WIDE - 128, WIDE[:, :8].double().expand(3, 8, 16)):
        with pytest.raises(DataError):
            call(image, tmp_path)


class Samples(Crops):
    """Crops in 0..255."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = super().__getitem__(index)
        return lr * 255, hr * 255


def test_samples_up_to_255_are_refused(folder: Path) -> None:
    model = lowpeft.describe(nn.Upsample(scale_factor=2), scale=2, channels=3)
    model.module.weight = nn.Parameter(torch.ones(1))
    crops = Samples(find_scenes("clean", views=1, scale=2), 2, crop_px=(16, 16))
    with pytest.raises(TrainingError, match=r"sample 0 must have values 0\.\.1.*divide"):
        train(model, crops, TrainSettings(steps=1, batch=1))


# --- Damaged weights
def test_weights_with_nan_are_neither_adapted_nor_trained(folder: Path) -> None:
    base = described(3)
    with torch.no_grad():
        base.module.body[2].bias[1] = math.nan
    before = {name: id(module) for name, module in base.module.named_modules()}
    with pytest.raises(PlanError, match=r"body\.2\.bias contains NaN"):
        lowpeft.adapt(base, lowpeft.LoRAConfig(target="**", rank=1))
    assert {name: id(module) for name, module in base.module.named_modules()} == before
    crops = Crops(find_scenes("clean", views=1), 1, crop_px=(16, 16), loading=Loading(degrade=degradation("noise:25")))
    with pytest.raises(TrainingError, match=r"body\.2\.bias contains NaN"):
        train(base, crops, TrainSettings(steps=1, batch=1))


# --- Killed writers
@pytest.mark.parametrize("name", ["prepared.json", "HR", "LR_x2"])
def test_prepare_goes_on_after_a_kill_beside_any_of_its_files(folder: Path, name: str) -> None:
    out = folder / "out"
    out.mkdir()
    with new_file(out / name) as temporary:  # what a SIGKILL leaves: no clean-up has run
        temporary.rename(temporary.with_name(f"{temporary.name.removesuffix('.part')}0.part"))
        temporary.touch()
    (out / name).unlink()
    assert len(list(out.glob(".*"))) == 1
    scenes = find_scenes("clean", views=1, scale=2)
    assert prepare(scenes, out, 2) == 2
    assert prepare(scenes, out, 2) == 0
    assert not list(out.glob(".*"))
