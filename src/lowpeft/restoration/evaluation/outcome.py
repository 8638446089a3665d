"""All that a run measured, as text, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ... import tables
from ...errors import DataError
from ...storage import write_json, write_text
from ..images import make_folder
from .difference import Gain
from .other_view import OtherView
from .report import REPORT, Report, overview


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run measured; prints as tables.

    Attributes:
        reports: One or more reports of the same scenes and protocol, the last that of the method in question.
        facts: Facts about the run, by name; the files begin with them.
        gains: What methods gain over the frozen network.
        between: What methods gain over one another.
        other_view: What the model takes from the other view; None if that was not measured.
    """

    reports: Sequence[Report]
    facts: Mapping[str, object] = field(default_factory=dict)
    gains: Sequence[Gain] = ()
    between: Sequence[Gain] = ()
    other_view: OtherView | None = None

    def as_dict(self) -> dict[str, object]:
        """Return everything for JSON."""
        content: dict[str, object] = {**self.about(), "methods": [report.as_dict() for report in self.reports]}
        if self.gains:
            content["gains"] = [gain.as_dict() for gain in self.gains]
        if self.between:
            content["between methods"] = [gain.as_dict() for gain in self.between]
        if self.other_view is not None:
            content["the other view"] = self.other_view.as_dict()
        return content

    def as_markdown(self) -> str:
        """Return the facts, the verdicts and all tables in Markdown.

        Raises:
            DataError: The reports differ in scenes or protocol.
        """
        head = "\n".join(f"- {key}: {value}" for key, value in self.about().items())
        parts = [gain.as_markdown() for gain in (*self.gains, *self.between)]
        if self.other_view is not None:
            parts.append(self.other_view.as_markdown())
        parts += [overview(self.reports, markdown=True), *(report.as_markdown() for report in self.reports)]
        return "\n\n".join([head, *parts]) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.md`, and return their paths.

        Args:
            folder: Folder to write to; it is made if it is missing.

        Raises:
            DataError: The reports differ in scenes or protocol, or a file cannot be written; a file that was there is
                unchanged then.
        """
        text, content = self.as_markdown(), self.as_dict()
        try:
            make_folder(folder)
            return write_json(folder / "report.json", content), write_text(folder / REPORT, text)
        except OSError as error:
            raise DataError(f"cannot write the reports to {folder}: {error.strerror or error}") from error

    def scene_cells(self, column: int = 0) -> list[list[str]]:
        """Return a table of one column of the protocol: scenes by methods, the gains last, and the means below.

        Args:
            column: Number of the column.
        """
        of = self.reports[0].protocol.columns[column]
        gains = [(f"{gain.method} over {gain.over}", gain.columns[column]) for gain in self.gains]
        rows = []
        for i, row in enumerate(self.reports[0].rows):
            values = (report.rows[i].values[column] for report in self.reports)
            found = (difference.gains[row.scene] for _, difference in gains)
            rows.append([row.scene, *(f"{v:.{of.digits}f}" for v in values), *(_signed(v, of.digits) for v in found)])
        means = (report.means()[of.name] for report in self.reports)
        mean_gains = (_signed(difference.mean, of.digits) for _, difference in gains)
        heading = [of.name, *(report.method for report in self.reports), *(name for name, _ in gains)]
        return [heading, *rows, ["mean", *(f"{mean:.{of.digits}f}" for mean in means), *mean_gains]]

    def by_worst(self) -> list[str]:
        """Return the scenes by the first column, the worst first: by gain, of several gains by their mean.

        Without gains, scenes are ordered by the last report's figures.
        """
        sign = -1 if self.reports[0].protocol.columns[0].lower_is_better else 1
        figures = {row.scene: [row.values[0]] for row in self.reports[-1].rows}
        if self.gains:
            gains = [gain.columns[0].gains for gain in self.gains]
            figures = {scene: [each[scene] for each in gains] for scene in figures}
        means = {scene: sign * sum(values) for scene, values in figures.items()}
        return sorted((scene for scene, mean in means.items() if not math.isnan(mean)), key=means.__getitem__)

    def as_text(self, *, most: int | None = None) -> str:
        """Return all tables as plain text.

        Args:
            most: Largest number of scenes in a table; None for all. The means are always there.
        """
        one = self.reports[0].cells() if len(self.reports) == 1 else self.scene_cells()
        parts = [tables.text(tables.capped(one, most, REPORT))]
        if len(self.reports) > 1:
            parts.append(overview(self.reports))
        parts += map(str, (*self.gains, *self.between))
        if self.other_view is not None:
            parts.append(self.other_view.as_text(most=most))
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return self.as_text()

    def about(self) -> dict[str, object]:
        """Return the protocol and the facts of the run, by name."""
        protocol = self.reports[0].protocol
        return {"protocol": f"{protocol.name}: {protocol.summary}", **self.facts}


def _signed(value: float, digits: int) -> str:
    return tables.NOTHING if math.isnan(value) else f"{value:+.{digits}f}"
