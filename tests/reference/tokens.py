"""Attention with extra keys and values, one window and one head after the other: slow, plain, no code of lowpeft.

Prefix tuning: softmax(q·[k; K]) [v; V]. VPT: the same with K = LN(E) W_k and V = LN(E) W_v. The gate g mixes the result
with that of attention without them: a0 + g (a1 - a0).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Part:
    """A share of the channels, with windows and heads of its own; the logits are scale · products, or cosines.

    `masked`: a pair of positions that only a shift made neighbours gets -100.
    """

    heads: int
    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    scale: float = 1.0
    cosine: Tensor | None = None
    masked: bool = True
    bias: Tensor | None = None
    """(heads, queries, keys)."""


def softmax(logits: Tensor) -> Tensor:
    """Over the last dimension."""
    powers = (logits - logits.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def region(at: int, side: int, window: int, shift: int) -> int:
    """0 for a row in front of the last window, 1 for a row in it that was not moved around, 2 for one that was."""
    return 0 if at < side - window else 1 if at < side - shift else 2


def attend(maps: tuple[Tensor, Tensor, Tensor], extra: tuple[Tensor, Tensor] | None, part: Part) -> Tensor:
    """Attention of one image in windows, (H,W,C), on maps of q, k and v that are shifted and padded already.

    `extra`: keys and values (P,C) that every window sees.
    """
    height, width, channels = maps[0].shape
    (h, w), size = part.window, channels // part.heads
    rows = torch.tensor([region(y, height, h, part.shift[0]) for y in range(height)])
    columns = torch.tensor([region(x, width, w, part.shift[1]) for x in range(width)])
    labels = (3 * rows[:, None] + columns) * (part.masked and any(part.shift))
    result = torch.zeros_like(maps[0])
    for top in range(0, height, h):
        for left in range(0, width, w):
            at = (slice(top, top + h), slice(left, left + w))
            apart = labels[at].reshape(-1, 1) != labels[at].reshape(1, -1)
            for head in range(part.heads):
                own = slice(head * size, (head + 1) * size)
                q, k, v = (m[at][..., own].reshape(h * w, size) for m in maps)
                if extra is not None:
                    k, v = (torch.cat((t, more[:, own])) for t, more in zip((k, v), extra, strict=True))
                logits = part.scale * q @ k.T if part.cosine is None else part.cosine[head] * (unit(q) @ unit(k).T)
                logits[:, : h * w] += -100.0 * apart + (part.bias[head] if part.bias is not None else 0.0)
                result[at][..., own] = (softmax(logits) @ v).view(h, w, size)
    return result


def position_bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Swin's bias, (heads, L, L): a row of the table for each offset of two positions."""
    h, w = window
    bias = table.new_zeros(table.shape[1], h * w, h * w)
    for i in range(h * w):
        for j in range(h * w):
            down, right = i // w - j // w, i % w - j % w
            bias[:, i, j] = table[(down + h - 1) * (2 * w - 1) + right + w - 1]
    return bias


def changed(
    maps: list[tuple[Tensor, Tensor, Tensor]],
    extra: tuple[Tensor, Tensor],
    parts: list[Part],
    output: Callable[[list[Tensor]], Tensor],
    gate: float,
) -> Tensor:
    """g (a1 - a0) of one image; each part has its maps, and its share of the channels of the extra keys and values."""
    shares = list(zip(*(t.chunk(len(parts), -1) for t in extra), strict=True))
    with_extra = output([attend(m, e, p) for m, e, p in zip(maps, shares, parts, strict=True)])
    without = output([attend(m, None, p) for m, p in zip(maps, parts, strict=True)])
    return gate * (with_extra - without)
