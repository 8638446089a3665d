"""Feature layouts: how a tensor lays out batch, channels and image positions, and features as adapters see them."""

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
"""Height and width of a feature map, in positions."""


class Layout(StrEnum):
    """N is the batch, C channels, H and W rows and columns, L = H·W tokens in row-major order, W windows of L tokens.

    `WLC` stands for groups of tokens of which an image has several (Swin's windows): their first axis is not the batch,
    and their rows cannot be told.
    """

    NCHW = "NCHW"
    NHWC = "NHWC"
    NLC = "NLC"
    LNC = "LNC"
    WLC = "WLC"

    @property
    def is_tokens(self) -> bool:
        """Whether height and width are folded into one token axis."""
        return self in (Layout.NLC, Layout.LNC)

    @property
    def counts_images(self) -> bool:
        """Whether one of the dimensions is the batch."""
        return self is not Layout.WLC

    @property
    def batch_dim(self) -> int:
        """The dimension that counts images."""
        if not self.counts_images:
            raise PlanError(f"features of layout {self} have no dimension that counts images")
        return 1 if self is Layout.LNC else 0

    @property
    def channel_dim(self) -> int:
        """The dimension that counts channels."""
        return 1 if self is Layout.NCHW else -1


@dataclass(frozen=True)
class Features:
    """Features at one place of a network.

    Attributes:
        values: The tensor, in the given layout.
        layout: Layout of `values`.
        size: Height and width in positions; None where it is not known.
        views: How many neighbours in the batch are views of one scene; 1 for single images.
    """

    values: Tensor
    layout: Layout
    size: Size | None = None
    views: int = 1

    @property
    def channels_last(self) -> Tensor:
        """A view of the values with channels in the last dimension, for what works on each position by itself."""
        return self.values.movedim(1, -1) if self.layout is Layout.NCHW else self.values

    def from_channels_last(self, x: Tensor) -> Tensor:
        """The inverse of `channels_last`, for a tensor of its shape."""
        return x.movedim(-1, 1) if self.layout is Layout.NCHW else x

    @property
    def rows(self) -> Tensor:
        """A view or copy of the values as (N,H,W,C).

        Raises:
            PlanError: Tokens without a size that fits their number, or windows.
        """
        x = self.values
        if self.layout in (Layout.NCHW, Layout.NHWC):
            return self.channels_last
        if self.layout is Layout.LNC:
            x = x.transpose(0, 1)
        if self.size is None or not self.layout.is_tokens or self.size[0] * self.size[1] != x.shape[1]:
            raise PlanError(
                f"features of shape {tuple(x.shape)} ({self.layout}) came without a height and width that fit (found "
                f"{self.size}), but this kind of adapter needs image rows"
            )
        return x.reshape(x.shape[0], self.size[0], self.size[1], x.shape[2])

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`, for a tensor of its shape."""
        if not self.layout.is_tokens:
            return self.from_channels_last(rows)
        tokens = rows.flatten(1, 2)
        return tokens.transpose(0, 1) if self.layout is Layout.LNC else tokens

    @property
    def rows_by_view(self) -> tuple[Tensor, ...]:
        """`rows` of each view, (N/V,H,W,C).

        Raises:
            PlanError: As `rows`.
        """
        rows = self.rows
        return tuple(rows[i :: self.views] for i in range(self.views))

    def from_rows_by_view(self, rows: Iterable[Tensor]) -> Tensor:
        """The inverse of `rows_by_view`."""
        return self.from_rows(torch.stack(tuple(rows), dim=1).flatten(0, 1))


class ExtraTokens(NamedTuple):
    """Keys and values that an adapter adds to attention, in the space of the network's own.

    Attributes:
        keys: (N, P, C), or (1, P, C) for all images; the heads lie side by side in C.
        values: As `keys`.
        gate: Factor of what they change in attention's output, as a tensor that broadcasts to (N, 1, C).
    """

    keys: Tensor
    values: Tensor
    gate: Tensor


def find_size(arguments: Iterable[Any], tokens: int) -> Size | None:
    """The height and width that a module was called with: the first pair of integers whose product is `tokens`.

    A pair is a tuple or list of two integers, or two integers that follow each other.
    """
    previous: int | None = None
    for argument in arguments:
        if isinstance(argument, (tuple, list)) and len(argument) == 2 and all(map(_is_side, argument)):
            if argument[0] * argument[1] == tokens:
                return int(argument[0]), int(argument[1])
            previous = None
        elif _is_side(argument):
            if previous is not None and previous * argument == tokens:
                return previous, argument
            previous = argument
        else:
            previous = None
    return None


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def square_size(tokens: int) -> Size | None:
    """The square grid of that many tokens, if there is one."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None
