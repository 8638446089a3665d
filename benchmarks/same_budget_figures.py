"""Tables and the plot of what `benchmarks/methods.py` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cells import DIVERGED
from claims import with_spread
from common import save_figure
from lowpeft.core.planning.budget import MET
from lowpeft.recipes.budget import parameters_of
from lowpeft.restoration.evaluation.difference import interval

OLD, NEW = "near", "far"
"""Names of the task that the network was trained for, and of the one that is new to it."""

UNTRAINED = ("bicubic", "frozen")
OWN_SIZE = "own"
"""In place of the budget of a row that has no size to choose."""

HEAD = ("row", "trained", "of the network", "rate", "seeds", "PSNR, dB", "over frozen", "behind the best of the budget")
FORGETTING_HEAD = ("row", "trained", "seeds", "new task, over frozen", "old task, over frozen")
COST_HEAD = ("row", "mergeable", "kept bytes, of full", "forward and backward, of full", "file, kB")


@dataclass(frozen=True)
class RowFigures:
    """A row on a task, with the learning rate that was best on the held-out images.

    Attributes:
        name: Name of the row.
        in_budget: Whether `trained` is the budget, as `lowpeft plan` sees it; other rows are points beside it.
        trained: Number of trained parameters.
        rate: The learning rate.
        chosen: Whether the first seed chose that rate.
        held_out_db: Mean PSNR in dB on the held-out images, over the seeds.
        test_db: PSNR in dB of every test image, by seed.
        by_rate: PSNR in dB on the held-out images by learning rate, of the first seed.
        diverged: Number of seeds that diverged; they have no figure.
    """

    name: str
    in_budget: bool
    trained: int
    rate: float
    chosen: bool
    held_out_db: float
    test_db: Mapping[int, Sequence[float]]
    by_rate: Mapping[float, float]
    diverged: int = 0

    @property
    def title(self) -> str:
        """How tables name the row."""
        return f"`{self.name}`" if self.chosen else f"`{self.name}` at {self.rate:g}"

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


def rows_of(
    results: Mapping[str, Any], network: str, budget: str, task: str, *, chosen: bool = True
) -> list[RowFigures]:
    """The rows of a table that were trained, best first.

    Args:
        results: What the results file has.
        network: Name of the network.
        budget: The budget.
        task: Name of the task.
        chosen: True for every row at the rate that the first seed chose; False for rows at other rates that several
            seeds were run with.
    """
    allowed = parameters_of(budget, results["parameters"][network])
    found = []
    for prefix in dict.fromkeys(name.rsplit("/", 2)[0] for name in results["cells"] if "/seed-" in name):
        of, size, on, name = prefix.split("/")
        if (of, on) != (network, task) or size not in (budget, OWN_SIZE):
            continue
        cells = _cells_of(results["cells"], prefix)
        first = min(seed for _, seed in cells)
        by_rate = held_out_by_rate(results["cells"], prefix, first)
        best = max(by_rate, key=by_rate.__getitem__)
        for rate in {best} if chosen else {rate for rate, seed in cells if seed != first} - {best}:
            run = {seed: cell for (r, seed), cell in sorted(cells.items()) if r == rate}
            if done := {seed: cell for seed, cell in run.items() if DIVERGED not in cell}:
                trained = done[min(done)]["trained"]
                in_budget = abs(trained - allowed) <= MET * allowed
                held_out = fmean(cell["held_out_db"] for cell in done.values())
                test_db = {seed: cell["test_db"] for seed, cell in done.items()}
                diverged = len(run) - len(done)
                row = RowFigures(name, in_budget, trained, rate, chosen, held_out, test_db, by_rate, diverged)
                found.append(row)
    return sorted(found, key=_mean, reverse=True)


def all_rows_of(results: Mapping[str, Any], network: str, budget: str, task: str) -> list[RowFigures]:
    """The rows of a table at the rates that were chosen, and at others that several seeds were run with; best first."""
    both = [row for chosen in (True, False) for row in rows_of(results, network, budget, task, chosen=chosen)]
    return sorted(both, key=_mean, reverse=True)


def _mean(row: RowFigures) -> float:
    return fmean(row.means.values())


def task_rows(results: Mapping[str, Any], network: str, budget: str, task: str) -> list[list[str]]:
    """One row for each method: what it trains, its PSNR with its spread, how far it is behind the best of the budget.

    Empty as long as bicubic and the frozen network were not measured. The interval of the last column is that of the
    differences of seeds, paired, by Student's t; where it contains 0 these runs do not tell which row is better. The
    best of the budget is the row within it that is best on the held-out images, by the mean of its seeds.
    """
    rows = all_rows_of(results, network, budget, task)
    if not all(f"{network}/{task}/{name}" in results["cells"] for name in UNTRAINED):
        return []
    frozen = fmean(results["cells"][f"{network}/{task}/frozen"]["test_db"])
    lines = [[name, "–", "–", "–", "–", *_untrained(results, network, task, name), "–"] for name in UNTRAINED]
    in_budget = [row for row in rows if row.in_budget and row.chosen]
    best = max(in_budget, key=lambda row: row.held_out_db, default=None)
    for row in rows:
        means = row.means
        share = f"{100 * row.trained / results['parameters'][network]:.2f} %" + ", beside" * (not row.in_budget)
        first = [row.title + ", not chosen" * (not row.chosen), f"{row.trained:,}", share, f"{row.rate:g}", _seeds(row)]
        over = [value - frozen for value in means.values()]
        lines.append([*first, with_spread([*means.values()]), with_spread(over, sign="+"), behind(row, best)])
    return lines


def _seeds(row: RowFigures) -> str:
    """How many seeds a row has, and how many of them diverged."""
    done = len(row.test_db)
    return f"{done} of {done + row.diverged}, the others diverged" if row.diverged else str(done)


def _untrained(results: Mapping[str, Any], network: str, task: str, name: str) -> list[str]:
    values = [fmean(results["cells"][f"{network}/{task}/{each}"]["test_db"]) for each in (name, "frozen")]
    return [f"{values[0]:.3f}", f"{values[0] - values[1]:+.3f}"]


def behind(row: RowFigures, best: RowFigures | None) -> str:
    """How far a row is behind another one: the mean difference, with its 95 % interval over the seeds of both."""
    if best is None or not (differences := differences_of(best, row)):
        return "–"
    if row == best:
        return "the best"
    limits = interval(differences)
    if limits is None:
        return f"{fmean(differences):.3f}"
    words = "" if _without_0(limits) else ", not resolved"
    return f"{fmean(differences):.3f} ({limits[0]:.3f} to {limits[1]:.3f}){words}"


def differences_of(row: RowFigures, other: RowFigures) -> list[float]:
    """Mean PSNR in dB of a row less that of another one, by the seeds that both have."""
    return [row.means[seed] - other.means[seed] for seed in sorted(row.means.keys() & other.means.keys())]


def resolved(differences: Sequence[float]) -> bool:
    """Whether the 95 % interval of differences over seeds, by Student's t, leaves out 0."""
    limits = interval(differences)
    return limits is not None and _without_0(limits)


def _without_0(limits: tuple[float, float]) -> bool:
    return not limits[0] <= 0 <= limits[1]


def unresolved(results: Mapping[str, Any], network: str, budget: str, task: str) -> str:
    """Sentences that name the rows that their seeds do not tell from the frozen network, and the pairs of rows that
    they do not tell apart, or do, whichever are fewer.

    Empty before there are seeds.
    """
    rows = [row for row in all_rows_of(results, network, budget, task) if len(row.means) > 1]
    if not rows:
        return ""
    frozen = fmean(results["cells"][f"{network}/{task}/frozen"]["test_db"])
    at_frozen = [row.title for row in rows if not resolved([mean - frozen for mean in row.means.values()])]
    pairs = {
        (row.title, other.title): resolved(differences)
        for place, row in enumerate(rows)
        for other in rows[place + 1 :]
        if len(differences := differences_of(row, other)) > 1
    }
    told = [pair for pair, apart in pairs.items() if apart]
    untold = [pair for pair, apart in pairs.items() if not apart]
    sentences = []
    if at_frozen:
        named = "every row" if len(at_frozen) == len(rows) else ", ".join(at_frozen)
        sentences.append(f"Not told from the frozen network (the 95 % interval of the difference contains 0): {named}.")
    if untold and not told:
        sentences.append("No two rows are told apart.")
    elif len(told) < len(untold):
        sentences.append(f"Only these rows are told from some below them: {_by_first(told)}.")
    elif untold:
        sentences.append(f"Not told from some rows below them (the interval contains 0): {_by_first(untold)}.")
    return " ".join(sentences)


def _by_first(pairs: Sequence[tuple[str, str]]) -> str:
    """Pairs of names, as each first name with the second ones of its pairs."""
    by_first: dict[str, list[str]] = {}
    for first, second in pairs:
        by_first.setdefault(first, []).append(second)
    return "; ".join(f"{first} from {', '.join(seconds)}" for first, seconds in by_first.items())


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
    losses = ", ".join(f"{rate:g}: {best - db:.3f}" if db else f"{rate:g}: diverged" for rate, db in others)
    return f"**{row.rate:g}** ({losses})"


def forgetting_rows(results: Mapping[str, Any], network: str, budget: str) -> list[list[str]]:
    """One row for each method that was trained on the new task: what it gives there, and on the old one, best there."""
    prefix = f"{network}/{budget}/forgetting/"
    by_row: dict[str, list[Any]] = {}
    for key, cell in results["cells"].items():
        if key.startswith(prefix):
            by_row.setdefault(key.removeprefix(prefix).partition("/")[0], []).append(cell)

    def over_frozen(cells: Sequence[Any], task: str) -> list[float]:
        before = fmean(results["cells"][f"{network}/{task}/frozen"]["test_db"])
        return [fmean(cell[task]["test_db"]) - before for cell in cells]

    lines = []
    for name, cells in sorted(by_row.items(), key=lambda item: -fmean(over_frozen(item[1], OLD))):
        gains = [with_spread(over_frozen(cells, task), sign="+") for task in (NEW, OLD)]
        lines.append([f"`{name}`", f"{cells[0]['trained']:,}", str(len(cells)), *gains])
    return lines


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
    if not tasks:
        raise SystemExit(f"nothing to draw yet of {network} and a budget of {budget}")
    most = max(len(rows_of(results, network, budget, task)) for task in tasks)
    figure = Figure(figsize=(5 * len(tasks), 1 + 0.25 * most), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        bicubic, frozen = (fmean(results["cells"][f"{network}/{task}/{name}"]["test_db"]) for name in UNTRAINED)
        rows = rows_of(results, network, budget, task)[::-1]
        for place, row in enumerate(rows):
            over = [value - frozen for value in row.means.values()]
            spread = stdev(over) if len(over) > 1 else 0
            colour = "tab:blue" if row.in_budget else "tab:orange"
            axes.errorbar(fmean(over), place, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2)
        axes.axvline(0, color="0.5", linewidth=0.8)
        if bicubic > frozen:  # else it is far to the left
            axes.axvline(bicubic - frozen, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), labels=[f"{row.name}, {row.trained:,}" for row in rows], fontsize=8)
        axes.set(xlabel="dB over the frozen network", title=task)
        axes.grid(color="0.92")
    figure.supxlabel(
        f"blue: {budget} of the parameters; orange: other sizes; bars: standard deviation over seeds; dotted: bicubic",
        fontsize=9,
    )
    save_figure(figure, out)
