"""Feature layouts: how a module's output tensor lays out batch, channels and image positions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from torch import Tensor

from .errors import PlanError

Size = tuple[int, int]
"""Height and width of a feature map, in positions."""


class Layout(StrEnum):
    """N is the batch, C channels, H and W rows and columns, L = H·W tokens in row-major order."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NLC = "NLC"
    LNC = "LNC"

    @property
    def is_tokens(self) -> bool:
        """Whether height and width are folded into one token axis."""
        return self in (Layout.NLC, Layout.LNC)

    @property
    def batch_dim(self) -> int:
        """The dimension that counts images."""
        return 1 if self is Layout.LNC else 0

    @property
    def channel_dim(self) -> int:
        """The dimension that counts channels."""
        return 1 if self is Layout.NCHW else -1


def channels_last(x: Tensor, layout: Layout) -> Tensor:
    """A view of `x` with channels in the last dimension."""
    return x.movedim(1, -1) if layout is Layout.NCHW else x


def channels_back(x: Tensor, layout: Layout) -> Tensor:
    """The inverse of `channels_last`."""
    return x.movedim(-1, 1) if layout is Layout.NCHW else x


def to_rows(x: Tensor, layout: Layout, size: Size | None) -> Tensor:
    """A view or copy of `x` as (N, H, W, C).

    Raises:
        PlanError: Tokens without a `size` that fits their number.
    """
    if not layout.is_tokens:
        return channels_last(x, layout)
    if layout is Layout.LNC:
        x = x.transpose(0, 1)
    if size is None or size[0] * size[1] != x.shape[1]:
        raise PlanError(
            f"tokens of shape {tuple(x.shape)} came without a height and width that fit (found {size}); "
            "a stereo adapter needs the image rows"
        )
    return x.reshape(x.shape[0], size[0], size[1], x.shape[2])


def from_rows(rows: Tensor, layout: Layout) -> Tensor:
    """The inverse of `to_rows`."""
    if not layout.is_tokens:
        return channels_back(rows, layout)
    tokens = rows.flatten(1, 2)
    return tokens.transpose(0, 1) if layout is Layout.LNC else tokens


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
