"""Self-ensemble: transform the views in several ways, undo the transform on each result, and average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from ...core.attachment.views import StereoModel
from .network import Views, multi_view


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One transform of the views: transpose, then flip, then permute channels, then swap views.

    Attributes:
        transpose: True to exchange rows and columns.
        flip_rows: True to flip top to bottom.
        flip_columns: True to flip left to right.
        channels: Indices of the channels that come first, second and third; None for unchanged.
        swap: True to reverse the order of the views, so that the right one goes in as the left one.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    channels: tuple[int, int, int] | None = None
    swap: bool = False

    @property
    def _flips(self) -> list[int]:
        return [dim for dim, flipped in ((-2, self.flip_rows), (-1, self.flip_columns)) if flipped]

    def apply(self, views: Views) -> Views:
        """Transform the views."""
        views = tuple(v.mT if self.transpose else v for v in views)
        views = tuple(v.flip(self._flips) if self._flips else v for v in views)
        if self.channels is not None:
            views = tuple(v[:, list(self.channels)] for v in views)
        return views[::-1] if self.swap else views

    def add(self, results: Views, sums: Sequence[Tensor], *, top: int, left: int) -> None:
        """Undo the transform on one part of the results and add it to the sums; pixels outside `sums` are dropped.

        Args:
            results: Part of each view's result, (N,C,h,w), transformed.
            sums: One (N,C,H,W) tensor per view, not transformed; updated in place.
            top: First row of the part in the transformed image.
            left: First column of the part in the transformed image.
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


UNCHANGED = Pass()

PAIR_PASSES = (
    UNCHANGED,
    Pass(flip_columns=True, swap=True),
    Pass(flip_rows=True),
    Pass(flip_rows=True, flip_columns=True, swap=True),
    Pass(channels=(2, 1, 0)),
    Pass(channels=(1, 2, 0)),
)
"""ASteISR's six passes. Mirroring puts the left camera on the right, so the views are swapped. Disparities must stay
horizontal, so nothing is transposed. Last are the colour orders B, G, R and G, B, R."""

IMAGE_PASSES = tuple(Pass(transpose=t, flip_rows=r, flip_columns=c) for t, r, c in product((False, True), repeat=3))
"""Passes for single images: the eight symmetries of the square (EDSR, CVPR workshops 2017)."""

VIEW_PASSES = tuple(p for p in PAIR_PASSES if not p.swap)
"""Passes of `PAIR_PASSES` that keep the order of the views, for multi-view models that are not stereo: the order of
their views in a mirrored scene is unknown."""

COLOURS = 3
"""Number of channels that passes permute; for images with another number these passes are left out."""


def passes(module: nn.Module, channels: int, *, ensemble: bool) -> tuple[Pass, ...]:
    """Choose the passes for a model: one without `ensemble`, else those for its sort of views."""
    if not ensemble:
        return (UNCHANGED,)
    model = multi_view(module)
    if model is None:
        return IMAGE_PASSES
    chosen = PAIR_PASSES if isinstance(model, StereoModel) else VIEW_PASSES
    return tuple(p for p in chosen if p.channels is None or channels == COLOURS)
