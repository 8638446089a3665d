"""Differences with their intervals, journals that survive a kill, and metrics of other packages."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from lowpeft import DataError, LowpeftError
from lowpeft.restoration.evaluation import Journal, Report, ReportRow, gain, resume, unfinished
from lowpeft.restoration.metrics import PROTOCOLS, WHOLE_RGB, psnr, ssim
from lowpeft.restoration.perceptual import with_perceptual


def report(method: str, *values: float) -> Report:
    rows = tuple(ReportRow(scene=f"s{i}", values=(value,)) for i, value in enumerate(values))
    return Report(method=method, protocol=WHOLE_RGB, rows=rows)


# --- Differences
def test_the_interval_is_that_of_students_t_over_pairs() -> None:
    ours, theirs = [30.0, 31.5, 29.0, 33.0], [29.0, 31.0, 29.5, 31.0]
    found = gain(report("adapted", *ours), report("frozen", *theirs)).columns[0]
    wanted = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.interval == pytest.approx((wanted.low, wanted.high))
    assert (found.mean, found.better, found.clear) == (pytest.approx(0.75), 3, 0)


@pytest.mark.parametrize(
    ("ours", "said"),
    [((31.0, 32.1, 33.0), "better"), ((29.0, 29.9, 31.0), "worse"), ((31.0, 29.0, 32.0), "no clear difference")],
)
def test_the_verdict_says_whether_it_is_more_than_chance(ours: tuple[float, ...], said: str) -> None:
    found = gain(report("adapted", *ours), report("frozen", 30.0, 31.0, 32.0))
    assert found.verdict().startswith(f"adapted: {said}, ")
    assert "over frozen" in str(found).splitlines()[1]


def test_one_scene_has_no_interval() -> None:
    found = gain(report("adapted", 31.0), report("frozen", 30.0))
    assert found.columns[0].interval is None
    assert "one scene shows little" in found.verdict()
    assert found.as_dict()["columns"]["PSNR"]["95 % interval"] is None  # type: ignore[index]


def test_images_that_equal_the_clean_ones_are_counted() -> None:
    inf = math.inf
    found = gain(report("adapted", inf, 31.0, 32.0), report("frozen", inf, 30.0, 30.0)).columns[0]
    assert (list(found.gains.values()), found.mean) == ([0.0, 1.0, 2.0], 1.0)
    assert gain(report("a", inf, inf), report("b", inf, inf)).verdict().startswith("a: no clear difference")
    one = gain(report("a", inf, 1.0), report("b", 30.0, 1.0))
    assert one.columns[0].interval is None
    assert one.verdict() == "a: +inf PSNR over b, better in 1 of 2 scenes; images of 1 equal the clean ones"
    both = gain(report("a", inf, 30.0), report("b", 30.0, inf))
    assert math.isnan(both.columns[0].mean)
    json.dumps(both.as_dict(), allow_nan=False)


def test_reports_of_other_scenes_are_not_subtracted() -> None:
    with pytest.raises(DataError, match="different scenes"):
        gain(report("adapted", 31.0, 32.0), report("frozen", 30.0))


# --- Journals
RUN = {"data": "kodak", "scale": 2}


def test_a_journal_keeps_what_was_measured_until_the_reports_are_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN, {})
    journal.add("a", {"frozen": (30.0, math.inf)})
    journal.add("b", {"frozen": (31.0, 0.5)})
    with (tmp_path / "measured.jsonl").open("a") as file:
        file.write('{"scene": "c", "figu')  # killed
    assert unfinished(tmp_path) == 2
    again = resume(tmp_path, RUN, ["a", "b", "c"])
    assert again.rows == {"a": {"frozen": (30.0, math.inf)}, "b": {"frozen": (31.0, 0.5)}}
    again.add("c", {"frozen": (1.0, 2.0)})
    assert list(resume(tmp_path, RUN, "abc").rows) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("run", "scenes", "problem"), [({**RUN, "scale": 4}, "ab", "scale: 4, there 2"), (RUN, "b", "scene a")]
)
def test_a_journal_of_another_run_is_refused_and_kept(
    tmp_path: Path, run: dict[str, object], scenes: str, problem: str
) -> None:
    Journal(tmp_path, RUN, {}).add("a", {"frozen": (30.0,)})
    with pytest.raises(DataError) as error:
        resume(tmp_path, run, scenes)
    assert [p for p in error.value.problems if problem in p]
    assert unfinished(tmp_path) == 1


@pytest.mark.parametrize("text", ["", "[]\n1\n", "\x00\n", '{"data": "kodak", "scale": 2}\n{"scene": "a"}\n'])
def test_a_damaged_journal_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "measured.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"measured\.jsonl"):
        resume(tmp_path, RUN, "a")


# --- Metrics
def test_luma_of_deraining_is_rounded_to_8_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, other = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8, generator=generator)
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)[:, None, None]
    first, second = ((image.double() * weights / 255).sum(0).add(16).round() for image in (clean, other))
    wanted = 10 * math.log10(255**2 / (first - second).square().mean().item())
    columns = PROTOCOLS["derain"].columns
    assert columns[0].measure([other], [clean], 1) == pytest.approx(wanted) == psnr(other, clean, channels="y8")
    assert columns[0].measure([other], [clean], 1) != psnr(other, clean, channels="y")
    assert columns[1].measure([other], [clean], 1) == ssim(other, clean, channels="y8")


class Distance:
    """What `pyiqa.create_metric` returns, as far as it is used."""

    def __init__(self, mode: str) -> None:
        self.metric_mode, self.lower_better = mode, True

    def __call__(self, *images: Tensor) -> Tensor:
        assert all(image.shape[:2] == (1, 3) and image.min() >= 0 and image.max() <= 1 for image in images)
        return images[0].mean() if self.metric_mode == "NR" else (images[0] - images[1]).abs().mean()


@pytest.fixture
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the package pyiqa."""

    def create_metric(name: str, device: torch.device) -> Distance:
        if name == "dists":
            raise OSError("no route to host")
        return Distance({"lpips": "FR", "niqe": "NR"}[name])

    module = ModuleType("pyiqa")
    module.__dict__.update(list_models=lambda: ["lpips", "dists", "niqe"], create_metric=create_metric)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


@pytest.mark.usefixtures("pyiqa")
def test_metrics_of_pyiqa_are_columns_more() -> None:
    protocol = with_perceptual(PROTOCOLS["rgb"], ["lpips", "niqe"])
    assert [c.name for c in protocol.columns] == ["PSNR RGB", "SSIM RGB", "LPIPS", "NIQE"]
    clean, result = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 51, dtype=torch.uint8)
    assert protocol.columns[2].measure([result], [clean], 1) == pytest.approx(0.2)
    assert protocol.columns[3].measure([result], [clean], 1) == pytest.approx(0.2)
    by = with_perceptual(WHOLE_RGB, ["lpips"])
    distances = [
        Report(method=name, protocol=by, rows=tuple(ReportRow(scene=s, values=(1.0, v)) for s, v in values.items()))
        for name, values in (("adapted", {"a": 0.1, "b": 0.2}), ("frozen", {"a": 0.3, "b": 0.45}))
    ]
    found = gain(*distances).columns[1]
    assert found.better == 2


@pytest.mark.usefixtures("pyiqa")
@pytest.mark.parametrize(("name", "message"), [("lpip", "did you mean 'lpips'"), ("dists", "no route to host")])
def test_a_metric_that_cannot_be_made_is_an_error_with_advice(name: str, message: str) -> None:
    with pytest.raises(LowpeftError, match=message):
        with_perceptual(WHOLE_RGB, [name])


def test_pyiqa_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(LowpeftError, match="pip install pyiqa"):
        with_perceptual(WHOLE_RGB, ["lpips"])
