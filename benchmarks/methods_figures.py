"""Figures and tables from the results of `benchmarks/methods.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNTRAINED = ("bicubic", "frozen")
OWN_SIZE = "own"
"""In place of the budget of a row that has no size to choose."""


def held_out_by_rate(cells: Mapping[str, Any], row: str, seed: int) -> dict[float, float]:
    """PSNR in dB on the held-out training images by learning rate, of a row and a seed.

    Args:
        cells: Cells of the results by name.
        row: NETWORK/BUDGET/TASK/ROW.
        seed: The seed.
    """
    parts = {name: name.rsplit("/", 2) for name in cells}
    return {
        float(rate): cells[name]["held_out_db"]
        for name, (of, rate, *seeds) in parts.items()
        if of == row and seeds == [f"seed-{seed}"]
    }
