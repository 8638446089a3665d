"""Figures and tables from the results of `benchmarks/evidence.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASELINES = ("bicubic", "frozen")


def held_out_by_rate(cells: Mapping[str, Any], row: str) -> dict[float, float]:
    """PSNR in dB on the held-out pairs by learning rate, of a row TASK/ROW."""
    prefix = f"{row}/rate-"
    return {float(k.removeprefix(prefix)): cell["held_out_db"] for k, cell in cells.items() if k.startswith(prefix)}
