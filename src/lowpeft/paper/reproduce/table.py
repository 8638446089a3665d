"""Table of an experiment's outcomes beside the paper's figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ... import tables
from ...tables import NOTHING
from ..experiments import Experiment, Printed
from ..experiments.printed import COSTS
from ..experiments.show import amount, remarks
from .job import ENSEMBLE, MEAN, Outcome

FROZEN = "frozen"

COLUMNS = {"left": ("PSNR Left", "SSIM Left"), "mean": (MEAN, "SSIM (L+R)/2")}
"""Mapping from the views that papers print to the PSNR and SSIM columns of the protocol `literature`."""
PAPER_COSTS = dict(zip(COSTS, ("paper, M", "paper, h", "paper, GB"), strict=True))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the experiment: the outcomes of its seeds and the paper's lines.

    Attributes:
        row: Name of the row.
        summary: Summary of the row.
        outcomes: One outcome for each seed; empty for a line that is only printed.
        printed: The paper's line; None if it has none.
        ensemble: The paper's line for the self-ensemble; None if it has none.
    """

    row: str
    summary: str
    outcomes: tuple[Outcome, ...] = ()
    printed: Printed | None = None
    ensemble: Printed | None = None

    def mean(self, test_set: str, figure: str) -> float | None:
        """Return the mean of a figure over the seeds; None if it was not measured."""
        values = self._values(test_set, figure)
        return fmean(values) if values else None

    def spread(self, test_set: str, figure: str) -> float | None:
        """Return the standard deviation of a figure over the seeds; None for fewer than two."""
        values = self._values(test_set, figure)
        return stdev(values) if len(values) > 1 else None

    def paper(self, test_set: str) -> dict[str, float]:
        """Return the paper's figures on a test set, by lowpeft's column names."""
        ensemble = {ENSEMBLE + column: value for column, value in _columns(self.ensemble, test_set).items()}
        return _columns(self.printed, test_set) | ensemble

    def costs(self) -> dict[str, float]:
        """Return the parameters, time and memory that the paper prints, by name."""
        return {key: value for key in COSTS if (value := getattr(self.printed, key, None)) is not None}

    def _values(self, test_set: str, figure: str) -> list[float]:
        values = (outcome.figures.get(test_set, {}).get(figure) for outcome in self.outcomes)
        return [value for value in values if value is not None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table with all lines of an experiment.

    Attributes:
        experiment: Experiment that was run.
        lines: The frozen networks, then the rows in their order.
        note: First remark for readers, e.g. that it was a smoke run.
        made: Remarks on how the figures were made: protocol, changed settings, networks.
    """

    experiment: Experiment
    lines: tuple[Line, ...]
    note: str = ""
    made: tuple[str, ...] = ()

    @property
    def test_sets(self) -> tuple[str, ...]:
        """Names of the test sets, in the order in which they were measured."""
        names = (name for line in self.lines for outcome in line.outcomes for name in outcome.figures)
        return tuple(dict.fromkeys(names))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: every outcome, and mean, spread and the paper's figures for each test set."""

        def plain(line: Line, name: str) -> dict[str, Any]:
            figures = _figures([line], name)
            ours = {key: {"mean": line.mean(name, key), "spread": line.spread(name, key)} for key in figures}
            return {"ours": ours, "paper": line.paper(name)}

        return {
            "experiment": self.experiment.name,
            "note": self.note,
            "notes": [*remarks(self.experiment), *self.made],
            "rows": [
                {
                    "row": line.row,
                    "summary": line.summary,
                    "outcomes": [vars(outcome) for outcome in line.outcomes],
                    "paper": line.costs(),
                    "sets": {name: plain(line, name) for name in self.test_sets},
                }
                for line in self.lines
            ],
            "only printed": [dataclasses.asdict(line) for line in self.experiment.only_printed],
        }

    def markdown(self) -> str:
        """Return the remarks and one table for each test set, in Markdown."""
        about = f"# {self.experiment.name}\n\n{self.experiment.summary}. Figures: {self.experiment.metric}."
        note = [f"**{self.note}**"] if self.note else []
        sections = [f"## {self._heading(name)}\n\n{tables.markdown(self._cells(name))}" for name in self.test_sets]
        return "\n\n".join([about, *note, *remarks(self.experiment), *self.made, *sections]) + "\n"

    def __str__(self) -> str:
        about = f"{self.experiment.name}: {self.experiment.summary}" + f"\n{self.note}" * bool(self.note)
        sections = [f"{self._heading(name)}\n{tables.text(self._cells(name))}" for name in self.test_sets]
        return "\n\n".join([about, *remarks(self.experiment), *self.made, *sections])

    def _heading(self, name: str) -> str:
        """Return a test set's name with its number of scenes."""
        counts = {outcome.scenes[name] for line in self.lines for outcome in line.outcomes if name in outcome.scenes}
        return name + "".join(f", {count} scene{'s' * (count != 1)}" for count in sorted(counts))

    def _cells(self, name: str) -> list[list[str]]:
        """Return a test set's cells, the header first: the rows with the paper's figures, then only printed lines."""
        others = [Line(row=line.name, summary=line.note, printed=line) for line in self.experiment.only_printed]
        lines = [*self.lines, *(line for line in others if line.paper(name))]
        figures = _figures(self.lines, name)
        printed = {key for line in lines for key in line.paper(name)}
        costs = [key for key in COSTS if any(key in line.costs() for line in lines)]
        header = ["row", "trained", "s", "MB", *(PAPER_COSTS[key] for key in costs)]
        for key in figures:
            header += [key, "paper", "ours - paper"] if key in printed else [key]
        rows = []
        for line in lines:
            row = [line.row, *_our_costs(line), *(amount(line.costs().get(key)) for key in costs)]
            for key in figures:
                row += _figure(line, name, key)[: 3 if key in printed else 1]
            rows.append(row)
        return [header, *rows]


def _figures(lines: Sequence[Line], test_set: str) -> list[str]:
    """Return the names of the figures that were measured on a test set, in their order."""
    figures = (key for line in lines for outcome in line.outcomes for key in outcome.figures.get(test_set, {}))
    return list(dict.fromkeys(figures))


def _our_costs(line: Line) -> list[str]:
    if not line.outcomes:
        return [NOTHING] * 3
    seconds, memory = (fmean(getattr(o, field) for o in line.outcomes) for field in ("seconds", "peak_mb"))
    return [f"{line.outcomes[0].trained:,}", f"{seconds:.0f}", f"{memory:.0f}"]


def _figure(line: Line, name: str, key: str) -> list[str]:
    """Return cells for lowpeft's mean with its spread, the paper's figure, and the difference."""
    mean, spread, paper = line.mean(name, key), line.spread(name, key), line.paper(name).get(key)
    digits, of_paper = (3, 2) if "PSNR" in key else (4, 4)
    ours = NOTHING if mean is None else f"{mean:.{digits}f}"
    return [
        ours + ("" if spread is None else f" ± {spread:.{digits}f}"),
        NOTHING if paper is None else f"{paper:.{of_paper}f}",
        NOTHING if paper is None or mean is None else f"{mean - paper:+.{of_paper}f}",
    ]


def _columns(printed: Printed | None, test_set: str) -> dict[str, float]:
    """Return the figures that a line of the paper prints on a test set, by lowpeft's column names."""
    if printed is None:
        return {}
    scores = {view: getattr(printed.on(test_set), view) for view in COLUMNS}
    return {
        column: value
        for view, score in scores.items()
        if score is not None
        for column, value in zip(COLUMNS[view], (score.db, score.ssim), strict=True)
    }
