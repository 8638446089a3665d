"""Tables and the plot of what `benchmarks/methods.py` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from claims import with_spread
from common import DIVERGED, save_figure
from lowpeft.restoration.evaluation.difference import interval

UNTRAINED = ("bicubic", "frozen")
OWN_SIZE = "own"
"""In place of the budget of a row that has no size to choose."""

HEAD = ("row", "trained", "of the network", "rate", "seeds", "PSNR, dB", "over frozen", "behind the best of the budget")
COST_HEAD = ("row", "mergeable", "kept bytes, of full", "forward and backward, of full", "file, kB")


@dataclass(frozen=True)
class RowFigures:
    """A row on a task, with the learning rate that was best on the held-out images.

    Attributes:
        name: Name of the row.
        sized: False for a row of a size of its own, beside the budget.
        trained: Number of trained parameters.
        rate: The learning rate.
        test_db: PSNR in dB of every test image, by seed.
        by_rate: PSNR in dB on the held-out images by learning rate, of the first seed.
    """

    name: str
    sized: bool
    trained: int
    rate: float
    test_db: Mapping[int, Sequence[float]]
    by_rate: Mapping[float, float]

    @property
    def means(self) -> dict[int, float]:
        """Mean PSNR in dB over the test images, by seed."""
        return {seed: fmean(values) for seed, values in self.test_db.items()}


def held_out_by_rate(cells: Mapping[str, Any], row: str, seed: int) -> dict[float, float]:
    """PSNR in dB on the held-out training images by learning rate, of a row and a seed.

    Args:
        cells: Cells of the results by name.
        row: NETWORK/BUDGET/TASK/ROW.
        seed: The seed.
    """
    return {rate: cell["held_out_db"] for (rate, of), cell in _cells_of(cells, row).items() if of == seed}


def _cells_of(cells: Mapping[str, Any], row: str) -> dict[tuple[float, int], Any]:
    """Cells of a row NETWORK/BUDGET/TASK/ROW by rate and seed."""
    found = {}
    for name, cell in cells.items():
        of, *rest = name.rsplit("/", 2)
        if of == row and len(rest) == 2 and rest[1].startswith("seed-"):
            found[float(rest[0]), int(rest[1].removeprefix("seed-"))] = cell
    return found


def rows_of(results: Mapping[str, Any], network: str, budget: str, task: str) -> list[RowFigures]:
    """The rows of a table that were trained, best first."""
    found = []
    for prefix in dict.fromkeys(name.rsplit("/", 2)[0] for name in results["cells"] if "/seed-" in name):
        of, size, on, name = prefix.split("/")
        if (of, on) != (network, task) or size not in (budget, OWN_SIZE):
            continue
        cells = _cells_of(results["cells"], prefix)
        first = min(seed for _, seed in cells)
        by_rate = held_out_by_rate(results["cells"], prefix, first)
        rate = max(by_rate, key=by_rate.__getitem__)
        chosen = {seed: cell for (r, seed), cell in sorted(cells.items()) if r == rate}
        figures = {seed: cell["test_db"] for seed, cell in chosen.items() if DIVERGED not in cell}
        if not figures:
            continue
        found.append(RowFigures(name, size != OWN_SIZE, chosen[min(figures)]["trained"], rate, figures, by_rate))
    return sorted(found, key=lambda row: -fmean(row.means.values()))


def task_rows(results: Mapping[str, Any], network: str, budget: str, task: str) -> list[list[str]]:
    """One row for each method: what it trains, its PSNR with its spread, how far it is behind the best of the budget.

    Empty as long as bicubic and the frozen network were not measured. The interval of the last column is that of the
    differences of seeds, paired, by Student's t; where it contains 0 these runs do not tell which row is better.
    """
    rows = rows_of(results, network, budget, task)
    if not all(f"{network}/{task}/{name}" in results["cells"] for name in UNTRAINED):
        return []
    frozen = fmean(results["cells"][f"{network}/{task}/frozen"]["test_db"])
    lines = [[name, "–", "–", "–", "–", *_untrained(results, network, task, name), "–"] for name in UNTRAINED]
    best = next((row for row in rows if row.sized), None)
    for row in rows:
        means = row.means
        share = f"{100 * row.trained / results['parameters'][network]:.2f} %"
        first = [f"`{row.name}`", f"{row.trained:,}", share, f"{row.rate:g}", str(len(means))]
        over = [value - frozen for value in means.values()]
        lines.append([*first, with_spread([*means.values()]), with_spread(over, sign="+"), behind(row, best)])
    return lines


def _untrained(results: Mapping[str, Any], network: str, task: str, name: str) -> list[str]:
    values = [fmean(results["cells"][f"{network}/{task}/{each}"]["test_db"]) for each in (name, "frozen")]
    return [f"{values[0]:.3f}", f"{values[0] - values[1]:+.3f}"]


def behind(row: RowFigures, best: RowFigures | None) -> str:
    """How far a row is behind another one: the mean difference, with its 95 % interval over the seeds of both."""
    if best is None:
        return "–"
    if row.name == best.name:
        return "the best"
    seeds = row.means.keys() & best.means.keys()
    differences = [best.means[seed] - row.means[seed] for seed in sorted(seeds)]
    limits = interval(differences)
    if limits is None:
        return f"{fmean(differences):.3f}"
    words = ", not resolved" if limits[0] <= 0 <= limits[1] else ""
    return f"{fmean(differences):.3f} ({limits[0]:.3f} to {limits[1]:.3f}){words}"


def rate_rows(results: Mapping[str, Any], network: str, budget: str, tasks: Sequence[str]) -> list[list[str]]:
    """One row for each method: on each task the best learning rate, and what the rates beside it lose."""
    by_task = {task: {row.name: row for row in rows_of(results, network, budget, task)} for task in tasks}
    names = dict.fromkeys(name for rows in by_task.values() for name in rows)
    return [[f"`{name}`", *(_rates(rows.get(name)) for rows in by_task.values())] for name in names]


def _rates(row: RowFigures | None) -> str:
    if row is None:
        return "–"
    best = row.by_rate[row.rate]
    others = sorted((rate, db) for rate, db in row.by_rate.items() if rate != row.rate)
    losses = ", ".join(f"{rate:g}: {db - best:.2f}" if db else f"{rate:g}: diverged" for rate, db in others)
    return f"**{row.rate:g}** ({losses})"


def cost_rows(results: Mapping[str, Any], network: str, budget: str) -> list[list[str]]:
    """One row for each method: what it costs to train it and to keep it."""
    cell = results["cells"].get(f"{network}/{budget}/cost", {})
    found = []
    for name, cost in cell.items():
        size = f"{cost['file_bytes'] / 1000:,.0f}" if "file_bytes" in cost else "–"
        kept = f"{cost['kept_bytes'] / cell['full']['kept_bytes']:.2f}"
        found.append([f"`{name}`", "yes" if cost["mergeable"] else "no", kept, f"{cost['step_of_full']:.2f}", size])
    return found


def draw(results: Mapping[str, Any], network: str, budget: str, out: Path) -> None:
    """Draw the gain of each row over the frozen network, one panel for each task, into a PNG file."""
    from matplotlib.figure import Figure

    tasks = [task for task in results["tasks"] if rows_of(results, network, budget, task)]
    most = max(len(rows_of(results, network, budget, task)) for task in tasks)
    figure = Figure(figsize=(5 * len(tasks), 1 + 0.25 * most), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        frozen = fmean(results["cells"][f"{network}/{task}/frozen"]["test_db"])
        rows = rows_of(results, network, budget, task)[::-1]
        for place, row in enumerate(rows):
            over = [value - frozen for value in row.means.values()]
            spread = stdev(over) if len(over) > 1 else 0
            colour = "tab:blue" if row.sized else "tab:orange"
            axes.errorbar(fmean(over), place, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_yticks(range(len(rows)), labels=[f"{row.name}, {row.trained:,}" for row in rows], fontsize=8)
        axes.set(xlabel=f"dB over frozen (blue: {budget} of the parameters)", title=task)
        axes.grid(color="0.92")
    save_figure(figure, out)
