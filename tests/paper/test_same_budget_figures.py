"""Tables and plot of methods at one budget, from made-up results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import same_budget_figures as figures
from cells import best_rate, run_cells


@pytest.fixture
def results() -> dict[str, Any]:
    def cell(trained: int, held_out: float, *test: float) -> dict[str, Any]:
        return {"trained": trained, "held_out_db": held_out, "test_db": list(test)}

    cells: dict[str, Any] = {"net/far/frozen": {"held_out_db": 20.0, "test_db": [20.0, 21.0]}}
    cells |= {"net/far/bicubic": {"held_out_db": 19.0, "test_db": [19.0, 20.0]}}
    cells |= {f"net/2%/far/lora/0.001/seed-{seed}": cell(20, 22, 22 + seed / 10, 24 + seed / 10) for seed in range(3)}
    cells["net/2%/far/lora/0.003/seed-0"] = cell(20, 21, 30, 30)  # best on the test images, but chosen on held-out ones
    cells |= {
        f"net/own/far/full/0.001/seed-{seed}": cell(1000, 23, 23 + seed / 10, 25 + seed / 10) for seed in range(3)
    }
    cells |= {"net/5%/far/lora/0.001/seed-0": cell(50, 25, 26, 28), "other/2%/far/lora/0.001/seed-0": cell(9, 9, 9, 9)}
    cells["net/2%/cost"] = {
        "lora": {"mergeable": True, "kept_bytes": 5, "file_bytes": 2000, "step_of_full": 0.7},
        "full": {"mergeable": True, "kept_bytes": 10, "file_bytes": 9000, "step_of_full": 1.0},
        "peft-lora": {"mergeable": True, "kept_bytes": 8, "step_of_full": 0.9},
    }
    return {"cells": cells, "parameters": {"net": 1000}, "tasks": {"far": "noise"}}


def test_rates_are_chosen_on_the_held_out_images(results: dict[str, Any]) -> None:
    best, second = figures.rows_of(results, "net", "2%", "far")
    assert (best.name, best.in_budget, second.name, second.in_budget) == ("full", False, "lora", True)
    assert second.rate == 0.001
    assert list(second.test_db) == [0, 1, 2]
    assert second.by_rate == {0.001: 22, 0.003: 21}


def test_a_row_has_its_spread_and_its_distance_from_the_best(results: dict[str, Any]) -> None:
    rows = figures.task_rows(results, "net", "2%", "far")
    assert rows[1] == ["frozen", "–", "–", "–", "–", "20.500", "+0.000", "–"]
    assert rows[2][:2] == ["`full`", "1,000"]
    assert rows[2][-1] == "-1.000 (-1.000 to -1.000)"  # full fine-tuning is beside the budget
    assert rows[3] == [
        *("`lora`", "20", "2.00 %", "0.001", "3"),
        *("23.100 ± 0.100", "+2.600 ± 0.100", "the best"),
    ]
    assert all(len(row) == len(figures.HEAD) for row in rows)


def test_the_old_task_is_shown_beside_the_new_one(results: dict[str, Any]) -> None:
    def cell(old: float, new: float) -> dict[str, Any]:
        return {"trained": 20, "rate": 0.001, "near": {"test_db": [old] * 2}, "far": {"test_db": [new] * 2}}

    results["cells"] |= {"net/near/frozen": {"test_db": [30.0, 30.0]}}
    results["cells"] |= {f"net/2%/forgetting/{name}/0": cell(old, 25) for name, old in (("lora", 26), ("ssf", 28))}
    results["cells"] |= {"net/2%/forgetting/lora/1": cell(27, 26), "net/5%/forgetting/lora/0": cell(0, 0)}
    assert figures.forgetting_rows(results, "net", "2%") == [
        ["`ssf`", "20", "1", "+4.500", "-2.000"],
        ["`lora`", "20", "2", "+5.000 ± 0.707", "-3.500 ± 0.707"],
    ]
    assert [row.name for row in figures.rows_of(results, "net", "2%", "far")] == ["full", "lora"]


def test_a_row_whose_size_misses_the_budget_is_beside_it(results: dict[str, Any]) -> None:
    for seed in range(3):
        results["cells"][f"net/2%/far/lora/0.001/seed-{seed}"]["trained"] = 24
    rows = figures.task_rows(results, "net", "2%", "far")
    assert [(row[2], row[-1]) for row in rows[2:]] == [("100.00 %, beside", "–"), ("2.40 %, beside", "–")]


def test_other_rates_with_all_seeds_are_shown_as_not_chosen(results: dict[str, Any]) -> None:
    cells = results["cells"]
    cells |= {f"net/2%/far/lora/0.003/seed-{seed}": {**cells["net/2%/far/lora/0.003/seed-0"]} for seed in (1, 2)}
    rows = figures.task_rows(results, "net", "2%", "far")
    assert [row[0] for row in rows[2:]] == ["`lora` at 0.003, not chosen", "`full`", "`lora`"]
    assert rows[4][-1] == "the best"
    assert [row.name for row in figures.rows_of(results, "net", "2%", "far")] == ["full", "lora"]


def test_a_task_that_is_not_measured_yet_has_no_rows(results: dict[str, Any]) -> None:
    assert figures.task_rows(results, "net", "2%", "near") == []


def test_seeds_that_disagree_do_not_resolve_a_difference(results: dict[str, Any]) -> None:
    results["cells"]["net/2%/far/lora/0.001/seed-0"]["test_db"] = [26.0, 27.0]
    best, second = figures.rows_of(results, "net", "2%", "far")
    assert figures.behind(second, best).endswith("not resolved")


def test_pairs_that_are_not_told_apart_are_named(results: dict[str, Any]) -> None:
    assert figures.unresolved(results, "net", "2%", "far") == ""
    assert figures.unresolved(results, "net", "2%", "near") == ""  # nothing is measured there yet
    results["cells"]["net/2%/far/lora/0.001/seed-0"]["test_db"] = [26.0, 27.0]
    assert figures.unresolved(results, "net", "2%", "far") == (
        "Not told from the frozen network (the 95 % interval of the difference contains 0): `lora`. "
        "No two rows are told apart."
    )
    results["cells"] |= {
        f"net/2%/far/ia3/0.001/seed-{seed}": {"trained": 20, "held_out_db": 1, "test_db": [1 + seed / 9]}
        for seed in range(3)
    }
    assert figures.unresolved(results, "net", "2%", "far").endswith(
        "Not told from some rows below them (the interval contains 0): `lora` from `full`."
    )
    for seed in range(3):
        results["cells"][f"net/2%/far/ia3/0.001/seed-{seed}"]["test_db"] = [23 + seed / 10]
    assert figures.unresolved(results, "net", "2%", "far").endswith(
        "Only these rows are told from some below them: `full` from `ia3`."
    )


def test_a_seed_that_diverged_is_not_counted(results: dict[str, Any]) -> None:
    results["cells"]["net/2%/far/lora/0.001/seed-2"] = {"diverged": "nan", "held_out_db": 0.0}
    rows = figures.task_rows(results, "net", "2%", "far")
    assert rows[3][4:6] == ["2 of 3, the others diverged", "23.050 ± 0.071"]


def test_what_other_rates_lose_and_what_a_row_costs(results: dict[str, Any]) -> None:
    assert figures.rate_rows(results, "net", "2%", ["far"]) == [
        ["`full`", "**0.001** ()"],
        ["`lora`", "**0.001** (0.003: 1.000)"],
    ]
    rows = figures.cost_rows(results, "net", "2%")
    assert rows[0] == ["`lora`", "yes", "0.50", "0.70", "2"]
    assert rows[2] == ["`peft-lora`", "yes", "0.80", "0.90", "–"]


def test_the_plot_is_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    figures.draw(results, "net", "2%", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("figures", "slower", "best", "tried"),
    [
        ({1e-3: 1.0, 3e-3: 2.0, 1e-2: 1.5}, 0, 3e-3, {1e-3, 3e-3, 1e-2}),
        ({1e-3: 1.0, 3e-3: 2.0, 1e-2: 3.0, 3e-2: 4.0, 1e-1: 3.5}, 0, 3e-2, {1e-3, 3e-3, 1e-2, 3e-2, 1e-1}),
        ({1e-5: 1.0, 3e-5: 2.0, 1e-4: 1.5, 1e-3: 9.0}, 4, 3e-5, {1e-5, 3e-5, 1e-4}),
        ({1e-6: 3.0, 3e-6: 2.0, 1e-5: 1.0}, 6, 1e-6, {1e-6, 3e-6, 1e-5}),  # the lowest there is
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.2}, 0, 1e-3, {1e-3, 3e-3, 1e-2}),  # none is better than no training
        ({1e-3: 0.1, 3e-3: 0.2, 1e-2: 0.3, 3e-2: 0.2}, 0, 1e-2, {1e-3, 3e-3, 1e-2, 3e-2}),
    ],
)
def test_rates_are_tried_until_the_best_has_a_worse_one_on_either_side(
    figures: dict[float, float], slower: int, best: float, tried: set[float]
) -> None:
    found: dict[float, float] = {}

    def run(rates: Sequence[float]) -> None:
        found.update({rate: figures[rate] for rate in rates})

    assert best_rate(1e-3, run, lambda: found, slower=slower, untrained=0.5) == best
    assert found.keys() == tried


def test_the_search_goes_down_from_rates_that_all_diverged() -> None:
    found: dict[float, float] = {}

    def run(rates: Sequence[float]) -> None:
        found.update({rate: 22.0 if rate < 1e-3 else 0.0 for rate in rates})

    assert best_rate(1e-3, run, lambda: found, untrained=16.0) == 3e-4


def test_cells_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    out, ran = tmp_path / "out.json", []

    def run(name: str) -> dict[str, object]:
        ran.append(name)
        return {}

    head = {"device": "cpu, 1 threads", "steps": 200, "settings": {"batch": 2, "betas": (0.9, 0.99)}}
    run_cells(out, head, ["a"], run)
    run_cells(out, head | {"device": "cpu, 4 threads"}, ["a", "b"], run)
    for other in ({"steps": 300}, {"device": "cuda, 1 threads"}, {"settings": {"batch": 4, "betas": (0.9, 0.99)}}):
        with pytest.raises(SystemExit, match=r"out\.json has cells of .*: give another file as --out"):
            run_cells(out, head | other, ["c"], run)
    assert ran == ["a", "b"]
