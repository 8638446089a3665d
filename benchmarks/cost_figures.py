"""Tables and the plot of what cost.py and cost_cuda.py measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cells import SKIPPED
from common import save_figure

MB, GFLOP = 10**6, 10**9
REFERENCE = "full fine-tuning"
NOTHING = "–"

Cells = Mapping[str, Mapping[str, Any]]


def cell_of(results: Any, name: str) -> Mapping[str, Any] | None:
    """A finished cell; None where there is none, or it was skipped."""
    cell = results["cells"].get(name)
    return None if cell is None or SKIPPED in cell else cell


def reasons(results: Any) -> dict[str, list[str]]:
    """The rows that could not be had, by network and reason: the keys are `NETWORK: REASON`."""
    found: dict[str, list[str]] = {}
    for name, cell in results["cells"].items():
        network, row, *_ = name.split("/")
        if SKIPPED in cell:
            found.setdefault(f"{results['networks'][network]}: {cell[SKIPPED]}", []).append(row)
    return found


def ratios(results: Any, network: str, row: str, part: str) -> list[float]:
    """A row's ratios to the reference, of every round."""
    pattern = re.compile(rf"{re.escape(network)}/{re.escape(row)}/{part}/\d+")
    return [cell["ratio"] for name, cell in results["cells"].items() if pattern.fullmatch(name)]


def with_range(values: Sequence[float]) -> str:
    """Median, with the least and the most."""
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else NOTHING


def networks_with(results: Any, part: str) -> list[str]:
    """Names of the networks that have cells of a part, in the order of the benchmark."""
    found = {name.split("/")[0] for name in results["cells"] if name.split("/")[2] == part}
    return [name for name in results["networks"] if name in found]


def memory_rows(results: Any, network: str) -> list[list[str]]:
    """Of every row that trains: parameters, bytes kept and at the peak, FLOPs, state of AdamW."""
    whole = cell_of(results, f"{network}/{REFERENCE}/count")
    found = []
    for row in results["rows"]:
        cell = cell_of(results, f"{network}/{row}/count")
        if cell is None or whole is None or "kept_bytes" not in cell:
            continue
        line = [row, f"{cell['trained']:,}"]
        for key, unit in (("kept_bytes", MB), ("peak_bytes", MB), ("step_flops", GFLOP)):
            line += [f"{cell[key] / unit:,.1f}", f"{cell[key] / whole[key]:.3f}"]
        found.append([*line, f"{cell['optimizer_bytes'] / MB:.2f}"])
    return found


MEMORY_HEAD = ["row", "trained", "kept, MB", "of full", "peak, MB", "of full", "GFLOP", "of full", "AdamW, MB"]


def time_rows(results: Any, part: str) -> list[list[str]]:
    """Of every row: its time by the reference's, on every network that was timed."""
    networks, found = networks_with(results, part), []
    for row in results["rows"]:
        values = [with_range(ratios(results, network, row, part)) for network in networks]
        if any(value != NOTHING for value in values):
            found.append([row, *values])
    return found


def time_head(results: Any, part: str) -> list[str]:
    return ["row", *(results["networks"][network] for network in networks_with(results, part))]


def attention_rows(results: Any) -> list[list[str]]:
    """Of every shape of attention on a CUDA device: kernels, peak bytes and time."""
    found = []
    for name, cell in results["cells"].items():
        if name.startswith("attention/"):
            kernels = ", ".join(f"`{kernel.removeprefix('_scaled_dot_product_')}`" for kernel in cell["kernels"])
            figures = [f"{cell['peak_bytes'] / MB:,.1f}", f"{1000 * cell['seconds']:.3f}"]
            found.append([name.split("/")[1], kernels, *figures])
    return found


# --- The plot
def points(results: Any, network: str) -> dict[str, tuple[float, float]]:
    """Of every row with both: the peak bytes and the median time of a step, both by those of full fine-tuning."""
    whole = cell_of(results, f"{network}/{REFERENCE}/count")
    found = {}
    for row in results["rows"]:
        counted = row.removesuffix(", channels_last")  # a layout changes no count
        cell, times = cell_of(results, f"{network}/{counted}/count"), ratios(results, network, row, "train")
        if whole and cell and times:
            found[row] = cell["peak_bytes"] / whole["peak_bytes"], median(times)
    return found


def draw(results: Path, out: Path) -> None:
    """Draw time over memory of a step, one panel for each network that was timed, into a PNG file."""
    from matplotlib.figure import Figure

    found = json.loads(results.read_text(encoding="utf-8"))
    networks = networks_with(found, "train")
    figure = Figure(figsize=(10, 4.2 * ((len(networks) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(networks) + 1) // 2, 2, squeeze=False).ravel()
    colours = ["tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan"]
    drawn = [row for network in networks for row in points(found, network)]
    recipes = list(dict.fromkeys(row.split(", ")[0] for row in drawn))
    marks = {"keep": "s", "rebuild": "^", "checkpoint": "v"}
    for axes, network in zip(panels, networks, strict=False):
        for row, (memory, seconds) in points(found, network).items():
            recipe, *more = row.split(", ")
            mark = next((marks[word] for word in more if word in marks), "o")
            fill = "none" if "channels_last" in more else "full"
            colour = colours[recipes.index(recipe) % len(colours)]
            axes.plot([memory], [seconds], linestyle="none", marker=mark, fillstyle=fill, color=colour)
        axes.set(title=found["networks"][network], xlabel="peak memory, of full", ylabel="time of a step, of full")
        axes.set(xlim=(0, None), ylim=(0, None))
    for axes in panels[len(networks) :]:
        axes.set_axis_off()
    figure.legend(handles=_legend(recipes, colours, marks), loc="outside lower center", ncols=5, fontsize="small")
    save_figure(figure, out)


def _legend(recipes: Sequence[str], colours: Sequence[str], marks: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    plain = {"linestyle": "none", "marker": "o"}
    found = [Line2D([], [], **plain, color=colours[i % len(colours)], label=r) for i, r in enumerate(recipes)]
    found += [Line2D([], [], linestyle="none", marker=m, color="0.4", label=word) for word, m in marks.items()]
    return [*found, Line2D([], [], **plain, fillstyle="none", color="0.4", label="channels_last")]
