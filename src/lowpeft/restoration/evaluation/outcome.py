"""All that a run measured, as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError
from ...storage import write_json, write_text
from .difference import Gain
from .other_view import OtherView
from .report import Report, overview


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run measured; prints as tables.

    Attributes:
        reports: One or more reports of the same scenes and protocol, the last that of the method in question.
        facts: Facts about the run, by name; the files begin with them.
        gains: What methods gain over others.
        other_view: What the model takes from the other view; None if that was not measured.
    """

    reports: Sequence[Report]
    facts: Mapping[str, object] = field(default_factory=dict)
    gains: Sequence[Gain] = ()
    other_view: OtherView | None = None

    def as_dict(self) -> dict[str, object]:
        """Return everything for JSON."""
        content: dict[str, object] = {**self._about(), "methods": [report.as_dict() for report in self.reports]}
        if self.gains:
            content["gains"] = [gain.as_dict() for gain in self.gains]
        if self.other_view is not None:
            content["the other view"] = self.other_view.as_dict()
        return content

    def as_markdown(self) -> str:
        """Return the facts, the verdicts and all tables in Markdown.

        Raises:
            DataError: The reports differ in scenes or protocol.
        """
        head = "\n".join(f"- {key}: {value}" for key, value in self._about().items())
        parts = [gain.as_markdown() for gain in self.gains]
        if self.other_view is not None:
            parts.append(self.other_view.as_markdown())
        tables = [overview(self.reports, markdown=True), *(report.as_markdown() for report in self.reports)]
        return "\n\n".join([head, *parts, *tables]) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.md`, and return their paths.

        Args:
            folder: Existing folder to write to.

        Raises:
            DataError: The reports differ in scenes or protocol, or a file cannot be written; a file that was there is
                unchanged then.
        """
        text, content = self.as_markdown(), self.as_dict()
        try:
            return write_json(folder / "report.json", content), write_text(folder / "report.md", text)
        except OSError as error:
            raise DataError(f"cannot write the reports to {folder}: {error.strerror or error}") from error

    def __str__(self) -> str:
        parts = [str(self.reports[-1])]
        if len(self.reports) > 1:
            parts.append(overview(self.reports))
        parts += map(str, self.gains)
        if self.other_view is not None:
            parts.append(str(self.other_view))
        return "\n\n".join(parts)

    def _about(self) -> dict[str, object]:
        protocol = self.reports[0].protocol
        return {"protocol": f"{protocol.name}: {protocol.summary}", **self.facts}
