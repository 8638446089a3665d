"""The control that gets each view twice: its crops, its training, and the other view's part in evaluations."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowpeft
import zoo
from lowpeft import DataError
from lowpeft.cli import main
from lowpeft.demo import demo_backbone
from lowpeft.restoration.data import EachViewTwice, Example
from lowpeft.restoration.evaluation import by_network_alone, compare, measure, methods, trained_otherwise
from lowpeft.restoration.images import matlab_downscale, write_image
from lowpeft.restoration.metrics import WHOLE_RGB
from lowpeft.restoration.training import train, validation
from lowpeft.restoration.training.identity import differences, identity
from states import backbone_of, randomise_adapters
from training_runs import SETTINGS, Samples, model_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")

ONE_STEP = replace(SETTINGS, steps=1, warmup_steps=0)


# --- Crops
def test_samples_2i_and_2i_1_are_the_views_of_pair_i() -> None:
    crops = Samples()
    twice = EachViewTwice(crops)
    assert (twice.crop_px, twice.scale, twice.views, twice.scenes) == ((24, 48), 2, 2, crops.scenes)
    for index in (0, 1, 6, 7):
        for images, pair in zip(twice[index], crops[index // 2], strict=True):
            assert images.shape == pair.shape
            assert torch.equal(images, pair[index % 2].expand_as(images))


def test_a_pickled_copy_gives_the_same_samples() -> None:
    again = pickle.loads(pickle.dumps(EachViewTwice(Samples(seed=3))))
    assert torch.equal(again[5][1], EachViewTwice(Samples(seed=3))[5][1])


@pytest.mark.parametrize("views", [1, 3])
def test_crops_that_are_no_pairs_are_refused(views: int) -> None:
    with pytest.raises(DataError, match=str(views)):
        EachViewTwice(Samples(views=views))


# --- Training
def test_a_step_on_twice_the_samples_has_the_loss_of_the_pairs() -> None:
    plain = train(model_of("stereo"), Samples(), ONE_STEP)
    control = train(model_of("stereo"), EachViewTwice(Samples()), replace(ONE_STEP, batch=2 * ONE_STEP.batch))
    assert control.loss == pytest.approx(plain.loss, rel=1e-5)  # new adapters add nothing


def test_a_control_is_another_run_than_its_pairs() -> None:
    model = model_of("stereo")
    found = differences(
        identity(model, EachViewTwice(Samples()), SETTINGS, {}), identity(model, Samples(), SETTINGS, {})
    )
    assert [line.split(" is ")[0] for line in found] == ["data.first crop.0", "data.first crop.1", "data.control"]


# --- Figures
def stereo(seed: int) -> nn.Module:
    base = backbone_of(next(n for n in zoo.FAMILIES if n.name == "edsr"))
    return randomise_adapters(lowpeft.adapt(base, "stereo"), seed=seed)


def scenes(*names: str) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    views = [tuple(torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8, generator=generator)) for _ in names]
    return [Example(n, tuple(matlab_downscale(v, 2) for v in hr), hr) for n, hr in zip(names, views, strict=True)]


def test_the_other_view_is_the_difference_to_each_control() -> None:
    model, control, tests = stereo(5), stereo(6), scenes("a", "b")
    seen: list[str] = []
    found = compare(model, tests, control=control, seen=lambda method, example, _: seen.append(example.name))
    assert list(found.reports) == list(methods(model, control=control))
    assert len(seen) == len(tests) * len(found.reports)
    assert found.values_db("control") == [
        row.values[0] for row in measure(by_network_alone(control), tests, scale=2, protocol=WHOLE_RGB).rows
    ]
    means, other = found.means_db(), found.other_view
    assert other is not None
    for name, gain in other.means_db().items():
        assert gain == pytest.approx(means["adapted"] - means[name])
        by_scene = [a - c for a, c in zip(found.values_db("adapted"), found.values_db(name), strict=True)]
        assert other.gains_db(name) == dict(zip("ab", by_scene, strict=True))
    claim = other.claim().splitlines()
    assert len(claim) == 3  # the last: the control was trained with the same batch, not twice as many
    assert claim[0].startswith(f"the other view: {other.means_db()['control']:+.3f} dB")
    assert str(found).splitlines()[-3:] == claim
    heading, _, *rows = other.as_markdown().split("\n\n")[0].splitlines()
    assert heading.count("|") == 7
    assert [row.split(" | ")[0] for row in rows] == ["| a", "| b", "| mean"]


def test_validation_of_a_control_gives_each_view_twice() -> None:
    model, tests = stereo(5), scenes("a")
    assert validation(tests, each_view_twice=True)(model) == compare(model, tests).means_db()["same view"]


def test_networks_of_single_images_take_nothing_from_another_view_and_are_no_controls() -> None:
    base = backbone_of(next(n for n in zoo.FAMILIES if n.name == "edsr"))
    assert compare(base, scenes("a")).other_view is None
    for pair in ((base, stereo(5)), (stereo(5), base)):
        with pytest.raises(DataError, match="1 view"):
            compare(pair[0], scenes("a"), control=pair[1])


def test_a_control_has_the_adapters_of_its_model() -> None:
    base = backbone_of(next(n for n in zoo.FAMILIES if n.name == "edsr"))
    with pytest.raises(DataError, match="adapters") as error:
        compare(stereo(5), scenes("a"), control=lowpeft.adapt(base, "stereo", every=1))
    assert len(error.value.problems) == 2


def test_settings_in_which_a_control_was_trained_otherwise_are_listed() -> None:
    def model(**changes: Any) -> object:
        base = backbone_of(next(n for n in zoo.FAMILIES if n.name == "edsr"))
        recipe = lowpeft.load_recipe("stereo")
        return lowpeft.adapt(base, replace(recipe, training=replace(recipe.training, **changes)))

    alike = {"steps": 50, "batch": 2, "calibration": 4}, {"steps": 50, "batch": 4, "calibration": 8, "workers": 1}
    assert trained_otherwise(*(model(**changes) for changes in alike)) == ()
    other = model(**alike[0]), model(steps=100, batch=2, calibration=8, learning_rate=1e-3)
    (remark,) = trained_otherwise(*other)
    assert [each.split(":")[0] for each in remark.partition(": ")[2].split("; ")] == ["steps", "learning_rate", "batch"]
    found = compare(other[0], scenes("a"), control=other[1])
    assert str(found).splitlines()[-1] == remark
    assert found.other_view is not None
    assert found.other_view.as_dict()["remarks"] == [remark]


# --- The commands
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to train and to measure on, and an adapter of the demo network."""
    path, generator = tmp_path_factory.mktemp("control"), torch.Generator().manual_seed(0)
    for name in ("train/one", "test/one"):
        (path / name).parent.mkdir(exist_ok=True)
        for side in "LR":
            write_image(
                torch.randint(0, 256, (3, 32, 80), dtype=torch.uint8, generator=generator), path / f"{name}_{side}.png"
            )
    lowpeft.save_adapter(randomise_adapters(lowpeft.adapt(demo_backbone(), "stereo-only")), path / "adapter")
    return path


def test_a_control_is_trained_and_measured(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control, out, data = tmp_path / "control", tmp_path / "measured", ["--data", str(folder / "test")]
    command = ["train", "stereo-only", "--weights", "demo", "--data", str(folder / "train"), "--out", str(control)]
    command += ["--crop", "32", "32", "--batch", "1", "--steps", "1", "--device", "cpu", "--each-view-twice"]
    assert main(command) == 0
    assert "control: " in capsys.readouterr().out
    written = lowpeft.read_adapter(control)
    assert written.facts.items() >= EachViewTwice.facts.items()
    assert written.recipe.training.batch == 2
    assert written.recipe.training.calibration == 2 * lowpeft.load_recipe("stereo-only").training.calibration

    evaluate = ["evaluate", "--weights", "demo", "--adapter", str(folder / "adapter"), "--device", "cpu", *data]
    assert main([*evaluate, "--control", str(control), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("the other view: ") == 1
    content = json.loads((out / "report.json").read_text())
    adapted, other = content["methods"][1]["scenes"], content["the other view"]
    assert list(other) == ["same view", "control", "remarks"]  # the adapter was not trained at all
    for figures in (other["same view"], other["control"]):
        gains = {scene: adapted[scene]["PSNR (L+R)/2"] - psnr for scene, psnr in figures["PSNR in dB"].items()}
        assert figures["gain in dB"]["scenes"] == pytest.approx(gains)
        assert figures["gain in dB"]["mean"] == pytest.approx(gains["one"])
    assert "| over control |" in (out / "report.md").read_text()
    assert 'alt="attended disparity"' in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["train", "spatial", "--data", "train", "--out", "x", "--each-view-twice"], "--each-view-twice"),
        (["train", "spatial", "--images", "train", "--out", "x", "--each-view-twice"], "--each-view-twice"),
        (["evaluate", "--data", "test", "--control", "adapter"], "--control"),
        (["evaluate", "--data", "test", "--no-other-view"], "--no-other-view"),
        (["evaluate", "--data", "test", "--adapter", "adapter", "--control", "adapter"], "is not a control"),
        (["evaluate", "--data", "test", "--adapter", "adapter", "--control", "x", "--no-other-view"], "exclude"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    command: list[str], word: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main([*command, "--weights", "demo", "--device", "cpu"]) == 2
    assert word in capsys.readouterr().err
