"""Feature layouts (order of batch, channels and image positions in a tensor), and features as adapters get them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PlanError

Size = tuple[int, int]
"""Height and width: of a feature map in positions, of an image in pixels."""


class Layout(StrEnum):
    """Order of a feature tensor's dimensions.

    N is the batch, C channels, H and W height and width, L = H·W tokens in row-major order. `WLC` is for groups of L
    tokens of which an image has several (Swin's windows): the first axis is not the batch, and the tokens have no known
    image rows.
    """

    NCHW = "NCHW"
    NHWC = "NHWC"
    NLC = "NLC"
    LNC = "LNC"
    WLC = "WLC"

    @property
    def is_tokens(self) -> bool:
        """True if height and width are flattened into one token axis (NLC, LNC)."""
        return self in (Layout.NLC, Layout.LNC)

    @property
    def counts_images(self) -> bool:
        """True if one dimension is the batch (all but WLC)."""
        return self is not Layout.WLC

    @property
    def batch_dim(self) -> int:
        """Index of the batch dimension.

        Raises:
            PlanError: The layout is WLC.
        """
        if not self.counts_images:
            raise PlanError(f"features of layout {self} have no batch dimension")
        return 1 if self is Layout.LNC else 0

    @property
    def channel_dim(self) -> int:
        """Index of the channel dimension."""
        return 1 if self is Layout.NCHW else -1


@dataclass(frozen=True)
class Features:
    """Features at one site of a network.

    Attributes:
        values: Feature tensor.
        layout: Layout of `values`.
        size: Height and width in positions; None if unknown.
        views: Number of consecutive batch entries that are views of one scene; 1 for single images.
    """

    values: Tensor
    layout: Layout
    size: Size | None = None
    views: int = 1

    @property
    def channels_last(self) -> Tensor:
        """Values with channels in the last dimension, sharing memory; for code that treats each position separately."""
        return self.values.movedim(1, -1) if self.layout is Layout.NCHW else self.values

    def from_channels_last(self, x: Tensor) -> Tensor:
        """Return a tensor shaped like `channels_last` in the original layout; the inverse of `channels_last`."""
        return x.movedim(x.dim() - 1, 1) if self.layout is Layout.NCHW else x

    @property
    def rows(self) -> Tensor:
        """Values as (N,H,W,C), sharing memory where possible.

        Raises:
            PlanError: The features are tokens and `size` does not fit their number, or they are windows.
        """
        x = self.values
        if self.layout in (Layout.NCHW, Layout.NHWC):
            return self.channels_last
        if self.layout is Layout.LNC:
            x = x.transpose(0, 1)
        if self.size is None or not self.layout.is_tokens or self.size[0] * self.size[1] != x.shape[1]:
            raise PlanError(
                f"this kind of adapter needs image rows, but the height and width of features of shape "
                f"{tuple(x.shape)} ({self.layout}) are not known (found {self.size})"
            )
        return x.reshape(x.shape[0], self.size[0], self.size[1], x.shape[2])

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return a tensor shaped like `rows` in the original layout; the inverse of `rows`."""
        if not self.layout.is_tokens:
            return self.from_channels_last(rows)
        tokens = rows.flatten(1, 2)
        return tokens.transpose(0, 1) if self.layout is Layout.LNC else tokens

    @property
    def rows_by_view(self) -> tuple[Tensor, ...]:
        """Tensors `rows` of each view, (N/V,H,W,C) for V views.

        Raises:
            PlanError: Same cases as for `rows`.
        """
        rows = self.rows
        return tuple(rows[i :: self.views] for i in range(self.views))

    def from_rows_by_view(self, rows: Iterable[Tensor]) -> Tensor:
        """Return the views' tensors as one tensor in the original layout; the inverse of `rows_by_view`."""
        return self.from_rows(torch.stack(tuple(rows), dim=1).flatten(0, 1))


class ExtraTokens(NamedTuple):
    """Keys and values that an adapter adds to attention.

    Attributes:
        keys: P keys per image, (N, P, C), or (1, P, C) for all images; the heads are concatenated along C.
        values: P values, shaped like `keys`.
        gate: Factor of the change in attention's output, a tensor that broadcasts to (N, 1, C).
        projected: True if keys and values are in the space of the network's projected keys and values. False if they
            are in the space of attention's input: the block applies its norm and its projections to them, to `keys`
            those of keys and to `values` those of values.
    """

    keys: Tensor
    values: Tensor
    gate: Tensor
    projected: bool = True


class Matches(NamedTuple):
    """Positions of the other view that an adapter of two views looks at, and how sure it is.

    Attributes:
        disparity: (N, H, W), in columns of the features: x_left - x_right of each position and its match in the other
            view, for the positions of both views. In a rectified pair it is positive.
        confidence: (N, H, W), 0..1: attention weight of the match.
    """

    disparity: Tensor
    confidence: Tensor


def find_size(arguments: Iterable[Any], tokens: int) -> Size | None:
    """Return the height and width among a module's call arguments: the first pair with product `tokens`, or None.

    A pair is a tuple or list of two positive integers, or two consecutive arguments that are positive integers.
    """
    listed = list(arguments)
    for index, argument in enumerate(listed):
        pair = argument if isinstance(argument, (tuple, list)) else listed[index : index + 2]
        if len(pair) == 2 and all(map(_is_side, pair)) and pair[0] * pair[1] == tokens:
            return int(pair[0]), int(pair[1])
    return None


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def square_size(tokens: int) -> Size | None:
    """Return the sides of the square grid with this many tokens; None if `tokens` is not a square number."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None
