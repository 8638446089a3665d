"""Comparison of a model with its frozen base, with bicubic, and with itself without the other views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean

from ... import tables
from ...core.attachment.record import is_adapted, module_of
from ...core.observation.describe import image_facts
from ...core.operations.switching import disabled
from ..data import Example
from ..inference.network import multi_view
from ..metrics import WHOLE_RGB
from .measure import by_bicubic, by_network, by_network_alone, measure
from .report import Report


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports of several methods on the same scenes, by `metrics.WHOLE_RGB`; printing it gives one table.

    Attributes:
        reports: Reports by method: `bicubic`; `frozen` and `adapted`, or `trained` for a network without adapters;
            `same view` for models of several views, with each view paired with itself.
    """

    reports: Mapping[str, Report]

    def means_db(self) -> dict[str, float]:
        """Return the mean PSNR over scenes of each method, in dB."""
        return {method: fmean(self.values_db(method)) for method in self.reports}

    def values_db(self, method: str) -> list[float]:
        """Return the PSNR of each scene in dB, mean over its views; empty for a method that was not measured."""
        return [row.values[0] for row in self.reports[method].rows] if method in self.reports else []

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes."""
        return [row.scene for row in self.reports["bicubic"].rows]

    def __str__(self) -> str:
        rows = zip(self.scenes, *map(self.values_db, self.reports), strict=True)
        cells = [[scene, *(f"{value:.3f}" for value in values)] for scene, *values in rows]
        means = ["mean", *(f"{value:.3f}" for value in self.means_db().values())]
        return tables.text([["PSNR in dB", *self.reports], *cells, means])


def compare(
    model: object, examples: Sequence[Example], *, advance: Callable[[str], None] = lambda note: None
) -> Comparison:
    """Measure a model beside bicubic, its frozen base, and itself with each view paired with itself.

    Args:
        model: A network or a model of several views, adapted or not.
        examples: One or more scenes, all with the views that the model takes.
        advance: Called with the scene's name after each scene of each method; `methods` counts these.

    Raises:
        DataError: There are no scenes, or a scene cannot be run; no scene is ever left out of a mean.
    """
    scale = image_facts(model).scale
    network, alone, bicubic = by_network(model), by_network_alone(model), by_bicubic(scale)
    reports: dict[str, Report] = {}
    for method in methods(model):
        enhance = {"bicubic": bicubic, "same view": alone}.get(method, network)
        with disabled(model) if method == "frozen" else nullcontext():
            reports[method] = measure(
                enhance,
                examples,
                scale=scale,
                protocol=WHOLE_RGB,
                method=method,
                seen=lambda example, _: advance(example.name),
            )
    return Comparison(reports=reports)


def methods(model: object) -> Iterator[str]:
    """Yield the methods that `compare` measures for a model."""
    yield "bicubic"
    yield from ("frozen", "adapted") if is_adapted(model) else ("trained",)
    if is_adapted(model) and multi_view(module_of(model)) is not None:
        yield "same view"
