"""Part of a model's PSNR that it owes to the other view: its figures minus those of controls without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ... import tables
from ...storage import finite_or_text
from .difference import less, mean_of
from .report import REPORT, Report

SAME_VIEW, CONTROL = "same view", "control"

_MEASURED = {
    SAME_VIEW: "measured by giving each view twice",
    CONTROL: "over a control that was trained and measured with each view twice",
}


@dataclass(frozen=True, kw_only=True)
class OtherView:
    """PSNR of a model of several views minus that of one or two controls, which see no other view.

    Attributes:
        adapted: Report of the model.
        controls: Reports on the same scenes by control. `same view`: the model with each view paired with itself.
            `control`, if there is one: a model that was trained so, measured in the same way. The first control breaks
            what the model has learned, so it flatters the model; the second is the one to claim.
        remarks: What stands against the claim, e.g. that the control was trained otherwise.
    """

    adapted: Report
    controls: Mapping[str, Report]
    remarks: Sequence[str] = ()

    def gains_db(self, control: str) -> dict[str, float]:
        """Return the model's PSNR minus a control's, in dB, mean over the views, by scene."""
        pairs = zip(self.adapted.rows, self.controls[control].rows, strict=True)
        return {row.scene: less(row.values[0], other.values[0]) for row, other in pairs}

    def means_db(self) -> dict[str, float]:
        """Return the mean gain over the scenes by control, in dB."""
        return {control: mean_of(self.gains_db(control).values()) for control in self.controls}

    def claim(self) -> str:
        """Return the mean gain over each control, the strictest first, with the least and the most; and the remarks."""
        strictest, *others = reversed(list(self.controls))
        lines = [f"the other view: {self._gain(strictest)}", *(f"less strictly: {self._gain(name)}" for name in others)]
        return "\n".join([*lines, *self.remarks])

    def _gain(self, control: str) -> str:
        gains = self.gains_db(control)
        least, most = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
        span = f", from {gains[least]:+.3f} ({least}) to {gains[most]:+.3f} ({most})" if len(gains) > 1 else ""
        return f"{mean_of(gains.values()):+.3f} dB (mean of the views){span}; {_MEASURED[control]}"

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON, in dB: for each control its PSNR and the gain over it, mean and by scene."""
        gains: dict[str, object] = {
            control: {
                "gain in dB": {
                    "mean": finite_or_text(self.means_db()[control]),
                    "scenes": {scene: finite_or_text(gain) for scene, gain in self.gains_db(control).items()},
                },
                "PSNR in dB": {row.scene: finite_or_text(row.values[0]) for row in report.rows},
            }
            for control, report in self.controls.items()
        }
        return gains | ({"remarks": list(self.remarks)} if self.remarks else {})

    def as_markdown(self) -> str:
        """Return a Markdown table of scenes, and the claim."""
        return f"{tables.markdown(self._cells())}\n\n{self.claim()}"

    def as_text(self, *, most: int | None = None) -> str:
        """Return the table as plain text with at most `most` scenes, and the claim."""
        return f"{tables.text(tables.capped(self._cells(), most, REPORT))}\n\n{self.claim()}"

    def __str__(self) -> str:
        return self.as_text()

    def _cells(self) -> list[list[str]]:
        reports = [self.adapted, *self.controls.values()]
        gains = [self.gains_db(control) for control in self.controls]
        rows = [
            [row.scene, *(f"{r.rows[i].values[0]:.3f}" for r in reports), *(f"{g[row.scene]:+.3f}" for g in gains)]
            for i, row in enumerate(self.adapted.rows)
        ]
        means = [f"{fmean(row.values[0] for row in report.rows):.3f}" for report in reports]
        heading = ["PSNR in dB", self.adapted.method, *self.controls, *(f"over {control}" for control in self.controls)]
        return [heading, *rows, ["mean", *means, *(f"{mean:+.3f}" for mean in self.means_db().values())]]
