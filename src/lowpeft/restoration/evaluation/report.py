"""Reports: the figures of every scene as text, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from ... import tables
from ...errors import DataError
from ...storage import write_json, write_text
from ..metrics import Column, Protocol

if TYPE_CHECKING:
    from .other_view import OtherView


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
        return tables.markdown(self._cells())

    def __str__(self) -> str:
        return tables.text(self._cells())

    def _cells(self) -> list[list[str]]:
        columns = self.protocol.columns
        rows = [[row.scene, *_texts(columns, row.values)] for row in self.rows]
        mean = ["mean", *_texts(columns, tuple(self.means().values()))]
        return [[self.method, *(c.name for c in columns)], *rows, mean]


def overview(reports: Sequence[Report], *, markdown: bool = False) -> str:
    """Return a table with the means of several methods under one protocol, one row each.

    Raises:
        DataError: The reports differ in protocol or scenes, so their means cannot be compared.
    """
    if len({(r.protocol.name, tuple(row.scene for row in r.rows)) for r in reports}) != 1:
        raise DataError("the reports have different scenes or protocols, so their means cannot be compared")
    columns = reports[0].protocol.columns
    heading = [f"mean of {len(reports[0].rows)} scenes", *(c.name for c in columns)]
    cells = [heading, *([r.method, *_texts(columns, tuple(r.means().values()))] for r in reports)]
    return tables.markdown(cells) if markdown else tables.text(cells)


def write_reports(
    reports: Sequence[Report], folder: Path, *, facts: Mapping[str, object], other_view: OtherView | None = None
) -> tuple[Path, Path]:
    """Write `report.json` and `report.md`.

    Args:
        reports: One or more reports of the same scenes and protocol.
        folder: Existing folder to write to.
        facts: Facts about the run, by name; both files begin with them.
        other_view: What the model takes from the other view; a part of both files.

    Returns:
        Both paths.

    Raises:
        DataError: The reports differ in scenes or protocol, or a file cannot be written.
    """
    protocol = reports[0].protocol
    table = overview(reports, markdown=True)
    about = {"protocol": f"{protocol.name}: {protocol.summary}", **facts}
    head = "\n".join(f"- {key}: {value}" for key, value in about.items())
    parts = [r.as_markdown() for r in reports]
    content = {**about, "methods": [r.as_dict() for r in reports]}
    if other_view is not None:
        parts.insert(0, other_view.as_markdown())
        content["the other view"] = other_view.as_dict()
    text = "\n\n".join([head, table, *parts]) + "\n"
    try:
        as_json = write_json(folder / "report.json", content)
        return as_json, write_text(folder / "report.md", text)
    except OSError as error:
        raise DataError(f"cannot write the reports to {folder}: {error.strerror or error}") from error


def finite_or_text(value: float) -> float | str:
    """Return a figure for JSON: infinity and NaN as text."""
    return value if math.isfinite(value) else str(value)


def _texts(columns: Sequence[Column], values: Sequence[float]) -> list[str]:
    return [f"{value:.{c.digits}f}" for c, value in zip(columns, values, strict=True)]
