"""Plain-text view of an experiment's table as the paper prints it."""

from __future__ import annotations

from ... import tables
from ...tables import NOTHING
from .experiment import Experiment
from .printed import COSTS, VIEWS, Printed

COST_HEADS = dict(zip(COSTS, ("trained, M", "hours", "memory, GB"), strict=True))


def paper_table(experiment: Experiment) -> list[list[str]]:
    """Return the paper's lines as cells, the header first.

    Columns: name, costs, number of parameters that lowpeft trains in the row of this line, scores, and that row.
    """
    lines = experiment.printed
    costs = [key for key in COSTS if any(getattr(line, key) is not None for line in lines)]
    scores = [
        (name, view)
        for view in VIEWS
        for name in experiment.test_sets
        if any(getattr(line.on(name), view) is not None for line in lines)
    ]
    header = ["printed line", *(COST_HEADS[key] for key in costs), "lowpeft trains"]
    table = [[*header, *(f"{name}, {view}" for name, view in scores), "row"]]
    for line in lines:
        cells = [line.name, *(amount(getattr(line, key)) for key in costs), _trained(experiment, line)]
        printed = [getattr(line.on(name), view) or NOTHING for name, view in scores]
        table.append([*cells, *map(str, printed), _role(experiment, line)])
    return table


def remarks(experiment: Experiment) -> list[str]:
    """Return remarks for readers: the experiment's notes, the lines' notes, and the rows without printed figures."""
    of_lines: dict[str, list[str]] = {}
    for line in experiment.printed:
        if line.note:
            of_lines.setdefault(line.note, []).append(line.name)
    alone = [row.name for row in experiment.rows if row.paper.adapted is None]
    return [
        *experiment.notes,
        *(f"{'; '.join(names)}: {note}." for note, names in of_lines.items()),
        *([f"Rows that the paper prints no figures for: {', '.join(alone)}."] if alone else []),
    ]


def shown(experiment: Experiment) -> str:
    """Return the paper's table as plain text, with its source, remarks, and the checkpoints that a run needs."""
    about = f"{experiment.name}: {experiment.summary}\n{experiment.source}. {experiment.metric}."
    table = tables.text(paper_table(experiment)) if experiment.printed else "It prints no figures for these rows."
    files: dict[str, list[str]] = {}
    for row in experiment.rows:
        files.setdefault(row.weights, []).append(row.name)
    needed = "; ".join(f"{name} ({', '.join(rows)})" for name, rows in files.items())
    return "\n\n".join([about, table, *remarks(experiment), f"Checkpoints that the rows need: {needed}."])


def amount(value: float | None) -> str:
    """Format a cost with at most 6 significant digits; "–" for None."""
    return NOTHING if value is None else f"{value:g}"


def _trained(experiment: Experiment, line: Printed) -> str:
    counts = {row.trained for row in experiment.rows if row.paper.adapted is line and row.trained is not None}
    return ", ".join(f"{count:,}" for count in sorted(counts)) or NOTHING


def _role(experiment: Experiment, line: Printed) -> str:
    """Return the rows that lowpeft runs for a line of the paper, or "only printed"."""
    roles = {"frozen": "frozen network"} if any(row.paper.frozen is line for row in experiment.rows) else {}
    for row in experiment.rows:
        if row.paper.adapted is line:
            roles[row.name] = f"`{row.name}`"
        if row.paper.ensemble is line:
            roles[row.name] = f"`{row.name}` with --ensemble"
    return ", ".join(roles.values()) or "only printed"
