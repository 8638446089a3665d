"""Measuring networks on whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from torch import nn

from .backbones import Backbone
from .data import Pair
from .errors import DataError
from .images import bicubic_upscale, to_float
from .inference import super_resolve
from .metrics import psnr
from .model import disabled
from .stereo_model import StereoModel

OtherView = Literal["other", "same"]


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


def score(model: nn.Module, pair: Pair, *, backbone: Backbone, other_view: OtherView = "other") -> Score:
    """PSNR of a network on one scene.

    Args:
        model: A stereo model or single-image network.
        pair: With its HR views.
        backbone: The facts of its network.
        other_view: `same` gives the network each view twice, instead of the pair: what is lost is what the network
            takes from the other view.
    """
    left, right = to_float(pair.lr_left), to_float(pair.lr_right)
    if other_view == "same":
        left_sr, _ = super_resolve(model, left, left, backbone=backbone)
        _, right_sr = super_resolve(model, right, right, backbone=backbone)
    else:
        left_sr, right_sr = super_resolve(model, left, right, backbone=backbone)
    return Score(scene=pair.name, left_db=psnr(left_sr, pair.hr_left), right_db=psnr(right_sr, pair.hr_right))


def score_bicubic(pair: Pair, *, scale: int) -> Score:
    """PSNR of plain bicubic enlargement on one scene."""
    left, right = (bicubic_upscale(v, scale) for v in (pair.lr_left, pair.lr_right))
    return Score(scene=pair.name, left_db=psnr(left, pair.hr_left), right_db=psnr(right, pair.hr_right))


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
        width = max(len(s.scene) for s in self.frozen)
        lines = [f"{'PSNR in dB, (L+R)/2':<{width}}  " + "  ".join(f"{n.replace('_', ' '):>9}" for n in names)]
        for i, first in enumerate(self.frozen):
            values = [getattr(self, n)[i].mean_db for n in names]
            lines.append(f"{first.scene:<{width}}  " + "  ".join(f"{v:>9.3f}" for v in values))
        means = [mean_db(getattr(self, n)) for n in names]
        return "\n".join([*lines, f"{'mean':<{width}}  " + "  ".join(f"{v:>9.3f}" for v in means)])


def compare(
    model: nn.Module,
    pairs: Sequence[Pair],
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
        rows["bicubic"].append(score_bicubic(pair, scale=backbone.scale))
        with disabled(model):
            rows["frozen"].append(score(model, pair, backbone=backbone))
        rows["adapted"].append(score(model, pair, backbone=backbone))
        if isinstance(model, StereoModel):
            same = score(model, pair, backbone=backbone, other_view="same")
            rows["same_view"].append(same)
        advance(pair.name)
    return Comparison(**{name: tuple(scores) for name, scores in rows.items()})
