"""Self-ensemble: the same views seen in several ways, each result turned back, and their mean."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from ...core.attachment.views import StereoModel
from .network import Views, multi_view


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One way to look at the views: transposed, then flipped, then recoloured, then swapped.

    Attributes:
        name: For people.
        transpose: Rows become columns.
        flip_rows: Top to bottom.
        flip_columns: Left to right.
        channels: Which channel comes first, second and third; None for as they are.
        swap: The right view goes in as the left one.
    """

    name: str
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    channels: tuple[int, int, int] | None = None
    swap: bool = False

    @property
    def _flips(self) -> list[int]:
        return [dim for dim, flipped in ((-2, self.flip_rows), (-1, self.flip_columns)) if flipped]

    def there(self, views: Views) -> Views:
        """The views as this pass sees them."""
        views = tuple(v.mT if self.transpose else v for v in views)
        views = tuple(v.flip(self._flips) if self._flips else v for v in views)
        if self.channels is not None:
            views = tuple(v[:, list(self.channels)] for v in views)
        return views[::-1] if self.swap else views

    def add(self, results: Views, sums: Views, top: int, left: int) -> None:
        """Turn parts of the results back and add each to its place; what lies outside `sums` is left out.

        Args:
            results: A part of each view's result, (N,C,h,w), as this pass sees it.
            sums: One (N,C,H,W) per view, as the user sees it; written.
            top: The row where the part begins, as this pass sees it.
            left: The column where it begins.
        """
        for result, total in zip(results[::-1] if self.swap else results, sums, strict=True):
            place = total.mT if self.transpose else total
            height, width = place.shape[-2:]
            part = result[..., : height - top, : width - left]
            rows, columns = part.shape[-2:]
            if not rows or not columns:
                continue
            if self.channels is not None:
                part = part[:, torch.tensor(self.channels).argsort().tolist()]
            part = part.flip(self._flips) if self._flips else part
            y = height - top - rows if self.flip_rows else top
            x = width - left - columns if self.flip_columns else left
            place[..., y : y + rows, x : x + columns] += part.to(total.device, total.dtype)


PLAIN = Pass(name="as it is")

PAIR_PASSES = (
    PLAIN,
    Pass(name="mirrored, views swapped", flip_columns=True, swap=True),
    Pass(name="upside down", flip_rows=True),
    Pass(name="mirrored and upside down, views swapped", flip_rows=True, flip_columns=True, swap=True),
    Pass(name="B, G, R", channels=(2, 1, 0)),
    Pass(name="G, B, R", channels=(1, 2, 0)),
)
"""ASteISR's six. A mirrored left camera stands on the right; disparities stay horizontal, so nothing is transposed."""

IMAGE_PASSES = tuple(
    Pass(
        name=" ".join(w for w, on in (("transposed", t), ("upside down", r), ("mirrored", c)) if on) or PLAIN.name,
        transpose=t,
        flip_rows=r,
        flip_columns=c,
    )
    for t, r, c in product((False, True), repeat=3)
)
"""The eight symmetries of the square, for single images (EDSR, CVPR workshops 2017)."""

VIEW_PASSES = tuple(p for p in PAIR_PASSES if not p.swap)
"""Those of a pair that leave the views in their order, for models of other views than left and right: nothing says
which view takes which one's place in a mirrored scene."""

COLOURS = 3
"""Channels that can change places; images of other channels have the passes without."""


def passes(module: nn.Module, channels: int, *, ensemble: bool) -> tuple[Pass, ...]:
    """The ways to look at an image, or at the views of a scene, that a model is run by."""
    if not ensemble:
        return (PLAIN,)
    model = multi_view(module)
    if model is None:
        return IMAGE_PASSES
    chosen = PAIR_PASSES if isinstance(model, StereoModel) else VIEW_PASSES
    return tuple(p for p in chosen if p.channels is None or channels == COLOURS)


def mean_image(total: Tensor, count: int) -> Tensor:
    """The mean of so many passes, clamped to 0..1; writes `total`."""
    return (total.div_(count) if count > 1 else total).clamp_(0, 1)
