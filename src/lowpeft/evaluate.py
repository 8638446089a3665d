"""Running a network on whole scenes, and the PSNR of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Pair
from .errors import DataError
from .images import bicubic_upscale, to_float
from .metrics import psnr
from .model import disabled
from .stereo_model import StereoModel

OtherView = Literal["other", "same"]


def run_pair(model: nn.Module, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both views through a stereo model as a pair, or through a single-image network as a batch.

    Args:
        model: In the value range 0..1.
        left: (N,3,H,W), 0..1.
        right: The same shape.

    Returns:
        Two (N,3,sH,sW) tensors, not clamped.
    """
    if isinstance(model, StereoModel):
        first, second = model(left, right)
    else:
        first, second = model(torch.cat((left, right))).chunk(2)
    return first, second


def super_resolve(
    model: nn.Module, left: Tensor, right: Tensor, *, scale: int, size_multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """Whole views of any size, in eval mode and without gradients.

    Sides are reflected at the right and bottom up to a multiple of `size_multiple`, and cut back.

    Args:
        model: A stereo model or single-image network, in the value range 0..1.
        left: (3,H,W), 0..1, on any device.
        right: The same shape.
        scale: Output sides over input sides.
        size_multiple: What the network needs its input sides to be multiples of.

    Returns:
        Two (3, scale·H, scale·W) tensors on the CPU, clamped to 0..1.

    Raises:
        DataError: The views differ in size, or the network does not enlarge by `scale`.
    """
    if left.shape != right.shape:
        raise DataError(f"the views differ in size: {_size(left)} on the left, {_size(right)} on the right")
    height, width = left.shape[-2:]
    pad = (0, -width % size_multiple, 0, -height % size_multiple)
    mode = "reflect" if pad[1] < width and pad[3] < height else "replicate"
    device = next(model.parameters()).device
    views = [F.pad(v[None].to(device), pad, mode=mode) for v in (left, right)]
    flag = model.training
    model.eval()
    try:
        with torch.no_grad():
            results = [r[0].clamp(0, 1).cpu() for r in run_pair(model, *views)]
    finally:
        model.train(flag)
    wanted = (views[0].shape[-2] * scale, views[0].shape[-1] * scale)
    if results[0].shape[-2:] != wanted:
        raise DataError(f"the network gave {_size(results[0])}, which is not {scale} times its input {_size(views[0])}")
    first, second = (r[:, : height * scale, : width * scale] for r in results)
    return first, second


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


def score(
    model: nn.Module, pair: Pair, *, scale: int, size_multiple: int = 1, other_view: OtherView = "other"
) -> Score:
    """PSNR of a network on one scene.

    Args:
        model: A stereo model or single-image network.
        pair: With its HR views.
        scale: Of the network.
        size_multiple: What the network needs its input sides to be multiples of.
        other_view: `same` gives the network each view twice, instead of the pair: what is lost is what the network
            takes from the other view.
    """
    left, right = to_float(pair.lr_left), to_float(pair.lr_right)
    if other_view == "same":
        left_sr, _ = super_resolve(model, left, left, scale=scale, size_multiple=size_multiple)
        _, right_sr = super_resolve(model, right, right, scale=scale, size_multiple=size_multiple)
    else:
        left_sr, right_sr = super_resolve(model, left, right, scale=scale, size_multiple=size_multiple)
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
    scale: int,
    size_multiple: int = 1,
    advance: Callable[[str], None] = lambda note: None,
) -> Comparison:
    """Measure an adapted model against its frozen base on the same scenes.

    Args:
        model: Adapted, in the value range 0..1.
        pairs: At least one.
        scale: Of the network.
        size_multiple: What the network needs its input sides to be multiples of.
        advance: Called with the scene's name after each scene.

    Raises:
        DataError: There are no scenes, or a scene cannot be run; no scene is ever left out of a mean.
    """
    if not pairs:
        raise DataError("there are no scenes to measure on")
    rows: dict[str, list[Score]] = {"bicubic": [], "frozen": [], "adapted": [], "same_view": []}
    for pair in pairs:
        rows["bicubic"].append(score_bicubic(pair, scale=scale))
        with disabled(model):
            rows["frozen"].append(score(model, pair, scale=scale, size_multiple=size_multiple))
        rows["adapted"].append(score(model, pair, scale=scale, size_multiple=size_multiple))
        if isinstance(model, StereoModel):
            same = score(model, pair, scale=scale, size_multiple=size_multiple, other_view="same")
            rows["same_view"].append(same)
        advance(pair.name)
    return Comparison(**{name: tuple(scores) for name, scores in rows.items()})


def _size(view: Tensor) -> str:
    return f"{view.shape[-1]}x{view.shape[-2]} px"
