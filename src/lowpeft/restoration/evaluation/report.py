"""Reports: the figures of one method in every scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ... import tables
from ...errors import DataError
from ...storage import finite_or_text
from ..metrics import Column, Protocol

REPORT = "report.md"
"""Name of the file with all tables."""


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One scene: its name and one figure per column of the protocol."""

    scene: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of one method on one set of scenes; prints as a table.

    Attributes:
        method: Name of the method that made the images.
        protocol: Protocol that defines the columns.
        rows: One row per scene, in the order in which the scenes were given.
    """

    method: str
    protocol: Protocol
    rows: tuple[ReportRow, ...]

    def means(self) -> dict[str, float]:
        """Return the mean over scenes, by column name."""
        columns = zip(*(row.values for row in self.rows), strict=True)
        return {c.name: fmean(values) for c, values in zip(self.protocol.columns, columns, strict=True)}

    def part(self, protocol: Protocol, first: int) -> Report:
        """Return a report of some columns, as measured by a protocol that has just these.

        Args:
            protocol: The protocol.
            first: Number of its first column in this report.
        """
        columns = slice(first, first + len(protocol.columns))
        rows = tuple(ReportRow(scene=row.scene, values=row.values[columns]) for row in self.rows)
        return Report(method=self.method, protocol=protocol, rows=rows)

    def as_dict(self) -> dict[str, object]:
        """Return the whole report for JSON; infinite values (PSNR of equal images) become the string `inf`."""
        names = [c.name for c in self.protocol.columns]
        return {
            "method": self.method,
            "protocol": self.protocol.name,
            "mean": {name: finite_or_text(value) for name, value in self.means().items()},
            "scenes": {row.scene: dict(zip(names, map(finite_or_text, row.values), strict=True)) for row in self.rows},
        }

    def as_markdown(self) -> str:
        """Return a Markdown table of scenes, with the mean as its last row."""
        return tables.markdown(self.cells())

    def __str__(self) -> str:
        return tables.text(self.cells())

    def cells(self) -> list[list[str]]:
        """Return the table: a header, a row for each scene, and the means."""
        columns = self.protocol.columns
        rows = [[row.scene, *_texts(columns, row.values)] for row in self.rows]
        mean = ["mean", *_texts(columns, tuple(self.means().values()))]
        return [[self.method, *(c.name for c in columns)], *rows, mean]


def overview(reports: Sequence[Report], *, markdown: bool = False) -> str:
    """Return a table with the means of several methods under one protocol, one row each.

    Raises:
        DataError: As for `overview_cells`.
    """
    cells = overview_cells(reports)
    return tables.markdown(cells) if markdown else tables.text(cells)


def overview_cells(reports: Sequence[Report]) -> list[list[str]]:
    """Return the cells of `overview`, the header first.

    Raises:
        DataError: The reports differ in protocol or scenes, so their means cannot be compared.
    """
    if len({(r.protocol.name, tuple(row.scene for row in r.rows)) for r in reports}) != 1:
        raise DataError("the reports have different scenes or protocols, so their means cannot be compared")
    columns = reports[0].protocol.columns
    count = len(reports[0].rows)
    heading = [f"mean of {count} scene{'s' * (count > 1)}", *(c.name for c in columns)]
    return [heading, *([r.method, *_texts(columns, tuple(r.means().values()))] for r in reports)]


def _texts(columns: Sequence[Column], values: Sequence[float]) -> list[str]:
    return [f"{value:.{c.digits}f}" for c, value in zip(columns, values, strict=True)]
