"""Misalignment of pairs: `check_pair`, `check_pairs`, `lowpeft check-pair`, and the warnings of train and evaluate."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lowpeft
from lowpeft import PairCheck, check_pair
from lowpeft.cli import main
from lowpeft.cli.common import warn_of_pairs
from lowpeft.demo import DemoScene, demo_backbone, make_scene
from lowpeft.errors import DataError, LowpeftError
from lowpeft.restoration.data import Loading, PairReport, Scene, check_pairs, find_scenes, matching
from lowpeft.restoration.images import to_float, write_image
from scene_files import noise, touch, write_pair

GOOD = PairCheck(points=100, candidates=110, offset_px=0.1, gain=1.0, disparity_px=(1.0, 5.0, 9.0))


@pytest.fixture(scope="module")
def scene() -> DemoScene:
    return make_scene(2, size_px=(64, 128))


@pytest.fixture(scope="module")
def aligned(scene: DemoScene) -> PairCheck:
    return check_pair(scene.left, scene.right)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory, scene: DemoScene) -> Path:
    """Pairs: aligned, flat, damaged, and one with a right view that is 4 px lower."""
    folder = tmp_path_factory.mktemp("pairs") / "checked"
    pairs = {
        "aligned": (scene.left, scene.right),
        "flat": (torch.full_like(scene.left, 90),) * 2,
        "lower": (scene.left[:, 4:], scene.right[:, :-4]),
    }
    folder.mkdir()
    for name, views in pairs.items():
        for side, view in zip("LR", views, strict=True):
            write_image(view, folder / f"{name}_{side}.png")
    touch(folder, "damaged_L.png", "damaged_R.png")
    return folder


# --- Found against true


def test_the_truth_of_an_aligned_pair_is_found(scene: DemoScene, aligned: PairCheck) -> None:
    check = aligned
    low, middle, high = scene.disparity.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert check.points >= 50
    assert check.searched == 1
    assert check.faults == ()
    assert check.offset_px == pytest.approx(0, abs=0.05)
    assert check.spread_px < 0.2
    assert (check.across_px, check.down_px) == pytest.approx((0, 0), abs=0.3)
    assert (check.gain, *check.channel_gains) == pytest.approx((1,) * 4, abs=0.01)
    assert low - 0.5 <= check.disparity_px[0] <= check.disparity_px[1] == pytest.approx(middle, abs=1)
    assert check.disparity_px[1] <= check.disparity_px[2] <= high + 0.5


@pytest.mark.parametrize(("rows", "beyond_at_4"), [(1, False), (3, True)])
def test_rows_and_gain_of_a_camera_are_found(scene: DemoScene, rows: int, beyond_at_4: bool) -> None:
    """A right camera that sees everything `rows` px lower, and darker."""
    darker = (to_float(scene.right) * torch.tensor([0.8, 0.9, 0.7]).view(3, 1, 1))[:, :-rows]
    check = check_pair(scene.left[:, rows:], darker, scale=4)
    assert check.offset_px == pytest.approx(-rows, abs=0.1)
    assert check.channel_gains == pytest.approx((0.8, 0.9, 0.7), abs=0.02)
    assert [fault.split()[0] for fault in check.faults] == ["vertical"] * beyond_at_4 + ["gain"]


def test_rotation_shows_as_a_change_across(scene: DemoScene) -> None:
    angle = math.radians(3)
    matrix = torch.tensor([[math.cos(angle), math.sin(angle) / 2, 0], [-math.sin(angle) * 2, math.cos(angle), 0]])
    grid = torch.nn.functional.affine_grid(matrix[None], [1, 3, 64, 128], align_corners=False)
    turned = torch.nn.functional.grid_sample(to_float(scene.right)[None], grid, align_corners=False)[0]
    check = check_pair(scene.left, turned)
    assert abs(check.across_px) == pytest.approx(128 * math.sin(angle), abs=1)
    assert check.faults


def test_swapped_views_have_negative_disparities(scene: DemoScene, aligned: PairCheck) -> None:
    swapped = check_pair(scene.right, scene.left)
    assert swapped.disparity_px[1] == pytest.approx(-aligned.disparity_px[1], abs=0.1)
    assert len(swapped.faults) == 1
    assert "swapped" in swapped.faults[0]


def test_strips_of_a_large_view_keep_their_rows(scene: DemoScene) -> None:
    points = matching.matched_points(scene.left, scene.right, most_pixels=60 * 128)
    assert points.searched == pytest.approx(60 / 64)
    assert len(points) >= 10
    assert points.rows.min() < 20
    assert points.rows.max() > 44
    assert (points.rows[:, 0] - points.rows[:, 1]).median().item() == pytest.approx(0, abs=0.1)


# --- Pairs that cannot be measured


@pytest.mark.parametrize(
    "views",
    [
        (torch.full((3, 64, 128), 90, dtype=torch.uint8),) * 2,
        (torch.rand(3, 1, 1),) * 2,
        (torch.rand(3, 11, 200),) * 2,
        (noise(64, 128, 0), noise(64, 128, 1)),
    ],
    ids=["flat", "one pixel", "few rows", "unrelated"],
)
def test_too_few_points_are_a_result(views: tuple[Tensor, Tensor]) -> None:
    check = check_pair(*views)
    assert check.points == 0
    assert math.isnan(check.offset_px)
    assert math.isnan(check.gain)
    assert check.faults == ()
    assert str(check) == check.verdict
    assert "Not measured" in str(check)


def test_wrong_arguments_are_refused(scene: DemoScene, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the left view is 128x64 px, but the right view is 128x62 px"):
        check_pair(scene.left, scene.right[:, 2:])
    with pytest.raises(DataError, match=r"\(3, H, W\), not shape \(1, 3, 64, 128\)"):
        check_pair(scene.left[None], scene.right[None])
    with pytest.raises(DataError, match="there is no image file"):
        check_pair(tmp_path / "missing.png", scene.right)
    with pytest.raises(DataError, match="0 to 255"):
        check_pair(255 * torch.ones(3, 64, 128).tril(), torch.zeros(3, 64, 128))
    with pytest.raises(DataError, match="NoneType"):
        check_pair(None, torch.zeros(3, 64, 128))
    with pytest.raises(DataError, match="scale must be a whole number of at least 1, not 0"):
        check_pair(scene.left, scene.right, scale=0)


def test_a_missing_package_is_named(
    scene: DemoScene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "skimage"] + ["skimage"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LowpeftError, match="check_pair needs scikit-image"):
        check_pair(scene.left, scene.right)
    warn_of_pairs([Scene("missing", (Path("missing_L.png"), Path("missing_R.png")))], 2, loading=Loading())
    assert capsys.readouterr().err == ""


# --- Bounds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"offset_px": -0.6}, ["0.60 LR px (above 0.5"]),
        ({"offset_px": 1.2}, ["1.20 LR px (above 1:"]),
        ({"offset_px": 1.2, "scale": 4}, []),
        ({"offset_px": 0.3, "across_px": -0.5, "down_px": 0.1}, ["up to 0.60 LR px in a corner (above 0.5"]),
        ({"offset_px": 0.9, "down_px": 0.4}, ["up to 1.10 LR px in a corner (above 1:"]),
        ({"gain": 0.85}, ["gain 0.85"]),
        ({"gain": math.nan}, []),
        ({"disparity_px": (-3.0, 5.0, 9.0)}, ["toed in"]),
        ({"disparity_px": (-3.0, 5.0, 9.0), "scale": 4}, []),
        ({"disparity_px": (-9.0, -5.0, -1.0)}, ["swapped"]),
        ({"disparity_px": (0.0, 0.0, 0.0)}, ["same picture"]),
        ({"offset_px": 2.0, "gain": 1.2, "disparity_px": (-9.0, -5.0, -1.0)}, ["vertical", "gain", "swapped"]),
    ],
)
def test_what_is_beyond_the_bounds(changes: dict[str, float], words: list[str]) -> None:
    check = replace(GOOD, **changes)
    assert len(check.faults) == len(words)
    assert all(word in fault for word, fault in zip(words, check.faults, strict=True))
    assert all(fault in str(check) for fault in check.faults)


def test_unmeasured_changes_and_strips_are_shown() -> None:
    lines = str(replace(GOOD, searched=0.5, scale=4)).splitlines()
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        "vertical offset",
        "its change across",
        "its change down",
        "gain",
        "disparity",
        "disparity in LR px",
        "matched points",
        "searched",
    ]
    assert "50 %" in lines[8]
    assert "–" in lines[2]


# --- Data sets and the command line


def test_a_data_set_is_checked_in_lr_px(data_set: Path) -> None:
    report = check_pairs(find_scenes(data_set), 2)
    assert list(report.scenes) == ["aligned", "flat", "lower"]
    assert report.unread == ("damaged",)
    assert report.scenes["lower"].offset_px / report.scenes["lower"].scale == pytest.approx(-2, abs=0.1)
    assert report.scenes["aligned"].faults == ()
    assert report.scenes["flat"].points == 0
    first, lower, unmeasured, unread = report.warning.splitlines()
    assert first.startswith("1 of 4 checked pairs")
    assert lower.startswith("  lower: vertical offset")
    assert unmeasured.endswith("of flat")
    assert unread.endswith("not checked: damaged")


def test_a_few_evenly_spaced_scenes_are_checked(tmp_path: Path) -> None:
    scenes = [Scene(f"{n:02}", (tmp_path / "missing_L.png", tmp_path / "missing_R.png")) for n in range(16)]
    assert check_pairs(scenes, 2).unread == ("00", "02", "04", "06", "08", "10", "12", "14")
    assert check_pairs([Scene("single", (tmp_path / "missing.png",))], 2) == PairReport({})
    assert check_pairs([], 2).warning == ""


@pytest.mark.parametrize(
    ("searched", "range_named"), [(None, ""), ((-1, 7), ""), ((-1, 5), "2 of 2 .*-1, 5.* 3 to 7 LR px.*[0, 7]")]
)
def test_disparities_that_an_adapter_does_not_search_are_named(
    searched: tuple[int, int] | None, range_named: str
) -> None:
    checks = {name: replace(GOOD, disparity_px=(6.0, 10.0, 14.0), scale=2) for name in "ab"}
    warning = PairReport({**checks, "flat": replace(GOOD, points=0)}, searched=searched).warning
    beyond = [line for line in warning.splitlines() if "search" in line]
    assert bool(beyond) == bool(range_named)
    assert all(re.search(range_named.replace("[0, 7]", re.escape("[0, 7]")), line) for line in beyond)


def test_the_command_prints_the_table(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def views(name: str) -> list[str]:
        return [str(data_set / f"{name}_{side}.png") for side in "LR"]

    assert main(["check-pair", *views("aligned"), "--scale", "4"]) == 0
    assert "in LR px" in capsys.readouterr().out
    assert main(["check-pair", *views("flat")]) == 1
    assert main(["check-pair", *views("damaged")]) == 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The scenes that a command had checked, an entry for each call; commands stop where the work would begin."""
    calls: list[tuple[str, ...]] = []

    def check(scenes: tuple[Scene, ...], scale: int, **options: object) -> PairReport:
        calls.append(tuple(scene.name for scene in scenes))
        return PairReport({"one": replace(GOOD, gain=2.0)})

    def work(*arguments: object, **options: object) -> None:
        raise LowpeftError("no work in this test")

    monkeypatch.setattr("lowpeft.cli.common.check_pairs", check)
    monkeypatch.setattr("lowpeft.restoration.training.train", work)
    monkeypatch.setattr("lowpeft.restoration.evaluation.evaluate", work)
    return calls


@pytest.fixture
def network(tmp_path: Path) -> list[str]:
    """Options for the demo network and a pair of noise."""
    write_pair(tmp_path / "pairs", "one")
    return ["--weights", "demo", "--data", str(tmp_path / "pairs"), "--device", "cpu"]


@pytest.mark.parametrize(("recipe", "checked"), [("stereo-only", [("one",)]), ("spatial", [])])
def test_training_with_two_views_checks_the_pairs_first(
    recipe: str,
    checked: list[tuple[str, ...]],
    network: list[str],
    tmp_path: Path,
    asked: list[tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", recipe, *network, "--crop", "16", "16", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert asked == checked
    assert ("one: gain 2.00" in err) == bool(checked)
    assert "no work in this test" in err


def test_measuring_with_two_views_checks_the_pairs_first(
    network: list[str], tmp_path: Path, asked: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), "stereo-only"), tmp_path / "adapter")
    assert main(["evaluate", *network]) == 2
    assert asked == []
    assert main(["evaluate", *network, "--adapter", str(tmp_path / "adapter")]) == 2
    assert asked == [("one",)]
    assert "one: gain 2.00" in capsys.readouterr().err
