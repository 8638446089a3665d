"""Tables and plot of what the cost benchmarks write, from a made-up results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cost_figures
from cost_figures import REFERENCE


@pytest.fixture
def results() -> dict[str, Any]:
    full = {"trained": 10, "kept_bytes": 4e6, "peak_bytes": 5e6, "step_flops": 3e9, "optimizer_bytes": 80}
    half = {key: value / 2 for key, value in full.items()} | {"trained": 5}
    cells: dict[str, Any] = {f"net/{REFERENCE}/count": full, "net/stereo, keep/count": half}
    cells |= {"net/odd/count": {"skipped": "does not fit"}, "net/stock/count": {"trained": 0}}
    cells |= {f"net/{REFERENCE}/train/{i}": {"ratio": 1.0} for i in range(3)}
    cells |= {f"net/stereo, keep/train/{i}": {"ratio": ratio} for i, ratio in enumerate((0.5, 0.7, 0.6))}
    cells["attention/w, head size 30/kernel"] = {"kernels": {"math": 1}, "peak_bytes": 2e6, "seconds": 0.001}
    return {"networks": {"net": "A network"}, "rows": ["stock", REFERENCE, "odd", "stereo, keep"], "cells": cells}


def test_shares_are_of_full_fine_tuning(results: dict[str, Any]) -> None:
    rows = cost_figures.memory_rows(results, "net")
    assert [row[0] for row in rows] == [REFERENCE, "stereo, keep"]
    assert rows[1][1:] == ["5", "2.0", "0.500", "2.5", "0.500", "1.5", "0.500", "0.00"]
    assert len(rows[1]) == len(cost_figures.MEMORY_HEAD)


def test_times_are_medians_of_ratios(results: dict[str, Any]) -> None:
    assert cost_figures.time_head(results, "train") == ["row", "A network"]
    assert cost_figures.time_rows(results, "train")[1] == ["stereo, keep", "0.60 (0.50–0.70)"]
    assert cost_figures.points(results, "net")["stereo, keep"] == (0.5, 0.6)


def test_what_was_skipped_has_its_reason(results: dict[str, Any]) -> None:
    assert cost_figures.reasons(results) == {"A network: does not fit": ["odd"]}
    assert cost_figures.attention_rows(results) == [["w, head size 30", "`math`", "2.0", "1.000"]]


def test_the_plot_is_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(json.dumps(results))
    cost_figures.draw(tmp_path / "cost.json", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
