"""The page of an evaluation: what it says, what it shows of which scenes, and that it works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lowpeft import DataError, TrainingError
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import (
    Origin,
    Outcome,
    Report,
    ReportRow,
    ScenePictures,
    gain,
    page,
    write_outcome_page,
)
from lowpeft.restoration.evaluation.pictures import error_map
from lowpeft.restoration.evaluation.plots import plot_gains
from lowpeft.restoration.evaluation.results import read_results, write_results
from lowpeft.restoration.metrics import LITERATURE, PROTOCOLS, Protocol
from lowpeft.restoration.training.log import plot_curves

NASTY = '<b>&"'
FROZEN = {"a": 30.0, NASTY: 30.0, "c": 30.0, "d": 30.0, "e": 30.0}
ADAPTED = {"a": 31.0, NASTY: 29.0, "c": 33.0, "d": 31.5, "e": 30.5}
RANKING = [NASTY, "e", "a", "d", "c"]


def report(method: str, figures: dict[str, float], protocol: Protocol = PROTOCOLS["rgb"]) -> Report:
    count = len(protocol.columns)
    rows = tuple(ReportRow(scene=name, values=(value, *[0.5] * (count - 1))) for name, value in figures.items())
    return Report(method=method, protocol=protocol, rows=rows)


def outcome(methods: dict[str, dict[str, float]], protocol: Protocol = PROTOCOLS["rgb"]) -> Outcome:
    reports = [report(name, figures, protocol) for name, figures in methods.items()]
    gains = [gain(each, reports[0]) for each in reports[1:] if reports[0].method == "frozen"]
    return Outcome(reports=reports, facts={"data": "kodak"}, gains=gains)


def scene(name: str, views: int = 1, size: tuple[int, int] = (16, 24)) -> Example:
    generator = torch.Generator().manual_seed(len(name))
    hr = tuple(torch.randint(0, 256, (views, 3, *size), dtype=torch.uint8, generator=generator))
    return Example(name, hr, hr)


def written(
    folder: Path, found: Outcome, *, scenes: int = 3, views: int = 1, size: tuple[int, int] = (16, 24), **more: object
) -> tuple[str, list[str]]:
    """Write images and page; return the page and the names of the scenes that were read again."""
    for report in found.reports:
        for row in report.rows:
            example = scene(row.scene, views, size)
            write_results(folder, example, {report.method: tuple(255 - view for view in example.hr)})
    loaded: list[str] = []

    def load(name: str) -> Example:
        loaded.append(name)
        return scene(name, views, size)

    pictures = ScenePictures(load=load, scale=1, scenes=scenes, attended=more.pop("attended", None))  # type: ignore[arg-type]
    path = write_outcome_page(found, folder, pictures, **more)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8"), loaded


def headings(text: str) -> list[str]:
    return re.findall(r"<h[23]>(.*?)</h", text)


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of a page's time."""
    monkeypatch.setattr(page, "plot_gains", lambda gains: None)


BOTH = {"frozen": FROZEN, "adapted": ADAPTED}


# --- What it says
def test_the_page_begins_with_the_answer_and_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "plot_gains", plot_gains)
    found = outcome(BOTH)
    origin = Origin(command="lowpeft evaluate --data 'a <b>'")
    text, _ = written(tmp_path, found, origin=origin)
    assert "<h1>adapted beside frozen, on kodak</h1>" in text
    assert text.index(found.gains[0].verdict()) < text.index("<table>") < text.index("gain over frozen")
    assert 'alt="gain over frozen"' in text
    assert "lowpeft evaluate --data &#x27;a &lt;b&gt;&#x27;" in text
    assert not re.search(r"https?:|src=\"(?!data:)", text)
    assert [path.name for path in tmp_path.glob("*.*")] == ["index.html"]


def test_all_scenes_are_in_one_table_and_names_are_escaped(tmp_path: Path) -> None:
    text, _ = written(tmp_path, outcome(BOTH), scenes=0)
    first = "<td>&lt;b&gt;&amp;&quot;</td>"
    row = next(line for line in text.splitlines() if first in line)
    assert re.findall(r"number\">(.*?)<", row) == ["30.000", "29.000", "-1.000", "0.5000", "0.5000", "+0.0000"]
    assert text.count(NASTY) == 0
    assert "mean" not in re.findall(r"<td[^>]*>([^<]*)", text.split("<h2>Scenes")[1])


# --- Which scenes
@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, []), (1, RANKING[:1]), (3, [NASTY, "e", "c"]), (4, [NASTY, "e", "c", "d"]), (5, RANKING), (9, RANKING)],
)
def test_the_worst_scenes_come_first_and_only_those_shown_are_read(
    tmp_path: Path, count: int, shown: list[str]
) -> None:
    text, loaded = written(tmp_path, outcome(BOTH), scenes=count)
    assert loaded == shown
    assert text.count('<figure class="slider">') == len(shown)
    titles = headings(text)[1:-1]
    sections = [title for title in titles if title.startswith(("Scenes with", "All scenes"))]
    assert len(sections) == (0 if count == 0 else 2 if 1 < count < 5 else 1)
    assert ["&lt;b&gt;" in title for title in titles if title not in sections] == [name == NASTY for name in shown]


def test_several_methods_are_ranked_by_their_mean_gain_and_all_are_shown(tmp_path: Path) -> None:
    other = {name: 30.0 + 10 * (name == NASTY) for name in FROZEN}
    text, loaded = written(tmp_path, outcome({**BOTH, "other": other}), scenes=2)
    assert loaded == ["e", NASTY]
    assert re.findall(r'<figure><img alt="(.*?)"', text.split('class="slider"')[1]) == [
        "input", "frozen", "adapted", "other", "truth", "error of frozen", "error of adapted", "error of other",
    ]  # fmt: skip
    assert "PSNR RGB: frozen 30.000, adapted 30.500, other 30.000, adapted over frozen +0.500" in text


@pytest.mark.parametrize(("method", "beside"), [("frozen", "frozen"), ("input", "truth")])
def test_one_method_is_shown_beside_its_input_by_its_worst_figures(tmp_path: Path, method: str, beside: str) -> None:
    text, loaded = written(tmp_path, outcome({method: ADAPTED}), scenes=2)
    assert loaded == [NASTY, "c"]
    assert re.findall(r"selected>(.*?)<", text) == ["input", "to fit", beside] * 2
    assert "gain" not in headings(text)[1]


def test_scenes_that_are_perfect_before_and_after_have_no_gain() -> None:
    inf = float("inf")
    found = outcome({"frozen": {"a": inf, "b": 1.0, "c": 1.0}, "adapted": {"a": inf, "b": 2.0, "c": inf}})
    assert found.by_worst() == ["a", "b", "c"]
    assert found.scene_cells()[1] == ["a", "inf", "inf", "+0.000"]


def test_of_distances_the_largest_gain_is_the_worst() -> None:
    rgb = PROTOCOLS["rgb"]
    by = replace(rgb, columns=tuple(replace(column, lower_is_better=True) for column in rgb.columns))
    assert outcome(BOTH, by).by_worst() == RANKING[::-1]
    assert outcome({"frozen": ADAPTED}, by).by_worst()[0] == "c"


# --- Pictures
def test_large_images_are_cut_to_where_the_methods_differ_most(tmp_path: Path) -> None:
    one = {"a": 30.0}
    found, example = outcome({"frozen": one, "adapted": one}), scene("a", 1, (100, 1200))
    adapted = example.hr[0].clone()
    adapted[:, 60:70, 900:910] //= 2
    write_results(tmp_path, example, {"frozen": example.hr, "adapted": (adapted,)})
    pictures = ScenePictures(load=lambda name: example, scale=1, scenes=1)
    text = write_outcome_page(found, tmp_path, pictures).read_text(encoding="utf-8")
    assert "640x100 of 1200x100 px are shown: where frozen and adapted differ most" in text
    assert text.count('width="640" height="100"') == 6
    box = page._box(example.hr[0], [adapted], 64)
    assert torch.equal(box.cut(error_map(adapted, example.hr[0])).count_nonzero(), torch.tensor(100))


def test_pages_of_many_large_images_stay_small() -> None:
    """What six scenes of 2K take: four images and two maps for each."""
    side = min(page.MOST_PX, (page.PAGE_PX / (6 * (4 + 2 / 3))) ** 0.5)
    assert 6 * side**2 * (3 * 1 + 2 * 3 + 2 / 3) * 4 / 3 < 12e6  # bytes: the input is noise, other images two thirds


def test_both_views_of_a_pair_are_shown_and_where_it_looks(tmp_path: Path) -> None:
    figures = {"a": 30.0}
    found = outcome({"frozen": figures, "adapted": {"a": 31.0}}, LITERATURE)
    text, _ = written(tmp_path, found, views=2, attended=lambda example: Image.new("RGB", (8, 8)))
    assert text.count('<figure class="slider">') == 2
    assert "Left view. PSNR Left: frozen 30.000, adapted 31.000" in text
    assert ("Right view." in text, 'alt="attended disparity"' in text) == (True, True)
    text, _ = written(tmp_path, found, views=2)
    assert "attended disparity" not in text


def test_a_missing_image_is_named_and_the_old_page_stays(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("old")
    pictures = ScenePictures(load=scene, scale=1, scenes=1)
    with pytest.raises(DataError, match=r"frozen/.*\.png"):
        write_outcome_page(outcome(BOTH), tmp_path, pictures)
    assert (tmp_path / "index.html").read_text() == "old"


def test_results_come_back_as_written(tmp_path: Path) -> None:
    example = scene("a", 2)
    write_results(tmp_path, example, {"same view": example.hr})
    assert all(map(torch.equal, read_results(tmp_path, "same view", example), example.hr))
    assert (tmp_path / "images" / "same-view" / "a_left.png").exists()


# --- Training
def log(folder: Path, rows: int = 60) -> Path:
    lines = [
        {"step": i, "loss": 1 / i, "learning_rate": 1e-3, "validation": None if i % 20 else 30.0 + i}
        for i in range(1, rows + 1)
    ]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_curves_are_drawn_from_a_log(tmp_path: Path) -> None:
    assert plot_curves(tmp_path) is None
    plotted = plot_curves(log(tmp_path))
    assert plotted is not None
    training = {"adapted": plotted, "jpeg": "line 3 is damaged"}
    text, _ = written(tmp_path, outcome(BOTH), scenes=0, origin=Origin(training=training))
    assert headings(text) == ["Scenes", "Training", "About"]
    assert "<p>jpeg: line 3 is damaged</p>" in text
    assert f'alt="adapted" width="{plotted.width}"' in text
    (tmp_path / "training.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError, match="line 1"):
        plot_curves(tmp_path)


# --- The terminal
def test_the_terminal_has_all_methods_of_the_first_scenes_and_the_mean() -> None:
    found = outcome(BOTH)
    lines = found.as_text(most=2).splitlines()
    assert lines[0].split("  ")[0] == "PSNR RGB"
    assert lines[0].endswith("adapted over frozen")
    assert [line.split()[0] for line in lines[1:5]] == ["a", NASTY, "…", "mean"]
    assert lines[3] == "… and 3 more in report.md"
    assert str(found).splitlines()[6].split() == ["mean", "30.000", "31.000", "+1.000"]
    assert str(outcome({"frozen": FROZEN})).splitlines()[0].split() == ["frozen", "PSNR", "RGB", "SSIM", "RGB"]


# --- In a browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVE = """<script>
const range = document.querySelector(".slider > input");
range.value = 80;
range.dispatchEvent(new Event("input"));
document.querySelectorAll("table")[2].querySelectorAll("th button")[2].click();
document.title = JSON.stringify({
  errors,
  line: document.querySelector(".line").offsetLeft / document.querySelector(".view").clientWidth,
  scenes: [...document.querySelectorAll("table")[2].tBodies[0].rows].map((row) => row.cells[2].textContent),
  wide: document.documentElement.scrollWidth > innerWidth,
});
</script>"""
LISTEN = '<script>const errors = []; addEventListener("error", (event) => errors.push(event.message));</script>'


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_the_slider_moves_and_the_table_is_sorted(tmp_path: Path) -> None:
    text, _ = written(tmp_path, outcome(BOTH), scenes=2)
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace("<title>", LISTEN + "<title>") + DRIVE, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}", driven.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(re.findall(r"<title>(.*?)</title>", dumped)[0])
    assert found.pop("line") == pytest.approx(0.8 - 20 / 468, abs=0.05)
    assert found == {"errors": [], "scenes": ["29.000", "30.500", "31.000", "31.500", "33.000"], "wide": False}
