"""The released networks and adapters of the folder `adapters`: they open, fit, and do what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lowpeft
from lowpeft.core.files.card import making_in, model_card
from lowpeft.restoration.data import Loading, find_scenes, load_example
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.evaluation import compare
from lowpeft.restoration.images import read_image
from lowpeft.restoration.metrics import psnr

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
RESULTS = ADAPTERS.parent / "benchmarks" / "results" / "denoiser.json"
STEREO = "noisy-stereo-x4"
TASKS = {"noise-25": "noise:25", "jpeg-30": "jpeg:30"}


def base() -> lowpeft.Backbone:
    return lowpeft.load_backbone(ADAPTERS / "denoiser" / "network.safetensors")


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in ADAPTERS.rglob("*") if file.is_file()) < 5_000_000


@pytest.mark.parametrize("name", TASKS)
def test_an_adapter_loads_merges_and_changes_what_the_base_does(name: str) -> None:
    image = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    frozen = lowpeft.enhance(base(), image)
    model = lowpeft.load_adapter(base(), ADAPTERS / name)
    adapted = lowpeft.enhance(model, image)
    assert (adapted - frozen).abs().max() > 0.01
    report = lowpeft.merge(model)
    assert not report.kept
    assert (lowpeft.enhance(model, image) - adapted).abs().max() < 1e-4


@pytest.mark.parametrize("name", TASKS)
def test_the_card_and_the_results_have_the_same_figures(name: str) -> None:
    facts = lowpeft.read_adapter(ADAPTERS / name).facts
    measured = json.loads(RESULTS.read_text())["cells"][f"base/{name}/lora"]["psnr_db"]
    assert {method: facts[f"PSNR in dB, RGB, Kodak24, {method}"] for method in measured} == measured
    assert facts["degraded by"] == TASKS[name]
    assert measured["adapted"] > measured["frozen"]


@pytest.mark.parametrize("name", [*TASKS, STEREO])
def test_the_card_has_a_licence_a_picture_and_results(name: str) -> None:
    about = lowpeft.read_adapter(ADAPTERS / name).about
    assert (about.license, about.picture) == ("apache-2.0", "picture.png")
    adapter, card = lowpeft.read_adapter(ADAPTERS / name), (ADAPTERS / name / "README.md").read_text()
    assert card == model_card(adapter.config, adapter.size_bytes, f'"{name}"', making_in(card))
    assert read_image(ADAPTERS / name / "picture.png").shape == (3, 160, 480)
    (result,) = about.results
    assert result.means["adapted"]["PSNR RGB" if name in TASKS else "PSNR (L+R)/2"] > 24


def test_the_stereo_adapter_has_the_figures_of_the_evidence() -> None:
    cells = json.loads((RESULTS.parent / "evidence.json").read_text())["cells"]
    (result,) = lowpeft.read_adapter(ADAPTERS / STEREO).about.results
    assert result.means["frozen"] == cells["noise10/frozen"]["adapted"]["mean"]
    assert result.means["adapted"] == cells["noise10/parallax-spatial/0.01/seed-0"]["adapted"]["mean"]


@pytest.mark.real_data
def test_the_stereo_adapter_uses_the_other_view(data_root: Path) -> None:
    base = lowpeft.load_backbone(data_root / "weights" / "DCTLSA_x4.pt")
    model = lowpeft.load_adapter(base, ADAPTERS / STEREO)
    left, right = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    pair, same = lowpeft.enhance(model, left, right), lowpeft.enhance(model, left, left)
    assert pair[0].shape == (3, 64, 96)
    assert (pair[0] - same[0]).abs().max() > 0


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", TASKS)
def test_the_figures_are_measured_again(name: str, data_root: Path) -> None:
    scenes = find_scenes(data_root / "single" / "Kodak24", views=1)
    examples = [load_example(scene, 1, loading=Loading(degrade=degradation(TASKS[name]))) for scene in scenes]
    facts = lowpeft.read_adapter(ADAPTERS / name).facts
    for method, db in compare(lowpeft.load_adapter(base(), ADAPTERS / name), examples).means_db().items():
        assert db == pytest.approx(facts[f"PSNR in dB, RGB, Kodak24, {method}"], abs=0.01)


def test_the_base_removes_the_noise_that_it_was_trained_on() -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), size=(96, 96), mode="bicubic")[0].clamp(0, 1)
    clean = (smooth * 255).round().to(torch.uint8)
    (noisy,) = degradation("noise:15").views([clean], 1, 0)
    restored = lowpeft.enhance(base(), noisy)
    assert psnr(restored, clean) > psnr(noisy, clean) + 6
