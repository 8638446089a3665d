"""Rows of the tables of methods in the documentation, from the results of three benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cost_figures import cell_of, with_range

RIGHT = 1e-4
"""Above this, merged and unmerged outputs are not those of one network: a cell is printed in bold."""
PEFT_KINDS = ("lora", "dora", "loha", "lokr", "oft", "adalora", "ia3", "vera")
MERGE_HEAD = ("layer", "lowpeft, largest of all kinds", *(f"peft, {kind}" for kind in PEFT_KINDS))
TRAINING_HEAD = (
    "network",
    "recipe",
    "trained",
    "file, kB",
    "loss, first steps",
    "last steps",
    "bf16",
    "step, of full",
    "kept bytes, of full",
)


def merge_rows(results: Any) -> list[list[str]]:
    """One row for each layer: the largest figure of lowpeft's kinds, and each of peft's methods."""
    by_layer: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in results["rows"]:
        by_layer.setdefault(row["layer"], {})[row["kind"]] = row
    return [[layer, _largest(kinds), *(_peft(kinds.get(k)) for k in PEFT_KINDS)] for layer, kinds in by_layer.items()]


def _largest(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    figures = [row[name] for row in kinds.values() for name in row if name.startswith("lowpeft")]
    return f"{max(f for f in figures if isinstance(f, float)):.0e}"


def _peft(row: Mapping[str, Any] | None) -> str:
    found = None if row is None else row.get("peft")
    if isinstance(found, float):
        return f"**{found:.2f}**" if found > RIGHT else f"{found:.0e}"
    return "–" if found in (None, "no such method") else f"**{found}**" if found == "no effect" else "refused or error"


def trap_rows(results: Any) -> list[list[str]]:
    """One row for each trap: lowpeft's figure and peft's."""
    return [[row["trap"], f"{row['lowpeft']:.2g}", _peft_trap(row.get("peft"))] for row in results["traps"]]


def _peft_trap(found: float | str | None) -> str:
    return "–" if found is None else "refused or error" if isinstance(found, str) else f"{found:.2g}"


def training_rows(results: Any, cost: Any) -> list[list[str]]:
    """One row for each network and recipe; on DCTLSA with step time and kept bytes over those of full fine-tuning."""
    full = cell_of(cost, "dctlsa/full fine-tuning/count")
    rows = []
    for name, cell in results["cells"].items():
        if name.endswith("/bf16"):
            continue
        network, recipe = name.split("/")
        if "refused" in cell:
            rows.append([network, f"`{recipe}`", "refused", *["–"] * (len(TRAINING_HEAD) - 3)])
            continue
        counted = cell_of(cost, f"{name}/count")
        times = [c["ratio"] for c in (cell_of(cost, f"{name}/train/{i}") for i in range(5)) if c]
        rows.append(
            [
                network,
                f"`{recipe}`",
                f"{cell['trained']:,}",
                f"{cell['file_bytes'] / 1000:.0f}",
                f"{cell['loss_first']:.4f}",
                f"{cell['loss_last']:.4f}",
                "finite" if f"{name}/bf16" in results["cells"] else "–",
                with_range(times) if times else "–",
                f"{counted['kept_bytes'] / full['kept_bytes']:.3f}" if counted and full else "–",
            ]
        )
    return rows
