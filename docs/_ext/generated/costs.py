"""What training, inference and switching cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cost_figures import MEMORY_HEAD, attention_rows, memory_rows, networks_with, reasons, time_head, time_rows

from .base import results_of, table


def cost_memory(results: Any) -> str:
    """A table of bytes and FLOPs for each network, and the rows that could not be had."""
    parts = [
        f"**{results['networks'][network]}**\n\n{table(MEMORY_HEAD, memory_rows(results, network))}"
        for network in networks_with(results, "count")
        if memory_rows(results, network)
    ]
    left_out = "\n".join(f"* {reason} ({', '.join(rows)})" for reason, rows in reasons(results).items())
    return "\n\n".join([*parts, *([f"Not measured:\n\n{left_out}"] if left_out else [])])


def cost_times(part: str) -> Callable[[Any], str]:
    return lambda results: table(time_head(results, part), time_rows(results, part))


def cost_attention(results: Any) -> str:
    return table(["attention", "kernels", "peak, MB", "ms, forward and backward"], attention_rows(results))


def switches() -> str:
    """The costs of settings per call, from the results of benchmarks/switches.py."""
    found = results_of("switches")
    forward, at_once = found["forward"], found["at_once_ten_minutes"]
    runs = [run for run in at_once.values() if isinstance(run, dict)]
    places = [call["interrupted"] for call in found["interruptions"].values()]
    between = sum(call["left between"] for call in found["interruptions"].values())
    rows = [[f"one switch: `{name}`", f"{value} µs"] for name, value in found["switch_microseconds"].items()]
    rows += [[name, f"{forward[name]:.3f}"] for name in forward if " over " in name]
    rows += [[f"graphs compiled: {name}", str(value)] for name, value in found["graphs_compiled"].items()]
    wrong, results = (sum(run[what] for run in runs) for what in ("wrong", "results"))
    beside = "threads that plan, check, adapt, load, rename, delete and restore"
    rows += [
        [
            f"{at_once['minutes']:g} minutes of calls beside {beside}",
            f"{wrong} of {results:,} results differ from serial",
        ],
        [
            f"{sum(places):,} interruptions of {len(places)} calls",
            f"{between} left the network between before and after",
        ],
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    source = f"`{found['command']}`, {found['date']}, {found['device']}, {versions}. Ratios of {forward['network']}."
    return table(["what", "measured"], rows) + f"\n\n{source}"
