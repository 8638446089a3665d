"""The paper's tables as printed: samples typed by hand, what `reproduce --show` prints, and the rows' own counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_experiments import row_table, table

import lowpeft
from lowpeft import SpatialConfig, StereoConfig
from lowpeft.cli import main
from lowpeft.kinds import get_kind
from lowpeft.paper.experiments import Printed, bundled_experiments, experiment_from_dict, load_experiment
from lowpeft.paper.experiments.show import remarks, shown
from test_house import NOT_AT_IMPORT
from zoo import FAMILIES

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def line(experiment: str, name: str) -> Printed:
    (found,) = [each for each in load_experiment(experiment).printed if each.name == name]
    return found


# --- Figures as printed
@pytest.mark.parametrize(
    ("name", "test_set", "left", "mean"),
    [
        ("VDSR x2", "kitti2012", "30.17/0.9062", "30.30/0.9089"),
        ("StereoSR x2", "middlebury", "33.15/0.9343", "33.23/0.9348"),
        ("NAFSSR-L x2", "flickr1024", "None", "29.68/0.9221"),
        ("HAT-L x2", "middlebury", "36.25/0.9571", "36.32/0.9569"),
        ("ASteISR x2", "kitti2015", "31.32/0.9393", "31.41/0.9405"),
        ("ASteISR x2, second row", "flickr1024", "None", "30.33/0.9290"),
        ("RCAN x4", "kitti2015", "25.53/0.7836", "26.22/0.8068"),
        ("SwinIR x4", "middlebury", "29.55/0.8456", "29.69/0.8463"),
        ("SRRes+SAM x4", "kitti2012", "26.35/0.7957", "26.44/0.8018"),
        ("SCGLANet x4", "flickr1024", "None", "24.30/0.7657"),
        ("HTCAN x4", "middlebury", "30.25/0.8628", "30.33/0.8634"),
        ("ASteISR x4", "kitti2012", "27.07/0.8203", "27.17/0.8231"),
        ("ASteISR x4", "flickr1024", "None", "24.43/0.7690"),
        ("ASteISR x4, second row", "middlebury", "30.61/0.8707", "30.75/0.8720"),
    ],
)
def test_table_1_has_left_and_mean_of_every_method(name: str, test_set: str, left: str, mean: str) -> None:
    found = line("table1", name).on(test_set)
    assert (str(found.left), str(found.mean)) == (left, mean)


def test_table_1_is_complete() -> None:
    lines = load_experiment("table1").printed
    assert [sum(each.name.partition(",")[0].endswith(scale) for each in lines) for scale in ("x2", "x4")] == [15, 18]
    sets = ("kitti2012", "kitti2015", "middlebury", "flickr1024")
    assert {tuple(f.test_set for f in each.figures) for each in lines} == {sets}
    assert {each.name: each.trained_m for each in lines if each.name in ("EDSR x4", "HAT-L x2", "HTCAN x4")} == {
        "EDSR x4": 38.9,
        "HAT-L x2": 40.70,
        "HTCAN x4": 64.82,
    }


@pytest.mark.parametrize(
    ("experiment", "name", "costs", "score"),
    [
        ("finetuning", "HAT-L, frozen", (0, 0, 0), "24.21/0.7590"),
        ("finetuning", "from scratch", (40.85, 127, 25.11), "23.78/0.7410"),
        ("finetuning", "full fine-tuning", (40.85, 127, 25.11), "24.18/0.7517"),
        ("finetuning", "spatial adapters", (1.18, 54, 21.32), "24.20/0.7523"),
        ("finetuning", "stereo adapters", (0.78, 50, 17.54), "24.33/0.7636"),
        ("finetuning", "both", (1.97, 55, 21.37), "24.43/0.7690"),
        ("placement", "baseline", (1.97, 55, 21.37), "24.43/0.7690"),
        ("placement", "(a) an additional adapter after the MLP", (3.68, 126, 24.53), "24.35/0.7653"),
        ("placement", "(b) adapters in parallel", (3.68, 124, 24.53), "24.39/0.7661"),
        ("count", "0: spatial adapters alone", (1.18, 54, 21.32), "24.20/0.7523"),
        ("count", "6: the paper's choice", (1.97, 55, 21.37), "24.43/0.7690"),
        ("pretraining", "DF2K: frozen", (None, None, None), "23.87/0.7455"),
        ("pretraining", "ImageNet: adapted", (None, None, None), "24.01/0.7534"),
        ("pretraining", "ImageNet, then DF2K: adapted", (None, None, None), "24.13/0.7562"),
        ("backbones", "IPT, frozen", (None, None, None), "23.68/0.7366"),
        ("backbones", "IPT, adapted", (None, None, None), "23.87/0.7451"),
        ("backbones", "EDT, frozen", (None, None, None), "23.93/0.7469"),
        ("backbones", "HAT-L, adapted", (None, None, None), "24.43/0.7690"),
    ],
)
def test_a_line_has_its_costs_and_its_score(
    experiment: str, name: str, costs: tuple[float | None, ...], score: str
) -> None:
    found = line(experiment, name)
    assert (found.trained_m, found.hours, found.memory_gb) == costs
    assert str(found.on("flickr1024").mean) == score


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("table1", "mixes protocols"),
        ("table1", "presumably the self-ensemble"),
        ("table1", "SwinIPASSR"),
        ("backbones", "printed as 0/7590, a misprint"),
        ("placement", "3.68 M of (a) and (b) do not follow from the published sizes"),
        ("count", "a plot without figures"),
        ("pretraining", "label is lost"),
    ],
)
def test_what_readers_must_know_is_among_the_remarks(experiment: str, words: str) -> None:
    assert any(words in remark for remark in remarks(load_experiment(experiment)))


# --- What the rows train
def test_what_lowpeft_trains_is_what_the_benchmark_counted() -> None:
    """HAT-L, EDT-B and IPT at full size, with the recipes as they are."""
    counted = {each["name"]: each for each in json.loads((RESULTS / "backbones.json").read_text())["networks"]}
    names = {("hat", 4): "HAT-L x4", ("hat", 2): "HAT-L x2", ("edt", 4): "EDT-B x4", ("ipt", 4): "IPT x4"}
    for experiment in ("backbones", "finetuning", "pretraining", "table1"):
        for row in load_experiment(experiment).rows:
            assert row.family is not None
            network = counted[names[row.family, row.scale]]
            kinds = [config.kind for config in row.recipe.adapters]
            of_kinds = [network["by_kind"].get(kind, network["frozen"]) for kind in kinds]
            assert row.trained == (sum(of_kinds) or network["frozen"]), (experiment, row.name)


@pytest.mark.parametrize("experiment", ["count", "placement"])
def test_what_other_rows_of_hat_l_train_follows_from_its_sizes(experiment: str) -> None:
    """12 groups of 6 blocks, 180 channels, an adapter for each place of each block."""
    groups, blocks, channels = 12, 6, 180

    def parameters(config: SpatialConfig | StereoConfig) -> int:
        made = get_kind(config.kind).module(channels, config)
        sites = groups // config.every if isinstance(config, StereoConfig) else groups * blocks * len(config.places)
        return sites * sum(p.numel() for p in made.parameters())

    counts = {r.name: sum(map(parameters, r.recipe.adapters)) for r in load_experiment(experiment).rows}  # type: ignore[arg-type]
    assert counts == {row.name: row.trained for row in load_experiment(experiment).rows}
    assert experiment == "count" or round(counts["both"] / 1e6, 2) == 3.15


def test_the_papers_two_other_placements_are_rows_with_two_adapters_in_every_block() -> None:
    (network,) = [n for n in FAMILIES if n.family == "hat"]
    torch.manual_seed(0)
    hat, places = network.build(), {}
    rows = {row.name: row for row in load_experiment("placement").rows}
    for name in ("both", "parallel-both"):
        sites = [s for s in lowpeft.plan(hat, rows[name].recipe).sites if s.config.kind == "spatial"]
        places[name] = {site.attachment.port for site in sites}
        assert len(sites) == 2 * len({(site.stage, site.block) for site in sites})
    assert places == {"both": {"attention", "mlp"}, "parallel-both": {"parallel_attention", "parallel"}}


# --- Showing
SHOW = """
import contextlib, io, json, sys
from lowpeft.cli import main
texts = {}
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["reproduce", name, "--show"]) == 0
    texts[name] = text.getvalue()
json.dump({"texts": texts, "loaded": sorted(sys.modules)}, sys.stdout)
"""


def test_every_experiment_is_shown_without_data_weights_or_heavy_imports(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHOW, *bundled_experiments()]
    done = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert NOT_AT_IMPORT.isdisjoint({name.partition(".")[0] for name in done["loaded"]})
    assert "lowpeft.restoration.training" not in done["loaded"]
    assert list(tmp_path.iterdir()) == []
    for name, text in done["texts"].items():
        found = load_experiment(name)
        assert text.startswith(f"{name}: {found.summary}\n{found.source}. ")
        for each in found.printed:
            (shown_line,) = [row for row in text.splitlines() if row.startswith(f"{each.name}  ")]
            scores = [str(s) for f in each.figures for s in (f.left, f.mean) if s is not None]
            assert [score for score in scores if score not in shown_line] == []
        assert [remark for remark in remarks(found) if remark not in text] == []


def test_a_shown_line_has_costs_what_lowpeft_trains_and_the_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "placement", "--show"]) == 0
    lines = [text.split("  ") for text in capsys.readouterr().out.splitlines()]
    (header,) = [cells for cells in lines if cells[0] == "printed line"]
    (found,) = [cells for cells in lines if cells[0].startswith("(b)")]
    words = ["printed line", "trained, M", "hours", "memory, GB", "lowpeft trains", "flickr1024, mean", "row"]
    assert [cell.strip() for cell in header if cell.strip()] == words
    cells = ["(b) adapters in parallel", "3.68", "124", "24.53", "3,153,600", "24.39/0.7661", "`parallel-both`"]
    assert [cell.strip() for cell in found if cell.strip()] == cells


def test_roles_of_lines() -> None:
    text = shown(load_experiment("table1"))
    roles = {row.split("  ")[0]: row.split("  ")[-1] for row in text.splitlines() if "0." in row}
    assert roles["HAT-L x4"].strip() == "frozen network"
    assert roles["ASteISR x4"].strip() == "`x4`"
    assert roles["ASteISR x4, second row"].strip() == "`x4` with --ensemble"
    assert roles["HTCAN x4"].strip() == "only printed"


def test_an_experiment_of_ones_own_without_printed_lines_is_shown() -> None:
    text = shown(experiment_from_dict(table(row=[row_table()])))
    assert "It prints no figures for these rows." in text
    assert "Rows that the paper prints no figures for: one." in text
