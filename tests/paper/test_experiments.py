"""Experiments: the bundled tables of the paper, strict files, and recipes that fit the networks of their rows."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

import lowpeft
from lowpeft import PlanError, SpatialConfig, StereoConfig, load_recipe
from lowpeft.paper.experiments import (
    Experiment,
    Paper,
    Printed,
    PrintedFigures,
    Row,
    Score,
    bundled_experiments,
    experiment_from_dict,
    load_experiment,
)
from zoo import FAMILIES

BUNDLED = pytest.mark.parametrize("name", bundled_experiments())
ROWS = [(name, row) for name in bundled_experiments() for row in load_experiment(name).rows]
EACH_ROW = pytest.mark.parametrize("row", [row for _, row in ROWS], ids=[f"{name}-{row.name}" for name, row in ROWS])
STEREO = load_recipe("stereo")

EDT_CROP = HAT_CROP = (128, 320)
IPT_CROP = (192, 192)


def row_table(**changes: Any) -> dict[str, Any]:
    """The plain values of a row, some of them changed; a key with the value `...` is left out."""
    row = {"name": "one", "family": "hat", "scale": 4, "weights": "HAT.pth", "recipe": "stereo", **changes}
    return {k: v for k, v in row.items() if v is not ...}


def table(**changes: Any) -> dict[str, Any]:
    """The plain values of an experiment with one row, some of them changed; a key with the value `...` is left out."""
    texts = {"name": "small", "summary": "one row", "metric": "PSNR in dB", "source": "nowhere"}
    values = {"schema": 1, **texts, "row": [row_table()], **changes}
    return {k: v for k, v in values.items() if v is not ...}


def test_a_row_of_a_network_of_no_family_names_its_architecture() -> None:
    (row,) = experiment_from_dict(table(row=[row_table(family=..., architecture="DCTLSA")])).rows
    assert (row.family, row.architecture, row.network) == (None, "DCTLSA", "DCTLSA")
    (row,) = experiment_from_dict(table()).rows
    assert (row.family, row.architecture, row.network) == ("hat", None, "hat")


def problems_of(values: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        experiment_from_dict(values)
    return caught.value.problems


# --- The bundled experiments
@pytest.mark.parametrize(
    ("experiment", "row", "family", "weights", "crop", "figures"),
    [
        ("backbones", "ipt", "ipt", "IPT_sr4.pt", IPT_CROP, (23.68, 23.87)),
        ("backbones", "edt", "edt", "SRx4_EDTB_Div2kFlickr2K__SRx4_ImageNet200K.pth", EDT_CROP, (23.93, 24.13)),
        ("backbones", "hat-l", "hat", "HAT-L_SRx4_ImageNet-pretrain.pth", HAT_CROP, (24.21, 24.43)),
        ("pretraining", "df2k", "edt", "SRx4_EDTB_Div2kFlickr2K.pth", EDT_CROP, (23.87, 24.00)),
        ("pretraining", "imagenet", "edt", "SRx4_EDTB_ImageNet200K.pth", EDT_CROP, (23.86, 24.01)),
        (
            "pretraining",
            "imagenet-df2k",
            "edt",
            "SRx4_EDTB_Div2kFlickr2K__SRx4_ImageNet200K.pth",
            EDT_CROP,
            (23.93, 24.13),
        ),
    ],
)
def test_a_bundled_row_is_what_the_paper_and_the_authors_say(
    experiment: str, row: str, family: str, weights: str, crop: tuple[int, int], figures: tuple[float, float]
) -> None:
    (found,) = [r for r in load_experiment(experiment).rows if r.name == row]
    training = found.recipe.training
    assert (found.family, found.scale, found.weights) == (family, 4, weights)
    assert (training.crop_height_px, training.crop_width_px) == crop
    scores = [line.on("flickr1024").mean for line in (found.paper.frozen, found.paper.adapted) if line is not None]
    assert tuple(score.db for score in scores if score is not None) == figures


def test_the_rows_of_each_experiment() -> None:
    assert {name: [row.name for row in load_experiment(name).rows] for name in bundled_experiments()} == {
        "backbones": ["ipt", "edt", "hat-l"],
        "count": ["0", "1", "2", "3", "4", "6", "12"],
        "finetuning": ["scratch", "full", "spatial", "stereo-only", "both"],
        "placement": ["attention", "mlp", "both", "parallel", "parallel-both"],
        "pretraining": ["df2k", "imagenet", "imagenet-df2k"],
        "table1": ["x4", "x2"],
    }


def test_every_row_of_an_experiment_prints_the_same_frozen_figure_for_the_same_weights() -> None:
    found: dict[tuple[str, str], set[Score | None]] = {}
    for _, row in ROWS:
        assert row.paper.frozen is not None
        for figures in row.paper.frozen.figures:
            found.setdefault((row.weights, figures.test_set), set()).add(figures.mean)
    assert [key for key, values in found.items() if len(values) > 1] == []


@pytest.mark.parametrize("row", [r for r in load_experiment("count").rows if r.name != "0"], ids=lambda r: r.name)
def test_the_rows_of_count_have_as_many_stereo_adapters_as_they_say(row: Row) -> None:
    (config,) = [c for c in row.recipe.adapters if isinstance(c, StereoConfig)]
    groups_of_hat_l = 12
    assert groups_of_hat_l // config.every == int(row.name)


@BUNDLED
def test_a_bundled_experiment_is_known_by_its_file_name(name: str) -> None:
    assert load_experiment(name).name == name


@BUNDLED
@pytest.mark.parametrize("word", ["hardware", "expected", "source", "choices", "files"])
def test_the_header_of_a_bundled_experiment_says_where_it_is_from(name: str, word: str) -> None:
    text = (resources.files("lowpeft.paper.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    header = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert [line for line in header if re.match(rf"# {word} +\S", line)]


@pytest.mark.parametrize("row", [r for name, r in ROWS if name in ("backbones", "pretraining", "table1")])
def test_a_row_that_compares_networks_changes_the_crop_of_the_stereo_recipe_and_nothing_else(row: Row) -> None:
    crop = {"crop_height_px": 128, "crop_width_px": 320}
    training = dataclasses.replace(row.recipe.training, **crop)
    assert dataclasses.replace(row.recipe, training=training) == STEREO


@EACH_ROW
def test_the_recipe_of_a_bundled_row_plans_on_its_family(row: Row) -> None:
    if row.recipe.from_scratch:
        pytest.skip("nothing is adapted")
    if any(isinstance(config, StereoConfig) and config.every > 4 for config in row.recipe.adapters):
        pytest.skip("the tiny network has four groups only")
    (network,) = [n for n in FAMILIES if n.family == row.family]
    torch.manual_seed(0)
    plan = lowpeft.plan(network.build(), row.recipe)
    assert plan.family == row.family
    assert {site.config.kind for site in plan.sites} == {config.kind for config in row.recipe.adapters}


@pytest.mark.parametrize(("family", "fits"), [("ipt", lambda px: px == 48), ("hat", lambda px: px % 16 == 0)])
def test_crops_of_bundled_rows_are_what_the_network_takes(family: str, fits: Any) -> None:
    training = [row.recipe.training for _, row in ROWS if row.family == family]
    sides = [side // 4 for t in training for side in (t.crop_height_px, t.crop_width_px)]
    assert sides
    assert all(map(fits, sides))


# --- Reading
def test_a_table_gives_its_values() -> None:
    row = row_table(summary="HAT", trained=7, paper={"frozen": "HAT", "adapted": "ours"})
    frozen = {"name": "HAT", "figures": {"kitti": {"left": [23.5, 0.7], "mean": [24, 0.75]}}}
    ours = {"name": "ours", "trained_m": 1.97, "hours": 0, "memory_gb": 21.37, "note": "a guess"}
    lines = (
        Printed(
            name="HAT",
            figures=(PrintedFigures(test_set="kitti", left=Score(db=23.5, ssim=0.7), mean=Score(db=24, ssim=0.75)),),
        ),
        Printed(name="ours", trained_m=1.97, hours=0, memory_gb=21.37, note="a guess"),
    )
    assert experiment_from_dict(table(row=[row], printed=[frozen, ours], notes=["Read this."])) == Experiment(
        name="small",
        summary="one row",
        metric="PSNR in dB",
        source="nowhere",
        rows=(
            Row(
                name="one",
                summary="HAT",
                family="hat",
                scale=4,
                weights="HAT.pth",
                recipe=STEREO,
                trained=7,
                paper=Paper(frozen=lines[0], adapted=lines[1]),
            ),
        ),
        printed=lines,
        notes=("Read this.",),
    )


def test_overrides_and_training_settings_are_in_the_recipe() -> None:
    overrides = {"every": 1, "spatial": {"reduction": 8}}
    training = {"crop_height_px": 192, "betas": [0.9, 0.99]}
    (row,) = experiment_from_dict(table(row=[row_table(overrides=overrides, training=training)])).rows
    assert row.recipe.adapters == (SpatialConfig(reduction=8), StereoConfig(every=1))
    assert row.recipe.training == dataclasses.replace(STEREO.training, crop_height_px=192, betas=(0.9, 0.99))


def test_what_is_not_printed_is_none() -> None:
    (line,) = experiment_from_dict(
        table(printed=[{"name": "one", "figures": {"kitti": {"mean": [24.5, 0.7]}}}])
    ).printed
    assert (line.trained_m, line.hours, line.memory_gb, line.on("kitti").left) == (None, None, None, None)
    assert line.on("middlebury") == PrintedFigures(test_set="middlebury")


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_is_an_experiment(tmp_path: Path, as_text: bool) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes((resources.files("lowpeft.paper.experiments") / "backbones.toml").read_bytes())
    assert load_experiment(str(path) if as_text else path) == load_experiment("backbones")


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes((resources.files("lowpeft.recipes") / "spatial.toml").read_bytes())
    (row,) = experiment_from_dict(table(row=[row_table(recipe=str(path))])).rows
    assert row.recipe == load_recipe("spatial")


def test_an_experiment_is_a_value() -> None:
    found = load_experiment("backbones")
    assert copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found
    assert len({found, load_experiment("backbones")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows[0].scale = 2  # type: ignore[misc]


# --- Files that cannot be used
@pytest.mark.parametrize("name", ["backbone", "backbones.toml", "no/such.toml", "", "."])
def test_an_unknown_experiment_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(PlanError, match="backbones, count, finetuning"):
        load_experiment(name)


def test_an_unknown_experiment_gets_the_nearest_name() -> None:
    with pytest.raises(PlanError, match="did you mean 'backbones'"):
        load_experiment("backbone")


@pytest.mark.parametrize("content", [b"schema = = 1", b"\xff\xfe\x00"], ids=["not-toml", "not-text"])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"broken\.toml"):
        load_experiment(path)


def test_the_file_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("schema = 1\n", encoding="utf-8")
    with pytest.raises(PlanError, match=r"mine\.toml"):
        load_experiment(path)


@pytest.mark.parametrize("values", [[], "stereo", None], ids=repr)
def test_something_that_is_no_table_is_refused(values: Any) -> None:
    with pytest.raises(PlanError, match=type(values).__name__):
        experiment_from_dict(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2 1"),
        ({"schema": True}, "schema True 1"),
        ({"schema": ...}, "schema None 1"),
        ({"sumary": "x"}, "'sumary' 'summary'"),
        ({"rows": []}, "'rows' 'row'"),
        ({"name": 3}, "name string 3"),
        ({"metric": ...}, "metric string None"),
        ({"source": ...}, "source string None"),
        ({"row": ...}, "[[row]]"),
        ({"row": []}, "[[row]]"),
        ({"row": row_table()}, "[[row]]"),
        ({"row": [3]}, "1: table 3"),
        ({"row": [row_table(), row_table(family="edt")]}, "2 ('one'): name"),
        ({"protocol": "Asteisr"}, "protocol literature, 'Asteisr' 'asteisr'"),
        ({"protocol": "single-image"}, "protocol literature, asteisr, 'single-image'"),
        ({"notes": "one"}, "notes list 'one'"),
        ({"notes": [""]}, "notes list ['']"),
        ({"printed": {"name": "one"}}, "[[printed]] {'name': 'one'}"),
        ({"printed": [3]}, "1: table 3"),
        ({"printed": [{"name": "a"}, {"name": "a"}]}, "2 ('a'): name"),
    ],
    ids=str,
)
def test_a_table_is_read_strictly(changes: dict[str, Any], words: str) -> None:
    """Each problem names the key and the value (and the nearest known name)."""
    (problem,) = problems_of(table(**changes))
    assert [word for word in words.split() if word not in problem] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wieghts": "x"}, "'wieghts' 'weights'"),
        ({"summary": 3}, "summary string 3"),
        ({"family": "hta"}, "family 'hta' 'hat' edt, swinir"),
        ({"family": ...}, "family architecture neither"),
        ({"architecture": "DCTLSA"}, "family architecture 'hat' 'DCTLSA'"),
        ({"family": ..., "architecture": 3}, "family architecture 3"),
        ({"scale": 0}, "scale 1, 0"),
        ({"scale": True}, "scale 1, True"),
        ({"scale": "4"}, "scale 1, '4'"),
        ({"scale": ...}, "scale 1, None"),
        ({"scale": 3}, "128x320 scale, 3"),
        ({"weights": ...}, "weights string None"),
        ({"weights": "folder/HAT.pth"}, "weights 'folder/HAT.pth'"),
        ({"name": ""}, "name ''"),
        ({"name": ".."}, "name '..'"),
        ({"recipe": "steroe"}, "'steroe' 'stereo'"),
        ({"recipe": 3}, "recipe string 3"),
        ({"recipe": ...}, "recipe string None"),
        ({"overrides": 3}, "[overrides] table 3"),
        ({"overrides": {"evry": 1}}, "'evry' 'every'"),
        ({"overrides": {"every": 0}}, "every 1, 0"),
        ({"training": 3}, "[training] table 3"),
        ({"training": {"stps": 1}}, "[training] 'stps' 'steps'"),
        ({"training": {"steps": 0}}, "steps 1, 0"),
        ({"trained": 0}, "trained 1, 0"),
        ({"trained": 1.97}, "trained 1, 1.97"),
        ({"paper": 24.4}, "[paper] table frozen, adapted, ensemble, 24.4"),
        ({"paper": {"frozn": "HAT-L"}}, "[paper] 'frozn' 'frozen'"),
        ({"paper": {"frozen": "HAT"}}, "frozen [[printed]] 'HAT' 'HAT-L'"),
        ({"paper": {"adapted": 24.4}}, "adapted [[printed]] 24.4"),
        ({"paper": {"adapted": ["HAT-L"]}}, "adapted [[printed]] ['HAT-L']"),
        ({"paper": {"frozen": "HAT-L x2"}}, "'HAT-L x2' 2, 4"),
    ],
    ids=str,
)
def test_a_row_is_read_strictly(changes: dict[str, Any], words: str) -> None:
    rows = [row_table(), row_table(**{"name": "two", **changes})]
    (problem,) = problems_of(table(row=rows, printed=[{"name": "HAT-L"}, {"name": "HAT-L x2", "scale": 2}]))
    assert problem.startswith("row 2 (")
    assert [word for word in words.split() if word not in problem] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ...}, "name string None"),
        ({"name": ""}, "name empty"),
        ({"note": 3}, "note string 3"),
        ({"hour": 55}, "'hour' 'hours'"),
        ({"hours": -1}, "hours 0, -1"),
        ({"hours": "55"}, "hours 0, '55'"),
        ({"scale": 1.5}, "scale 1, 1.5"),
        ({"trained_m": True}, "trained_m 0, True"),
        ({"memory_gb": float("inf")}, "memory_gb 0, inf"),
        ({"memory_gb": float("nan")}, "memory_gb 0, nan"),
        ({"figures": 24.4}, "figures 24.4"),
        ({"figures": {"kitti": [24.4, 0.7]}}, "figures 'kitti'"),
        ({"figures": {"kitti": {}}}, "figures 'kitti'"),
        ({"figures": {"kitti": {"maen": [24.4, 0.7]}}}, "figures.kitti 'maen' 'mean'"),
        *(
            ({"figures": {"kitti": {"left": score}}}, f"figures.kitti.left {score}")
            for score in (24.4, [24.4], [24.4, 0.7, 1], [0.7, 24.4], [24.4, 7590], [0, 0.7], [24.4, "0.7"], [True, 0.7])
        ),
    ],
    ids=str,
)
def test_a_printed_line_is_read_strictly(changes: dict[str, Any], words: str) -> None:
    line = {k: v for k, v in {"name": "ours", **changes}.items() if v is not ...}
    (problem,) = problems_of(table(printed=[line]))
    assert problem.startswith("printed line 1")
    assert [word for word in words.split() if word not in problem] == []


def test_lines_of_another_scale_are_not_shown_beside_the_chosen_rows() -> None:
    experiment = load_experiment("table1")
    (x2,) = (row for row in experiment.rows if row.scale == 2)
    assert {line.scale for line in experiment.printed} == {2, 4}
    assert {line.scale for line in experiment.with_rows([x2]).printed} == {2}
    assert "ASteISR x4" not in {line.name for line in experiment.with_rows([x2]).only_printed}
    finetuning = load_experiment("finetuning")
    assert finetuning.with_rows(finetuning.rows[:1]).printed == finetuning.printed


def test_all_problems_are_listed_at_once() -> None:
    changes = {"family": "hta", "weights": 3, "overrides": {"evry": 1}, "training": {"stps": 1, "batch": 0}}
    rows = [
        row_table(**changes, paper={"frozn": "one"}),
        row_table(scale=0, recipe="steroe", training={"sed": 1}),
        3,
    ]
    found = problems_of(table(schema=9, extra=1, row=rows))
    words = (
        "schema",
        "extra",
        "keys of the experiment are",
        "hta",
        "weights",
        "evry",
        "stps",
        "batch",
        "frozn",
        "scale",
        "steroe",
        "sed",
        "another row",
        "3",
    )
    assert [w for w in words if not any(w in p for p in found)] == []
    assert len(found) == len(words)
