"""The ablations at a small scale: the paper's findings as sums of its own figures, and what ours say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ablations
from claims import CLAIMS, COUNTERPARTS, Claim, directions, paper_db, verdict
from lowpeft.paper.experiments import load_experiment
from lowpeft.paper.reproduce.table import FROZEN

RESULTS = Path(ablations.__file__).parent / "results"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.03, 0.02, 0.025), "agrees"),
        ((-0.03, -0.02, -0.025), "differs"),
        ((0.03, -0.02, 0.01), "within the spread"),
        ((-0.03, 0.02, -0.01), "within the spread"),
        ((0.01,), "agrees"),
        ((-0.01,), "differs"),
        ((0.0, 0.0, 0.0), "within the spread"),
    ],
)
def test_a_verdict_needs_more_than_the_spread(values: tuple[float, ...], expected: str) -> None:
    assert verdict(values) == expected


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_hold_in_the_papers_own_figures(name: str) -> None:
    experiment = load_experiment(name)
    found = [paper_db(claim, experiment, COUNTERPARTS.get(name, {})) for claim in CLAIMS[name]]
    assert all(value is None or value > 0 for value in found), found
    assert any(value is not None for value in found)


@pytest.mark.parametrize(
    ("name", "terms", "expected"),
    [
        ("finetuning", {"both": 1, FROZEN: -1}, 0.22),
        ("placement", {"attention": 1, "parallel-both": -1}, 0.04),
        ("count", {"3": 1, "0": -1}, 0.23),
        ("count", {"1": 1, "0": -1}, None),
        ("pretraining", {"bsds-kodak": 1, "frozen, bsds-kodak": -1}, 0.20),
        ("pretraining", {"frozen, kodak": 1, "frozen, bsds": -1}, 0.01),
    ],
)
def test_sums_of_the_papers_figures(name: str, terms: dict[str, int], expected: float | None) -> None:
    assert paper_db(Claim("", terms), load_experiment(name), COUNTERPARTS.get(name, {})) == expected


def test_sums_are_paired_by_seed() -> None:
    def row(name: str, values: list[float]) -> dict[str, object]:
        return {"row": name, "outcomes": [{"figures": {"set": {"PSNR (L+R)/2": value}}} for value in values]}

    results = {
        "rows": [row("attention", [30.0, 31.0]), row("both", [29.9, 30.8]), row("parallel-both", [30.5, 30.5, 30.5])]
    }
    over_a, over_b, _ = directions("placement", load_experiment("placement"), results)
    assert over_a["sets"] == {"set": {"db": [0.1, 0.2], "verdict": "agrees"}}
    assert over_b["sets"] == {"set": {"db": [-0.5, 0.5], "verdict": "within the spread"}}
    assert over_a["paper_db"] == 0.08


@pytest.mark.parametrize("name", CLAIMS)
def test_committed_results_are_of_the_committed_rows(name: str) -> None:
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    experiment = load_experiment(RESULTS.parent / "ablations" / f"{name}.toml")
    rows = {row["row"]: row["outcomes"] for row in results["rows"]}
    assert [row for row in rows if not row.startswith(FROZEN)] == [row.name for row in experiment.rows]
    for row, outcomes in rows.items():
        once = row.startswith(FROZEN) or row in ablations.ONE_SEED
        assert [outcome["seed"] for outcome in outcomes] == ([0] if once else results["seeds"])
    text = ablations.show(name)
    assert all(claim.says in text for claim in CLAIMS[name])
    assert results["command"] in text


def test_middles_of_hr_and_lr_views_are_the_same_place(tmp_path: Path) -> None:
    places = np.stack(np.meshgrid(np.arange(310), np.arange(93)), axis=-1)  # x, y of every LR pixel
    lr = np.concatenate([places % 256, places[..., :1] // 256], axis=-1).astype(np.uint8)
    views = {"lr0.png": lr, "hr0.png": lr.repeat(4, axis=0).repeat(4, axis=1)}
    for name, view in views.items():
        Image.fromarray(view).save(tmp_path / f"whole-{name}")
        ablations.middle(tmp_path / f"whole-{name}", tmp_path / name)
    small, large = (np.asarray(Image.open(tmp_path / name)) for name in views)
    assert small.shape[:2] == (48, 160)
    assert np.array_equal(large[::4, ::4], small)
    assert np.array_equal(small, lr[22:70, 75:235])
