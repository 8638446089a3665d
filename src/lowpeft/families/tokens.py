"""Attention with extra keys and values, for the port `tokens` of block forwards.

Adapters at this port give P keys and P values per image, in the space of the base's projected keys and values: C
channels, with the heads concatenated. The base's projection is not applied to them. Every window gets the tokens of its
image, without position bias and unmasked. Attention's output becomes

    out + Σ gate · (attention with the adapter's tokens − attention without),

so a gate of zero gives the base bit for bit, and the order of adapters does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ports.layouts import ExtraTokens


def _change(
    key: Tensor, value: Tensor, attend: Callable[[Tensor, Tensor], Tensor], images: int, extras: Sequence[ExtraTokens]
) -> Tensor:
    """Return the change in attention's output that the tokens of all adapters cause, (B, L, C).

    Args:
        key: Keys of the base, (B, heads, L, d); B counts windows (or images), the windows of one image in a row.
        value: Values of the base, shaped like `key`.
        attend: Function from keys and values (B, heads, L + P, d) to attention's output (B, L, C).
        images: Number of images.
        extras: Tokens of each adapter.
    """

    def joined(own: Tensor, tokens: Tensor) -> Tensor:
        count, heads, _, width = own.shape
        each = tokens.to(own.dtype).expand(images, -1, -1).repeat_interleave(count // images, dim=0)
        return torch.cat((own, each.view(count, -1, heads, width).transpose(1, 2)), dim=2)

    without = attend(key, value)
    total = torch.zeros_like(without)
    for tokens in extras:
        change = attend(joined(key, tokens.keys), joined(value, tokens.values)) - without
        gated = change.view(images, -1, change.shape[-1]) * tokens.gate.to(change.dtype)
        total = total + gated.view(change.shape)
    return total


def window_change(
    attention: Any,
    windows: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int, int],
    extras: Sequence[ExtraTokens],
) -> Tensor:
    """Return the change in the output of Swin's window attention that extra tokens cause, (windows, L, C).

    Args:
        attention: Module with `qkv`, `num_heads`, `scale` and `proj`.
        windows: Input of attention, (windows, L, C), the windows of one image in a row.
        bias: Position bias, (heads, L, L).
        mask: Mask of shifted windows, (windows per image, L, L), or None. Windows of one region must have equal masks.
            The regions are: the last row, the last column, the corner where they meet, and the rest.
        grid: Number of images, and numbers of rows and columns of windows per image.
        extras: Tokens of each adapter.
    """
    count, length, _ = windows.shape
    query, key, value = attention.qkv(windows).reshape(count, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)

    def attend(keys: Tensor, values: Tensor) -> Tensor:
        out = _attend_in_grid(query, keys, values, bias, mask, grid, attention.scale)
        projected: Tensor = attention.proj(out.transpose(1, 2).reshape(windows.shape))
        return projected

    return _change(key, value, attend, grid[0], extras)


def _attend_in_grid(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int, int],
    scale: float,
) -> Tensor:
    """Return attention in windows. Windows of one mask run together, so no mask as large as all scores is needed."""
    extra = key.shape[2] - query.shape[2]
    bias = F.pad(bias.to(query.dtype), (0, extra))
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None], scale=scale)
    _, rows, columns = grid
    parts = [t.reshape(*grid, *t.shape[1:]) for t in (query, key, value)]
    masks = F.pad(mask.to(query.dtype), (0, extra)).view(rows, columns, *bias.shape[1:])
    bands = []
    for down in (slice(0, rows - 1), slice(rows - 1, rows)):
        band = []
        for right in (slice(0, columns - 1), slice(columns - 1, columns)):
            q, k, v = (t[:, down, right] for t in parts)
            if q.numel():
                added = bias + masks[down, right][0, 0]
                out = F.scaled_dot_product_attention(
                    q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2), attn_mask=added[None], scale=scale
                )
                band.append(out.view(q.shape))
        if band:
            bands.append(torch.cat(band, dim=2))
    return torch.cat(bands, dim=1).flatten(0, 2)


def multihead_change(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, extras: Sequence[ExtraTokens]
) -> Tensor:
    """Return the change in the output of an `nn.MultiheadAttention` that extra tokens cause, (L, N, C).

    Args:
        attention: Attention module with the batch second; queries, keys and values have its width C.
        query: Queries before the projection, (L, N, C).
        key: Keys before the projection, (L, N, C).
        value: Values before the projection, (L, N, C).
        extras: Tokens of each adapter.
    """
    length, images, channels = query.shape
    weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)

    def heads(x: Tensor, i: int) -> Tensor:
        projected = F.linear(x, weights[i], biases[i])
        return projected.view(*x.shape[:2], attention.num_heads, -1).permute(1, 2, 0, 3)

    queries = heads(query, 0)

    def attend(keys: Tensor, values: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(images, length, channels)
        projected: Tensor = attention.out_proj(out)
        return projected

    return _change(heads(key, 1), heads(value, 2), attend, images, extras).transpose(0, 1)
