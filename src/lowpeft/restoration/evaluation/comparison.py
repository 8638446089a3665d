"""Comparison of a model with its input, with its frozen base, and with controls that see no other view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from statistics import fmean
from typing import Any

from ... import tables
from ...core.attachment.record import is_adapted, module_of, recipes_of
from ...core.observation.describe import image_facts
from ...errors import DataError
from ...recipes import TrainSettings
from ..data import Example
from ..inference import Tiling
from ..inference.network import Views, multi_view
from ..inference.whole import WHOLE
from ..metrics import WHOLE_RGB
from ..words import words
from .measure import Enhance, by_bicubic, by_frozen, by_network, by_network_alone, measure
from .other_view import CONTROL, SAME_VIEW, OtherView
from .report import Report

_OWN = {"accumulate", "batch", "calibration", "keep_checkpoints", "save_every_steps", "validate_every_steps"}
_TRAINED_ALIKE = tuple(f.name for f in fields(TrainSettings) if f.name not in {*_OWN, "workers"})
"""Training settings in which a control must not differ."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports of several methods on the same scenes, by `metrics.WHOLE_RGB`; printing it gives one table.

    Attributes:
        reports: Reports by method: `bicubic` (`input` for scale 1); `frozen` and `adapted`, or `trained` for a network
            without adapters; `same view` for models of several views, with each view paired with itself; `control` for
            a model that was trained so, if one was given, also with each view paired with itself.
        remarks: What stands against the claim; see `OtherView`.
    """

    reports: Mapping[str, Report]
    remarks: Sequence[str] = ()

    def means_db(self) -> dict[str, float]:
        """Return the mean PSNR over scenes of each method, in dB."""
        return {method: fmean(self.values_db(method)) for method in self.reports}

    def values_db(self, method: str) -> list[float]:
        """Return the PSNR of each scene in dB, mean over its views; empty for a method that was not measured."""
        return [row.values[0] for row in self.reports[method].rows] if method in self.reports else []

    @property
    def other_view(self) -> OtherView | None:
        """What the model takes from the other view, by each control; None for a model of single images."""
        controls = {name: self.reports[name] for name in (SAME_VIEW, CONTROL) if name in self.reports}
        return OtherView(adapted=self.reports["adapted"], controls=controls, remarks=self.remarks) if controls else None

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes."""
        return [row.scene for row in next(iter(self.reports.values())).rows]

    @property
    def cells(self) -> list[list[str]]:
        """Table of the PSNR: a header, a row for each scene, and the means."""
        rows = zip(self.scenes, *map(self.values_db, self.reports), strict=True)
        cells = [[scene, *(f"{value:.3f}" for value in values)] for scene, *values in rows]
        return [["PSNR in dB", *self.reports], *cells, ["mean", *(f"{v:.3f}" for v in self.means_db().values())]]

    def __str__(self) -> str:
        table = tables.text(self.cells)
        return table if self.other_view is None else f"{table}\n\n{self.other_view.claim()}"


def compare(
    model: object,
    examples: Sequence[Example],
    *,
    control: object | None = None,
    seen: Callable[[str, Example, Views], None] = lambda method, example, results: None,
) -> Comparison:
    """Measure a model beside its input, its frozen base, itself with each view paired with itself, and a control.

    The input is enlarged by bicubic, unless the scale is 1.

    Args:
        model: A network or a model of several views, adapted or not.
        examples: One or more scenes, all with the views that the model takes.
        control: Model of several views that was trained with each view given twice (`data.EachViewTwice`); it is
            measured in the same way.
        seen: Called with the method, the scene and its results after each scene of each method, as in `measure`;
            `methods` counts the methods.

    Raises:
        DataError: There are no scenes, a scene cannot be run (no scene is ever left out of a mean), or the control does
            not fit the model.
    """
    scale = image_facts(model).scale
    reports = {
        name: measure(enhance, examples, scale=scale, protocol=WHOLE_RGB, method=name, seen=partial(seen, name))
        for name, enhance in methods(model, control=control).items()
    }
    return Comparison(reports=reports, remarks=() if control is None else trained_otherwise(model, control))


def methods(
    model: object, *, control: object | None = None, ensemble: bool = False, tiling: Tiling = WHOLE
) -> dict[str, Enhance]:
    """Return the methods that a model is compared with and itself, by name, in the order of tables.

    Args:
        model: As for `compare`.
        control: As for `compare`.
        ensemble: As for `lowpeft.enhance`.
        tiling: As for `lowpeft.enhance`.

    Raises:
        DataError: The control does not fit the model.
        PlanError: The network does not take and give images.
    """
    scale = image_facts(model).scale
    run: dict[str, Any] = {"ensemble": ensemble, "tiling": tiling}
    if control is not None:
        check_control(model, control)
    found = {words(scale).baseline: by_bicubic(scale)}
    if not is_adapted(model):
        return found | {"trained": by_network(model, **run)}
    found |= {"frozen": by_frozen(model, **run), "adapted": by_network(model, **run)}
    if multi_view(module_of(model)) is not None:
        found[SAME_VIEW] = by_network_alone(model, **run)
    if control is not None:
        found[CONTROL] = by_network_alone(control, **run)
    return found


def check_control(model: object, control: object) -> None:
    """Check that a control can be compared with a model.

    Raises:
        DataError: One of the two does not take several views, or they differ in views, scale or adapters.
    """
    views = [0 if (m := multi_view(module_of(each))) is None else m.views for each in (model, control)]
    scales = [image_facts(each).scale for each in (model, control)]
    if not all(views) or len(set(views)) > 1 or len(set(scales)) > 1:
        counts = " and ".join(f"{count or 1} view(s) at x{scale}" for count, scale in zip(views, scales, strict=True))
        raise DataError(f"a model and its control must both take several views, of one scale; these take {counts}")
    adapters = [[recipe.adapters for recipe in recipes_of(each)] for each in (model, control)]
    if adapters[0] != adapters[1]:
        raise DataError(
            "a control must have the adapters of its model, but these differ:",
            problems=[
                ", ".join(f"{config.kind}: {config.settings}" for configs in each for config in configs)
                for each in adapters
            ],
        )


def trained_otherwise(model: object, control: object) -> tuple[str, ...]:
    """Return a remark on the settings in which a control was trained otherwise than its model; empty if there are none.

    The batch and the calibration of a control are twice its model's, because each view is a sample.
    """
    found: list[str] = []
    for ours, theirs in zip(recipes_of(model), recipes_of(control), strict=False):
        pairs = {name: (getattr(ours.training, name), getattr(theirs.training, name)) for name in _TRAINED_ALIKE}
        found += [f"{name}: {one!r}, of the control {other!r}" for name, (one, other) in pairs.items() if one != other]
        for name in ("batch", "calibration"):
            count, of_control = getattr(ours.training, name), getattr(theirs.training, name)
            if of_control != 2 * count:
                found.append(f"{name}: {count}, of the control {of_control}, not {2 * count}")
    differing = "; ".join(found)
    return (f"the control was trained otherwise, so the difference to it proves little: {differing}",) if found else ()
