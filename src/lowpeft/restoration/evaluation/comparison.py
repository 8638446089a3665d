"""Comparison of an adapted model with its frozen base, with bicubic, and with itself without the other view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from ... import tables
from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...core.operations.switching import disabled
from ...errors import DataError
from ..data import Example
from ..inference.network import multi_view
from ..metrics import Column, Protocol, psnr
from .measure import Enhance, by_bicubic, by_network, by_network_alone, measure

OtherView = Literal["other", "same"]

_EACH_VIEW = Protocol(
    name="each view",
    views=2,
    summary="PSNR in dB of each view, uint8 RGB, whole",
    columns=(
        Column(name="left", digits=3, measure=lambda sr, hr, scale: psnr(sr[0], hr[0])),
        Column(name="right", digits=3, measure=lambda sr, hr, scale: psnr(sr[1], hr[1])),
    ),
    source="the (L+R)/2 of the stereo tables is their mean",
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """PSNR in dB of each view of one scene, on RGB and the whole image, without shaving."""

    scene: str
    left_db: float
    right_db: float

    @property
    def mean_db(self) -> float:
        """Mean of both views, (L+R)/2, in dB."""
        return (self.left_db + self.right_db) / 2


def mean_db(scores: Iterable[Score]) -> float:
    """Return the mean of (L+R)/2 over scenes, in dB."""
    return fmean(s.mean_db for s in scores)


def score(model: object, pair: Example, *, other_view: OtherView = "other") -> Score:
    """Return the PSNR of a network on one scene.

    Args:
        model: A stereo model or single-image network (a `Backbone` or a module).
        pair: A scene of two views.
        other_view: `other` gives the network the pair. `same` pairs each view with itself; the drop in PSNR is the
            other view's contribution.
    """
    return _score(by_network_alone(model) if other_view == "same" else by_network(model), pair)


def _score(enhance: Enhance, pair: Example) -> Score:
    scale = pair.hr[0].shape[-1] // pair.lr[0].shape[-1]
    (row,) = measure(enhance, [pair], scale=scale, protocol=_EACH_VIEW).rows
    return Score(scene=row.scene, left_db=row.values[0], right_db=row.values[1])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores on one set of scenes: bicubic, frozen network, adapted network, adapted network with each view twice."""

    bicubic: tuple[Score, ...]
    frozen: tuple[Score, ...]
    adapted: tuple[Score, ...]
    same_view: tuple[Score, ...]

    def means_db(self) -> dict[str, float]:
        """Return the mean (L+R)/2 in dB of each method; `same view` is missing for networks that see one view only."""
        rows = {"bicubic": self.bicubic, "frozen": self.frozen, "adapted": self.adapted, "same view": self.same_view}
        return {name: mean_db(scores) for name, scores in rows.items() if scores}

    def __str__(self) -> str:
        names = [n for n in ("bicubic", "frozen", "adapted", "same_view") if getattr(self, n)]
        columns = [[s.mean_db for s in getattr(self, n)] for n in names]
        rows = [*zip((s.scene for s in self.frozen), *columns, strict=True), ("mean", *map(fmean, columns))]
        heading = ["PSNR in dB, (L+R)/2", *(n.replace("_", " ") for n in names)]
        return tables.text([heading, *([scene, *(f"{v:.3f}" for v in values)] for scene, *values in rows)])


def compare(
    model: object,
    pairs: Sequence[Example],
    *,
    advance: Callable[[str], None] = lambda note: None,
) -> Comparison:
    """Measure an adapted model against its frozen base on the same scenes.

    Args:
        model: The adapted model.
        pairs: One or more scenes of two views.
        advance: Called with the scene's name after each scene.

    Raises:
        DataError: There are no scenes, or a scene cannot be run; no scene is ever left out of a mean.
    """
    if not pairs:
        raise DataError("there are no scenes to measure on")
    bicubic, network, alone = by_bicubic(image_facts(model).scale), by_network(model), by_network_alone(model)
    rows: dict[str, list[Score]] = {"bicubic": [], "frozen": [], "adapted": [], "same_view": []}
    for pair in pairs:
        rows["bicubic"].append(_score(bicubic, pair))
        with disabled(model):
            rows["frozen"].append(_score(network, pair))
        rows["adapted"].append(_score(network, pair))
        if multi_view(module_of(model)) is not None:
            rows["same_view"].append(_score(alone, pair))
        advance(pair.name)
    return Comparison(**{name: tuple(scores) for name, scores in rows.items()})
