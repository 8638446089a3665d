"""An adapted model beside its frozen base, bicubic, and itself without the other view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from torch import nn

from ..data import Example
from ..errors import DataError
from ..facts import Backbone
from ..metrics import Column, Protocol, psnr
from ..model import disabled
from ..views import StereoModel
from .measure import Upscale, by_bicubic, by_network, by_network_alone, measure
from .report import aligned

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
    """PSNR in dB of one scene's views, RGB, whole image, no shave."""

    scene: str
    left_db: float
    right_db: float

    @property
    def mean_db(self) -> float:
        """(L+R)/2."""
        return (self.left_db + self.right_db) / 2


def mean_db(scores: Iterable[Score]) -> float:
    """The mean of (L+R)/2 over scenes."""
    return fmean(s.mean_db for s in scores)


def score(model: nn.Module, pair: Example, *, backbone: Backbone, other_view: OtherView = "other") -> Score:
    """PSNR of a network on one scene.

    Args:
        model: A stereo model or single-image network.
        pair: A scene of two views.
        backbone: The facts of its network.
        other_view: `same` gives the network each view twice, instead of the pair: what is lost is what the network
            takes from the other view.
    """
    upscale = by_network_alone(model, backbone) if other_view == "same" else by_network(model, backbone)
    return _score(upscale, pair, backbone.scale)


def _score(upscale: Upscale, pair: Example, scale: int) -> Score:
    (row,) = measure(upscale, [pair], scale=scale, protocol=_EACH_VIEW).rows
    return Score(scene=row.scene, left_db=row.values[0], right_db=row.values[1])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One set of scenes: bicubic, the frozen network, the adapted one, and the adapted one fed each view twice."""

    bicubic: tuple[Score, ...]
    frozen: tuple[Score, ...]
    adapted: tuple[Score, ...]
    same_view: tuple[Score, ...]

    def means_db(self) -> dict[str, float]:
        """Mean (L+R)/2 of each; `same_view` is left out for networks that see one view only."""
        rows = {"bicubic": self.bicubic, "frozen": self.frozen, "adapted": self.adapted, "same view": self.same_view}
        return {name: mean_db(scores) for name, scores in rows.items() if scores}

    def __str__(self) -> str:
        names = [n for n in ("bicubic", "frozen", "adapted", "same_view") if getattr(self, n)]
        columns = [[s.mean_db for s in getattr(self, n)] for n in names]
        rows = [*zip((s.scene for s in self.frozen), *columns, strict=True), ("mean", *map(fmean, columns))]
        heading = ["PSNR in dB, (L+R)/2", *(n.replace("_", " ") for n in names)]
        return aligned([heading, *([scene, *(f"{v:.3f}" for v in values)] for scene, *values in rows)])


def compare(
    model: nn.Module,
    pairs: Sequence[Example],
    *,
    backbone: Backbone,
    advance: Callable[[str], None] = lambda note: None,
) -> Comparison:
    """Measure an adapted model against its frozen base on the same scenes.

    Args:
        model: Adapted.
        pairs: At least one.
        backbone: The facts of its network.
        advance: Called with the scene's name after each scene.

    Raises:
        DataError: There are no scenes, or a scene cannot be run; no scene is ever left out of a mean.
    """
    if not pairs:
        raise DataError("there are no scenes to measure on")
    rows: dict[str, list[Score]] = {"bicubic": [], "frozen": [], "adapted": [], "same_view": []}
    for pair in pairs:
        rows["bicubic"].append(_score(by_bicubic(backbone.scale), pair, backbone.scale))
        with disabled(model):
            rows["frozen"].append(score(model, pair, backbone=backbone))
        rows["adapted"].append(score(model, pair, backbone=backbone))
        if isinstance(model, StereoModel):
            rows["same_view"].append(score(model, pair, backbone=backbone, other_view="same"))
        advance(pair.name)
    return Comparison(**{name: tuple(scores) for name, scores in rows.items()})
