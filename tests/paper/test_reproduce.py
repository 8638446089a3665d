"""Experiments run whole: cells, caching, resuming, the table; one smoke run in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import lowpeft
from lowpeft import AdapterError, LowpeftError, load_backbone
from lowpeft.cli import main
from lowpeft.paper import reproduce
from lowpeft.paper.experiments import Experiment, Printed, PrintedFigures, Score, bundled_experiments, load_experiment
from lowpeft.paper.reproduce import Job, Line, Outcome, Settings, Sources, Table, smoke
from lowpeft.paper.reproduce.job import MEAN, finished, run_job
from lowpeft.paper.reproduce.ready import with_ready_row
from lowpeft.paper.reproduce.running import READY_NOTE
from lowpeft.paper.reproduce.smoke import smoke_experiment, write_smoke_scenes, write_smoke_weights
from lowpeft.restoration.data import find_scenes, load_example
from lowpeft.restoration.evaluation import evaluate
from lowpeft.restoration.images import write_image
from lowpeft.restoration.metrics import PROTOCOLS
from states import randomise_adapters
from tiers import by_default

pytestmark = pytest.mark.usefixtures("no_figures", "no_curves")

FINETUNING = smoke_experiment(load_experiment("finetuning"))
PROTOCOLS_OF_PAIRS = [name for name, protocol in PROTOCOLS.items() if protocol.views == 2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    write_smoke_weights(FINETUNING, folder / "weights")
    data, tests = write_smoke_scenes(folder / "scenes", ("flickr1024",))
    return Sources(weights=folder / "weights", data=data, tests=tests)


def job(sources: Sources, row: str = "both", **changes: object) -> Job:
    (found,) = [r for r in FINETUNING.rows if r.name == row]
    plain = {
        "row": row,
        "weights": sources.weights / found.weights,
        "network": found.network,
        "scale": found.scale,
        "recipe": found.recipe,
        "seed": 0,
        "data": sources.data,
        "tests": tuple(sources.tests.items()),
    }
    return Job(**(plain | changes))


@pytest.fixture(scope="module")
def cell(sources: Sources, tmp_path_factory: pytest.TempPathFactory, no_figures: None, no_curves: None) -> Path:
    """The folder of the cell `both`, trained and measured: read it, never write it."""
    folder = tmp_path_factory.mktemp("cell")
    run_job(job(sources), folder)
    return folder


# --- One cell
@pytest.mark.parametrize(
    ("row", "trained"),
    [
        pytest.param("scratch", 83_667, marks=pytest.mark.slow),
        pytest.param("full", 83_667, marks=pytest.mark.slow),
        pytest.param("spatial", 1_044, marks=pytest.mark.slow),
        ("both", 5_220),
    ],
)
def test_a_cell_is_trained_and_measured(row: str, trained: int, sources: Sources, cell: Path, tmp_path: Path) -> None:
    outcome = run_job(job(sources, row), cell if row == "both" else tmp_path)
    assert (outcome.trained, outcome.frozen) == (trained, 0 if row == "scratch" else 83_667)
    figures = outcome.figures["flickr1024"]
    assert ("same view " + MEAN in figures) is (row == "both")
    assert {MEAN, "SSIM (L+R)/2", "PSNR Left", "SSIM Left"} <= figures.keys()
    assert outcome.peak_mb > 0


def test_a_cell_is_measured_by_the_protocol_of_its_experiment(sources: Sources, tmp_path: Path) -> None:
    frozen = {name: run_job(job(sources, recipe=None, protocol=name), tmp_path / name) for name in PROTOCOLS_OF_PAIRS}
    figures = {name: outcome.figures["flickr1024"] for name, outcome in frozen.items()}
    assert figures["asteisr"][MEAN] == figures["literature"][MEAN]
    assert figures["asteisr"]["PSNR Left"] != figures["literature"]["PSNR Left"]
    (scene,) = map(load_example, find_scenes(sources.tests["flickr1024"], scale=4), [4])
    with_cut_views = evaluate(load_backbone(job(sources).weights), [scene], protocol="asteisr").means()
    assert figures["asteisr"]["PSNR Left"] == pytest.approx(with_cut_views["PSNR Left"], abs=1e-4)


def test_a_cell_says_which_weights_it_took_and_how_many_scenes_it_saw(sources: Sources, tmp_path: Path) -> None:
    found = job(sources, recipe=None)
    state = torch.load(found.weights, weights_only=True)
    torch.save({"params": state, "params_ema": state}, tmp_path / "HAT.pth")
    outcome = run_job(dataclasses.replace(found, weights=tmp_path / "HAT.pth"), tmp_path / "cell")
    assert outcome.scenes == {"flickr1024": 1}
    assert [note.startswith("HAT.pth: the averaged ones (EMA)") for note in outcome.notes] == [True]


def test_a_frozen_cell_trains_nothing(sources: Sources, tmp_path: Path) -> None:
    outcome = run_job(job(sources, recipe=None, data=None), tmp_path)
    assert (outcome.trained, outcome.seconds) == (0, 0)


@pytest.mark.slow
def test_the_ensemble_is_measured_on_request(sources: Sources, tmp_path: Path) -> None:
    figures = run_job(job(sources, recipe=None, ensemble=True), tmp_path).figures["flickr1024"]
    assert figures["ensemble " + MEAN] != figures[MEAN]
    assert {"ensemble SSIM (L+R)/2", "ensemble PSNR Left", "ensemble SSIM Left"} <= figures.keys()


@pytest.mark.slow
def test_a_finished_cell_is_taken_over(sources: Sources, tmp_path: Path) -> None:
    first = run_job(job(sources), tmp_path)
    assert finished(job(sources), tmp_path) == first
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert run_job(job(sources), tmp_path) == first
    assert not (tmp_path / "run").exists()


def test_a_cell_that_was_cut_off_after_training_is_measured_without_training_again(
    sources: Sources, cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cell, tmp_path, dirs_exist_ok=True)
    first = run_job(job(sources), tmp_path)
    (tmp_path / "result.json").unlink()
    log = (tmp_path / "run" / "training.jsonl").read_text()
    monkeypatch.setattr("lowpeft.paper.reproduce.job._peak_mb", lambda job: 1.0)
    again = run_job(job(sources), tmp_path)
    assert (tmp_path / "run" / "training.jsonl").read_text() == log
    assert again.figures == first.figures
    assert again.peak_mb == first.peak_mb > 1


@pytest.mark.parametrize("change", by_default(["seed", "data"], ["seed", "ensemble", "data", "recipe", "weights"]))
def test_a_result_of_another_run_is_refused_and_kept(change: str, sources: Sources, tmp_path: Path) -> None:
    frozen = job(sources, recipe=None)
    run_job(frozen, tmp_path)
    (tmp_path / "other.pth").write_bytes(b"1")
    other = {
        "seed": 1,
        "ensemble": True,
        "data": tmp_path,
        "recipe": FINETUNING.rows[2].recipe,
        "weights": tmp_path / "other.pth",
    }
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(LowpeftError, match=rf"result\.json .*\b{change}\b"):
        run_job(dataclasses.replace(frozen, **{change: other[change]}), tmp_path)
    assert (tmp_path / "result.json").read_text() == before


@pytest.mark.parametrize("what", ["weights", "tests"])
def test_a_result_of_other_content_of_the_same_name_and_size_is_refused(
    what: str, sources: Sources, tmp_path: Path
) -> None:
    weights, folder = tmp_path / "network.pth", tmp_path / "set"
    shutil.copyfile(job(sources).weights, weights)
    folder.mkdir()
    for number in "01":
        write_image(torch.rand(3, 16, 80), tmp_path / f"{number}.png")
        Image.open(tmp_path / f"{number}.png").save(folder / f"a_{'LR'[int(number)]}.bmp")
    now = dataclasses.replace(job(sources, recipe=None), weights=weights, tests=(("set", folder),))
    run_job(now, tmp_path / "out")
    run_job(now, tmp_path / "out")
    changed = weights if what == "weights" else folder / "a_L.bmp"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(LowpeftError, match=rf"result\.json .*\b{what}\b"):
        run_job(now, tmp_path / "out")


def test_a_damaged_result_is_refused(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(LowpeftError, match=r"result\.json"):
        run_job(job(sources), tmp_path)


# --- A ready adapter
@pytest.fixture(scope="module")
def ready(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the row `both`, as somebody trained it elsewhere."""
    model = lowpeft.adapt(lowpeft.load_backbone(sources.weights / FINETUNING.rows[-1].weights), "stereo")
    return lowpeft.save_adapter(randomise_adapters(model), tmp_path_factory.mktemp("ready"))


def test_a_ready_adapter_is_measured_and_not_trained(sources: Sources, ready: Path, tmp_path: Path) -> None:
    measured = job(sources, recipe=None, data=None, adapter=ready)
    found = run_job(measured, tmp_path / "both")
    assert (found.trained, found.frozen, found.seconds) == (5_220, 83_667, 0)
    assert found.figures["flickr1024"][MEAN] != found.figures["flickr1024"]["same view " + MEAN]
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["result.json"]
    other = lowpeft.load_adapter(lowpeft.load_backbone(measured.weights), ready)
    lowpeft.save_adapter(randomise_adapters(other, seed=6), tmp_path / "other")
    with pytest.raises(LowpeftError, match=r"result\.json .*\badapter\b"):
        run_job(dataclasses.replace(measured, adapter=tmp_path / "other"), tmp_path / "both")


def test_a_ready_adapter_goes_to_the_row_of_its_network_and_adapters(sources: Sources, ready: Path) -> None:
    assert [row.name for row in with_ready_row(FINETUNING, ready).rows] == ["both"]
    assert [row.name for row in with_ready_row(load_experiment("table1"), ready).rows] == ["x4"]
    twice = dataclasses.replace(FINETUNING, rows=FINETUNING.rows[-1:] * 2)
    with pytest.raises(LowpeftError, match="both, both"):
        with_ready_row(twice, ready)
    with pytest.raises(AdapterError):
        with_ready_row(FINETUNING, sources.weights)


def test_a_ready_adapter_of_no_row_is_refused_with_what_the_rows_are_for(sources: Sources, ready: Path) -> None:
    experiment = load_experiment("table1")
    rows = [row for row in experiment.rows if row.scale == 2]
    alone = dataclasses.replace(sources, adapter=ready)
    with pytest.raises(LowpeftError, match="hat x4") as caught:
        reproduce.reproduce(dataclasses.replace(experiment, rows=tuple(rows)), alone, ready / "out")
    assert caught.value.problems == ("x2: spatial and stereo on hat x2",)
    assert not (ready / "out").exists()


@pytest.mark.slow
def test_a_ready_adapter_stands_beside_the_papers_figures(
    sources: Sources, ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, test = sources.weights / FINETUNING.rows[-1].weights, f"flickr1024={sources.tests['flickr1024']}"
    arguments = ["--adapter", str(ready), "--test", test, "--out", str(tmp_path), "--device", "cpu"]
    assert main(["reproduce", "table1", "--weights", str(weights), *arguments]) == 0
    table = (tmp_path / "table.md").read_text()
    assert READY_NOTE.format("x4") in table
    (frozen,) = (line for line in table.splitlines() if line.startswith("| frozen | 0 |"))
    (adapted,) = (line for line in table.splitlines() if line.startswith("| x4 | 5,220 | 0 |"))
    assert "| 24.21 |" in frozen
    assert "| 24.43 |" in adapted
    assert "| HTCAN x4 |" in table
    assert "EDSR x2" not in table
    before = (tmp_path / "x4" / "result.json").stat().st_mtime_ns
    assert main(["reproduce", "table1", "--weights", str(sources.weights), *arguments]) == 0
    assert (tmp_path / "x4" / "result.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("24.43") == 2


def test_weights_of_another_network_are_refused(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(LowpeftError, match=r"hat x4.*'both'.*hat x2"):
        run_job(job(sources, scale=2), tmp_path)


# --- The table
def outcome(row: str, seed: int, db: float, **more: float) -> Outcome:
    figures = {"kitti2015": {MEAN: db, **more}}
    return Outcome(row=row, seed=seed, frozen=100, trained=7, seconds=2.0, peak_mb=50.0, figures=figures)


def line(*outcomes: Outcome, paper_db: float | None = None) -> Line:
    printed = None if paper_db is None else printed_line("ours", paper_db)
    return Line(row=outcomes[0].row, summary="", outcomes=outcomes, printed=printed)


def printed_line(name: str, db: float, *, left: Score | None = None) -> Printed:
    figures = (PrintedFigures(test_set="kitti2015", left=left, mean=Score(db=db, ssim=0.75)),)
    return Printed(name=name, trained_m=1.97, hours=55, memory_gb=21.37, figures=figures)


TABLE = Table(
    experiment=dataclasses.replace(FINETUNING, printed=(printed_line("HTCAN", 26.99),), notes=("Mixed protocols.",)),
    lines=(line(outcome("frozen", 0, 26.5)), line(outcome("both", 0, 26.9), outcome("both", 1, 27.1), paper_db=26.98)),
    note="Small.",
)


def test_mean_and_spread_are_over_seeds() -> None:
    frozen, both = TABLE.lines
    assert both.mean("kitti2015", MEAN) == pytest.approx(27.0)
    assert both.spread("kitti2015", MEAN) == pytest.approx(0.2 / 2**0.5)
    assert frozen.spread("kitti2015", MEAN) is None
    assert frozen.mean("kitti2012", MEAN) is None


def test_the_papers_figure_and_the_difference_stand_beside_ours() -> None:
    head = "| row | trained | s | MB | paper, M | paper, h | paper, GB | PSNR (L+R)/2 | paper | ours - paper |"
    assert head in TABLE.markdown()
    assert "| both | 7 | 2 | 50 | 1.97 | 55 | 21.37 | 27.000 ± 0.141 | 26.98 | +0.02 |" in TABLE.markdown()
    assert "| frozen | 7 | 2 | 50 | – | – | – | 26.500 | – | – |" in TABLE.markdown()
    assert "**Small.**" in TABLE.markdown()
    assert str(TABLE).splitlines()[1] == "Small."


def test_lines_that_are_only_printed_stand_below_the_rows_with_the_notes() -> None:
    assert "| HTCAN | – | – | – | 1.97 | 55 | 21.37 | – | 26.99 | – |\n" in TABLE.markdown()
    for text in (str(TABLE), TABLE.markdown()):
        assert "Mixed protocols." in text
        assert text.index("HTCAN") > text.index("both")


def test_left_ssim_and_the_self_ensemble_have_their_figures() -> None:
    left, ensemble = Score(db=26.91, ssim=0.8266), printed_line("second row", 27.07)
    paper = Line(row="x4", summary="", printed=printed_line("ours", 26.98, left=left), ensemble=ensemble)
    assert paper.paper("kitti2015") == {
        "PSNR Left": 26.91,
        "SSIM Left": 0.8266,
        MEAN: 26.98,
        "SSIM (L+R)/2": 0.75,
        "ensemble " + MEAN: 27.07,
        "ensemble SSIM (L+R)/2": 0.75,
    }
    assert paper.paper("flickr1024") == {}
    ours = outcome("x4", 0, 27.0, **{"SSIM (L+R)/2": 0.7505, "PSNR Left": 26.9, "ensemble " + MEAN: 27.07})
    lines = (dataclasses.replace(paper, outcomes=(ours,)),)
    shown = Table(experiment=load_experiment("table1"), lines=lines).markdown()
    assert (
        "| 27.000 | 26.98 | +0.02 | 0.7505 | 0.7500 | +0.0005 | 26.900 | 26.91 | -0.01 | 27.070 | 27.07 | +0.00 |"
        in shown
    )


def test_the_table_as_plain_values_is_json() -> None:
    plain = json.loads(json.dumps(TABLE.as_dict()))
    assert [row["row"] for row in plain["rows"]] == ["frozen", "both"]
    assert plain["rows"][1]["paper"] == {"trained_m": 1.97, "hours": 55, "memory_gb": 21.37}
    assert plain["rows"][1]["sets"]["kitti2015"]["paper"] == {MEAN: 26.98, "SSIM (L+R)/2": 0.75}
    assert len(plain["rows"][1]["outcomes"]) == 2
    assert [line["name"] for line in plain["only printed"]] == ["HTCAN"]


# --- The whole
def one_row(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, rows=experiment.rows[-1:])


@pytest.mark.slow
def test_an_experiment_runs_whole_and_again_from_what_is_finished(tmp_path: Path) -> None:
    notes: list[str] = []
    settings = Settings(seeds=(0, 1))
    table = smoke(one_row(FINETUNING), tmp_path, settings=settings, report=notes.append)
    assert notes == ["1/3: frozen", "2/3: both/seed-0", "3/3: both/seed-1"]
    assert [(row.row, len(row.outcomes)) for row in table.lines] == [("frozen", 1), ("both", 2)]
    assert "smoke run" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["row"] == "frozen"
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert smoke(one_row(FINETUNING), tmp_path, settings=settings).lines == table.lines
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == before


@pytest.mark.slow
def test_every_row_gets_its_first_seed_before_any_gets_its_second(tmp_path: Path) -> None:
    rows = [dataclasses.replace(FINETUNING.rows[-1], name=name) for name in ("one", "two")]
    experiment = dataclasses.replace(FINETUNING, rows=tuple(rows))
    notes: list[str] = []
    smoke(experiment, tmp_path, settings=Settings(seeds=(0, 1), jobs=2), report=notes.append)
    assert [note.split()[1] for note in notes[1:]] == ["one/seed-0", "two/seed-0", "one/seed-1", "two/seed-1"]


@pytest.mark.slow
def test_cells_side_by_side_give_what_one_after_the_other_give(tmp_path: Path) -> None:
    def figures(jobs: int) -> list[dict[str, dict[str, float]]]:
        table = smoke(one_row(FINETUNING), tmp_path / str(jobs), settings=Settings(seeds=(0, 1), jobs=jobs))
        return [outcome.figures for line in table.lines for outcome in line.outcomes]

    for together, alone in zip(figures(2), figures(1), strict=True):
        assert together["flickr1024"] == pytest.approx(alone["flickr1024"], abs=1e-3)


@pytest.mark.slow
def test_what_was_finished_beside_a_cell_that_fails_stays(tmp_path: Path) -> None:
    (tmp_path / "both" / "seed-0").mkdir(parents=True)
    (tmp_path / "both" / "seed-0" / "run").write_text("a file where the run's folder goes")
    with pytest.raises((LowpeftError, OSError)):
        smoke(one_row(FINETUNING), tmp_path, settings=Settings(seeds=(0, 1), jobs=2))
    assert (tmp_path / "frozen" / "result.json").exists()
    assert not (tmp_path / "table.md").exists()


def test_what_is_missing_is_listed_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    sources = Sources(weights=tmp_path / "weights", data=tmp_path / "none", tests={"kitti2015": tmp_path / "no"})
    with pytest.raises(LowpeftError) as caught:
        reproduce.reproduce(FINETUNING, sources, tmp_path / "out")
    words = (str(tmp_path / "none"), "kitti2015", "HAT-L_SRx4_ImageNet-pretrain.pth")
    assert [word in problem for word, problem in zip(words, caught.value.problems, strict=True)] == [True] * 3
    assert not (tmp_path / "out").exists()


def test_settings_of_a_run_are_checked_together() -> None:
    with pytest.raises(LowpeftError) as caught:
        Settings(seeds=(), jobs=0, memory_mb=-1)
    words = ("seeds", "jobs", "memory_mb")
    assert [word in problem for word, problem in zip(words, caught.value.problems, strict=True)] == [True] * 3


def test_rows_are_run_alone_on_request(tmp_path: Path) -> None:
    command = ["reproduce", "count", "--speed", "--smoke", "--repeats", "2", "--row", "6", "--row", "0", "--out"]
    assert main([*command, str(tmp_path)]) == 0
    speed = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in speed["rows"]] == ["0", "6"]
    assert "--row 6 --row 0" in speed["command"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetunning", "--smoke"], "'finetuning'"),
        (["finetuning"], "--weights, --data, --test, --smoke"),
        (["finetuning", "--smoke", "--out", ""], "--out DIR"),
        (["finetuning", "--smoke", "--seeds", "0"], "seeds 0"),
        (["finetuning", "--smoke", "--jobs", "0"], "jobs 0"),
        (["finetuning", "--smoke", "--set", "stps=1"], "'stps' 'steps'"),
        (["finetuning", "--weights", "w", "--data", "d", "--test", "kitti"], "'kitti' NAME=DIR"),
        (["finetuning", "--weights", "w", "--data", "d", "--test", "a=b", "--test", "a=c"], "--test a=… once"),
        (["table1", "--adapter", "a"], "--weights, --test"),
        (["table1", "--adapter", "a", "--smoke", "--seeds", "2", "--set", "steps=1"], "--smoke, --set, --seeds"),
        (["table1", "--adapter", "a", "--weights", "w", "--test", "a=b"], "a is not an adapter folder"),
        (["finetuning", "--smoke", "--memory-mb", "-3"], "--memory-mb -3"),
        (["finetuning", "--smoke", "--weights", "w", "--test", "a=b"], "--weights, --test"),
        (["finetuning", "--smoke", "--out", "/dev/null/x"], "/dev/null/x"),
        (["count", "--show", "--smoke", "--test", "a=b"], "--show --test, --smoke, --out"),
        (["count", "--speed", "--seeds", "2", "--memory-mb", "9"], "--speed --seeds, --memory-mb"),
        (["count", "--smoke", "--row", "sx"], "'count' 'sx' 0, 1, 2, 3, 4, 6, 12"),
        (["count", "--smoke", "--size", "8x8"], "--speed: --size"),
        (["count", "--speed", "--smoke", "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_arguments_get_a_clear_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert [word for word in words.split() if word not in error] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled_experiments())
def test_every_bundled_experiment_runs_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", name, "--smoke", "--out", str(tmp_path), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert all(row.name in shown for row in load_experiment(name).rows)
    assert "Measured by the protocol" in shown
    assert "1 scene\n" in shown
