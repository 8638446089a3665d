"""An experiment's outcomes beside the paper's figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..experiments import Experiment, PaperFigures
from .job import ENSEMBLE, MEAN, Outcome

FROZEN = "frozen"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the experiment: the outcomes of its seeds, and what the paper prints.

    Attributes:
        row: Its name.
        summary: Of the row.
        outcomes: One for each seed.
        paper: What the paper prints, for each test set and column of ours, where it is known.
    """

    row: str
    summary: str
    outcomes: tuple[Outcome, ...]
    paper: dict[str, dict[str, float]]

    def mean(self, test_set: str, figure: str) -> float | None:
        """Over the seeds; None where it was not measured."""
        values = self._values(test_set, figure)
        return fmean(values) if values else None

    def spread(self, test_set: str, figure: str) -> float | None:
        """Standard deviation over the seeds; None for fewer than two."""
        values = self._values(test_set, figure)
        return stdev(values) if len(values) > 1 else None

    def _values(self, test_set: str, figure: str) -> list[float]:
        found = (outcome.figures.get(test_set, {}).get(figure) for outcome in self.outcomes)
        return [value for value in found if value is not None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All lines of an experiment.

    Attributes:
        experiment: What was run.
        lines: The frozen networks, then the rows in their order.
        note: What readers must know first (that it was a smoke run, say).
    """

    experiment: Experiment
    lines: tuple[Line, ...]
    note: str = ""

    @property
    def test_sets(self) -> tuple[str, ...]:
        """In the order in which they were measured."""
        names = (name for line in self.lines for outcome in line.outcomes for name in outcome.figures)
        return tuple(dict.fromkeys(names))

    def as_dict(self) -> dict[str, Any]:
        """Plain values: every outcome, and mean, spread and the paper's figure for each test set."""

        def plain(line: Line, name: str) -> dict[str, Any]:
            figures = {key: None for o in line.outcomes for key in o.figures.get(name, {})}
            ours = {key: {"mean": line.mean(name, key), "spread": line.spread(name, key)} for key in figures}
            return {"ours": ours, "paper": line.paper.get(name, {})}

        return {
            "experiment": self.experiment.name,
            "note": self.note,
            "rows": [
                {
                    "row": line.row,
                    "summary": line.summary,
                    "outcomes": [vars(outcome) for outcome in line.outcomes],
                    "sets": {name: plain(line, name) for name in self.test_sets},
                }
                for line in self.lines
            ],
        }

    def markdown(self) -> str:
        """A table for each test set."""
        about = f"# {self.experiment.name}\n\n{self.experiment.summary}. Figures: {self.experiment.metric}."
        note = f"\n\n**{self.note}**" if self.note else ""
        sections = [f"## {name}\n\n{_grid(self._header(name), self._cells(name))}" for name in self.test_sets]
        return "\n\n".join([about + note, *sections]) + "\n"

    def __str__(self) -> str:
        parts = [f"{self.experiment.name}: {self.experiment.summary}" + f"\n{self.note}" * bool(self.note)]
        for name in self.test_sets:
            rows = [self._header(name), *self._cells(name)]
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
            parts.append("\n".join([name, *(line.rstrip() for line in lines)]))
        return "\n\n".join(parts)

    def _figures(self, name: str) -> tuple[str, ...]:
        found = (key for line in self.lines for outcome in line.outcomes for key in outcome.figures.get(name, {}))
        return tuple(dict.fromkeys(found))

    def _printed(self, name: str, key: str) -> bool:
        """Whether the paper has such a figure for some row."""
        return any(key in line.paper.get(name, {}) for line in self.lines)

    def _header(self, name: str) -> list[str]:
        columns = ["row", "trained", "s", "MB"]
        for key in self._figures(name):
            columns += [key, "paper", "ours - paper"] if self._printed(name, key) else [key]
        return columns

    def _cells(self, name: str) -> list[list[str]]:
        return [self._line(line, name) for line in self.lines]

    def _line(self, line: Line, name: str) -> list[str]:
        first = line.outcomes[0]
        figures = []
        for key in self._figures(name):
            mean, spread = line.mean(name, key), line.spread(name, key)
            digits = 3 if "PSNR" in key else 4
            text = "–" if mean is None else f"{mean:.{digits}f}"
            figures.append(text + ("" if spread is None else f" ± {spread:.{digits}f}"))
            if self._printed(name, key):
                paper = line.paper.get(name, {}).get(key)
                figures.append("–" if paper is None else f"{paper:.2f}")
                figures.append("–" if paper is None or mean is None else f"{mean - paper:+.2f}")
        seconds, memory = (fmean(getattr(o, field) for o in line.outcomes) for field in ("seconds", "peak_mb"))
        cost = [f"{first.trained:,}", f"{seconds:.0f}", f"{memory:.0f}"]
        return [line.row, *cost, *figures]


def printed(figures: Iterable[PaperFigures], *, frozen: bool) -> dict[str, dict[str, float]]:
    """What the paper prints for a row, or for its frozen network, by test set and column of ours."""
    found: dict[str, dict[str, float]] = {}
    for each in figures:
        columns = {MEAN: each.frozen_db} if frozen else {MEAN: each.adapted_db, ENSEMBLE + MEAN: each.ensemble_db}
        found[each.test_set] = {column: value for column, value in columns.items() if value is not None}
    return found


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
