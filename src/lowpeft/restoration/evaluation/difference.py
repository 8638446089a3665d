"""Did it help? The difference of two methods on the same scenes, with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean, stdev

from ... import tables
from ...errors import DataError
from ...storage import finite_or_text
from ..metrics import Column
from .report import Report

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a method gains over another in one column of their protocol, scene by scene.

    Attributes:
        column: The column.
        gains: The method's figure minus the other's by scene; 0 where both images equal the clean one.
        mean: Mean of the gains.
        interval: Limits of the 95 % confidence interval of the mean, by Student's t over the paired differences: how
            far the mean would move with other scenes of the same kind. None for fewer than two scenes.
    """

    column: Column
    gains: dict[str, float]
    mean: float
    interval: tuple[float, float] | None

    @property
    def better(self) -> int:
        """Number of scenes in which the method is the better one."""
        return sum(self._sign * gain > 0 for gain in self.gains.values())

    @property
    def clear(self) -> int:
        """1 if the method is better by more than chance (the interval excludes 0), -1 if it is worse, else 0."""
        if self.interval is None:
            return 0
        low, high = sorted(self._sign * limit for limit in self.interval)
        return (low > 0) - (high < 0)

    @property
    def _sign(self) -> int:
        return -1 if self.column.lower_is_better else 1

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON."""
        interval = None if self.interval is None else list(map(finite_or_text, self.interval))
        return {
            "mean": finite_or_text(self.mean),
            "95 % interval": interval,
            "scenes": len(self.gains),
            "better in": self.better,
        }

    def cells(self) -> list[str]:
        """Return a row of a table: column, mean, interval, and in how many scenes it is better."""
        digits = self.column.digits
        limits = tables.NOTHING
        if self.interval is not None:
            limits = " to ".join(f"{limit:+.{digits}f}" for limit in self.interval)
        return [self.column.name, f"{self.mean:+.{digits}f}", limits, f"{self.better} of {len(self.gains)}"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a method gains over another on the same scenes; prints as a verdict and a table.

    Attributes:
        method: Name of the method.
        over: Name of the other one.
        columns: One difference per column of the protocol; that of the first column is the one to judge by.
    """

    method: str
    over: str
    columns: tuple[Difference, ...]

    def verdict(self) -> str:
        """Return one sentence: whether the method is better, by how much, and how sure that is."""
        first = self.columns[0]
        name, mean, limits, better = first.cells()
        figures = f"{mean} {name} over {self.over}"
        infinite = sum(map(math.isinf, first.gains.values()))
        if infinite:
            return f"{self.method}: {figures}, better in {better} scenes; images of {infinite} equal the clean ones"
        if first.interval is None:
            return f"{self.method}: {figures} in 1 scene; one scene shows little"
        said = {1: "better", -1: "worse", 0: "no clear difference"}[first.clear]
        return f"{self.method}: {said}, {figures} (95 % interval {limits}), better in {better} scenes"

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON."""
        figures = {difference.column.name: difference.as_dict() for difference in self.columns}
        return {"method": self.method, "over": self.over, "verdict": self.verdict(), "columns": figures}

    def cells(self) -> list[list[str]]:
        """Return a table with one row per column of the protocol, the header first."""
        heading = [f"{self.method} over {self.over}", "mean", "95 % interval", "better in"]
        return [heading, *(difference.cells() for difference in self.columns)]

    def as_markdown(self) -> str:
        """Return the verdict and a Markdown table."""
        return f"{self.verdict()}\n\n{tables.markdown(self.cells())}"

    def __str__(self) -> str:
        return f"{self.verdict()}\n{tables.text(self.cells())}"


def gain(report: Report, over: Report) -> Gain:
    """Return what a method gains over another one.

    Args:
        report: Figures of the method.
        over: Figures of the other one, of the same scenes by the same protocol.

    Raises:
        DataError: The reports differ in columns or scenes.
    """
    measured = [([c.name for c in r.protocol.columns], [row.scene for row in r.rows]) for r in (report, over)]
    if measured[0] != measured[1]:
        raise DataError(
            f"{report.method} and {over.method} were measured on different scenes, or by different protocols"
        )
    found = []
    for i, column in enumerate(report.protocol.columns):
        pairs = [
            (ours.scene, ours.values[i], theirs.values[i]) for ours, theirs in zip(report.rows, over.rows, strict=True)
        ]
        gains = {scene: less(ours, theirs) for scene, ours, theirs in pairs}
        values = list(gains.values())
        found.append(Difference(column=column, gains=gains, mean=mean_of(values), interval=interval(values)))
    return Gain(method=report.method, over=over.method, columns=tuple(found))


def less(ours: float, theirs: float) -> float:
    """Return a figure minus another one; 0 if both are infinite: of two exact images, none is better."""
    return 0.0 if ours == theirs else ours - theirs


def mean_of(values: Collection[float]) -> float:
    """Return the mean; infinite or NaN if there are infinities among the values."""
    if any(map(math.isinf, values)):  # fmean refuses those of both signs
        return sum(values) / len(values)
    return fmean(values)


def interval(values: list[float]) -> tuple[float, float] | None:
    """Return the confidence interval of a mean by Student's t; None for fewer than two values, or infinite ones."""
    from scipy.stats import t  # type: ignore[import-untyped]

    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(values) / math.sqrt(count)
    mean = fmean(values)
    return mean - half, mean + half
