"""The training loop and the measuring, on a tiny network and generated pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import lowpeft
import zoo
from lowpeft.backbones import Backbone
from lowpeft.data import Pair, StereoPairs, find_scenes
from lowpeft.errors import DataError, PlanError, TrainingError
from lowpeft.evaluate import Score, compare, mean_db, score
from lowpeft.images import matlab_downscale, write_image
from lowpeft.metrics import psnr
from lowpeft.recipes import TrainSettings
from lowpeft.train import learning_rate, pair_loss, train

EDSR = next(n for n in zoo.FAMILIES if n.name == "edsr")
SETTINGS = TrainSettings(steps=4, batch=2, crop_height_px=16, crop_width_px=32, learning_rate=1e-3, clip_norm=0.1)


def network() -> Backbone:
    """The zoo's EDSR, which takes values 0..255."""
    torch.manual_seed(0)
    return Backbone(
        module=EDSR.build(),
        architecture="EDSR",
        family="edsr",
        scale=EDSR.scale,
        value_range=(0.0, EDSR.value_max),
        size_multiple=1,
        channels=3,
    )


FACTS = network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    for scene in ("a", "b"):
        left = (torch.rand(3, 40, 64, generator=generator) * 255).to(torch.uint8)
        write_image(left, path / f"{scene}_L.png")
        write_image(left.roll(-3, dims=2), path / f"{scene}_R.png")
    return path


def pairs(folder: Path, settings: TrainSettings = SETTINGS) -> StereoPairs:
    crop = (settings.crop_height_px, settings.crop_width_px)
    return StereoPairs(find_scenes(folder), EDSR.scale, crop_px=crop)


def test_training_lowers_the_loss_and_leaves_the_base_alone(folder: Path) -> None:
    base = network().module
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = lowpeft.adapt(base, "stereo")
    settings = TrainSettings(**{**vars(SETTINGS), "steps": 30, "learning_rate": 1e-2})
    data = pairs(folder)
    fixed = data.batch(4, torch.Generator().manual_seed(9))
    with torch.no_grad():
        first = pair_loss(model, fixed, FACTS).item()
    train(model, data, settings, FACTS)
    with torch.no_grad():
        assert pair_loss(model, fixed, FACTS).item() < first
    state = base.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.items())


def test_the_same_seed_gives_the_same_adapter(folder: Path) -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        model = lowpeft.adapt(network(), "stereo")
        train(model, pairs(folder), TrainSettings(**{**vars(SETTINGS), "seed": seed}), FACTS)
        return lowpeft.adapter_state_dict(model)

    one, same, other = run(1), run(1), run(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_a_single_image_recipe_trains_on_both_views(folder: Path) -> None:
    model = lowpeft.adapt(network(), "spatial")
    before = {k: v.clone() for k, v in lowpeft.adapter_state_dict(model).items()}
    train(model, pairs(folder), SETTINGS, FACTS)
    assert any(not torch.equal(before[k], v) for k, v in lowpeft.adapter_state_dict(model).items())


def test_adapter_and_log_are_written(folder: Path, tmp_path: Path) -> None:
    model = lowpeft.adapt(network(), "stereo")
    steps = train(model, pairs(folder), SETTINGS, FACTS, out=tmp_path / "adapter")
    rows = [json.loads(r) for r in (tmp_path / "adapter" / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] == steps[-1].loss
    again = lowpeft.load_adapter(network(), tmp_path / "adapter")
    saved, now = lowpeft.adapter_state_dict(again), lowpeft.adapter_state_dict(model)
    assert all(torch.equal(saved[k], now[k]) for k in now)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_adapter(folder: Path, tmp_path: Path) -> None:
    model = lowpeft.adapt(network(), "stereo")
    settings = TrainSettings(**{**vars(SETTINGS), "steps": 6, "save_every_steps": 2})

    def poison(step: object) -> None:
        if getattr(step, "step", 0) == 3:
            with torch.no_grad():
                next(p for _, p in lowpeft.adapter_parameters(model)).fill_(math.nan)

    with pytest.raises(TrainingError, match="step 4"):
        train(model, pairs(folder), settings, FACTS, out=tmp_path, report=poison)
    assert lowpeft.read_adapter(tmp_path).tensors


def test_cosine_and_constant_schedules() -> None:
    cosine = TrainSettings(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(cosine, i) for i in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    constant = TrainSettings(steps=100, learning_rate=1.0, schedule="constant")
    assert {learning_rate(constant, i) for i in range(100)} == {1.0}


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": -1.0},
        {"schedule": "linear"},
        {"betas": (0.9, 1.0)},
        {"clip_norm": math.inf},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PlanError, match=next(iter(bad))):
        TrainSettings(**bad)


def scene() -> Pair:
    hr = (torch.rand(3, 30, 42, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    lr = matlab_downscale(hr, EDSR.scale)
    return Pair("scene", lr, lr, hr, hr)


def test_measuring_puts_the_mode_back() -> None:
    model = lowpeft.adapt(network(), "stereo").train()
    score(model, scene(), backbone=FACTS)
    assert model.training
    assert next(s for _, _, s in lowpeft.attach.slots(model)).training


def test_comparison_of_a_new_adapter_has_no_gain_and_no_use_of_the_other_view() -> None:
    model = lowpeft.adapt(network(), "stereo")
    found = compare(model, [scene()], backbone=FACTS)
    assert found.frozen == found.adapted
    assert found.same_view[0].mean_db == pytest.approx(found.adapted[0].mean_db, abs=1e-3)
    assert str(found).splitlines()[-1].split()[0] == "mean"


def test_mean_is_over_views_then_scenes() -> None:
    scores = [Score(scene="a", left_db=20, right_db=30), Score(scene="b", left_db=10, right_db=40)]
    assert mean_db(scores) == 25
    with pytest.raises(DataError, match="no scenes"):
        compare(FACTS.module, [], backbone=FACTS)


def test_bicubic_is_measured_on_the_same_views() -> None:
    pair = scene()
    found = compare(lowpeft.adapt(network(), "spatial"), [pair], backbone=FACTS)
    assert found.same_view == ()
    from lowpeft.images import bicubic_upscale

    assert found.bicubic[0].left_db == psnr(bicubic_upscale(pair.lr_left, EDSR.scale), pair.hr_left)
