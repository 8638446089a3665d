"""Attention with extra keys and values, for the port `tokens` of block forwards.

Adapters at this port give P keys and P values per image (`ExtraTokens`): in the space of the base's projected keys and
values (C channels, with the heads concatenated), or unprojected, in the space of attention's input before its norm. The
block's own norm and projection, with their adapters, then make keys and values of them. Every window gets the tokens of
its image, without position bias and unmasked. Attention's output becomes

    out + Σ gate · (attention with the adapter's tokens − attention without),

so a gate of zero gives the base bit for bit, and the order of adapters does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ports.layouts import ExtraTokens

Project = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from unprojected tokens (N, P, C) to their keys and values, (N, P, C) each."""


@dataclass(frozen=True)
class Windows:
    """Queries, keys and values of a block's attention in windows, and what is added to its scores.

    Attributes:
        query, key, value: (B, heads, L, d); B counts windows, those of one image in a row.
        grid: Number of images, and numbers of rows and columns of windows per image; 1 and 1 for global attention.
        scale: Factor of the products of queries and keys.
        cosine: Factor of the cosines of queries and keys, (heads, 1, 1), in place of products; None for products.
        bias: Position bias, (heads, L, L), or None.
        mask: Mask of shifted windows, (windows per image or B, L, L), or None.
        by_region: True if windows of one region have equal masks. The regions are: the last row, the last column, the
            corner where they meet, and the rest.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    grid: tuple[int, int, int]
    scale: float = 1.0
    cosine: Tensor | None = None
    bias: Tensor | None = None
    mask: Tensor | None = None
    by_region: bool = True

    def attended(self, keys: Tensor | None, values: Tensor | None) -> Tensor:
        """Return attention (B, L, heads·d) before the output projection, with extra keys and values (N, P, heads·d)."""
        query, key, dtype = self.query, self._joined(self.key, keys), self.query.dtype
        if self.cosine is not None:
            query = (F.normalize(query, dim=-1) * self.cosine).to(dtype)
            key = F.normalize(key, dim=-1).to(dtype)
        out = self._in_grid(query, key, self._joined(self.value, values))
        return out.transpose(1, 2).flatten(2)

    def _joined(self, own: Tensor, extra: Tensor | None) -> Tensor:
        if extra is None:
            return own
        count, heads, _, width = own.shape
        each = extra.to(own.dtype).repeat_interleave(count // self.grid[0], dim=0)
        return torch.cat((own, each.view(count, extra.shape[1], heads, width).transpose(1, 2)), dim=2)

    def _in_grid(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return attention. Windows of one mask run together, so no mask as large as all scores is needed."""
        extra, length = key.shape[2] - query.shape[2], query.shape[2]
        bias = query.new_zeros(1, length, length) if self.bias is None else self.bias.to(query.dtype)
        if self.mask is None:
            given = None if self.bias is None else F.pad(bias, (0, extra))[None]
            return F.scaled_dot_product_attention(query, key, value, attn_mask=given, scale=self.scale)
        masks = self.mask.to(query.dtype)
        if not self.by_region:
            given = F.pad(bias + masks[:, None], (0, extra)).repeat(len(query) // len(masks), 1, 1, 1)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=given, scale=self.scale)
        _, rows, columns = self.grid
        parts = [t.reshape(*self.grid, *t.shape[1:]) for t in (query, key, value)]
        bands = []
        for down in (slice(0, rows - 1), slice(rows - 1, rows)):
            band = []
            for right in (slice(0, columns - 1), slice(columns - 1, columns)):
                q, k, v = (t[:, down, right] for t in parts)
                if q.numel():
                    given = F.pad(bias + masks.view(rows, columns, length, length)[down, right][0, 0], (0, extra))[None]
                    q, k, v = (t.flatten(0, 2) for t in (q, k, v))
                    out = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=self.scale)
                    band.append(out.view(*parts[0][:, down, right].shape))
            if band:
                bands.append(torch.cat(band, dim=2))
        return torch.cat(bands, dim=1).flatten(0, 2)


def change(
    parts: Sequence[Windows],
    output: Callable[[list[Tensor]], Tensor],
    project: Project,
    like: Tensor,
    extras: Sequence[ExtraTokens],
) -> Tensor:
    """Return the change in attention's output that the tokens of all adapters cause, shaped like that output.

    Args:
        parts: Parts of attention; each has an equal share of the channels, in order.
        output: Function from what each part attends to, (B, L, C / parts), to attention's output. Its first dimension
            counts images or their windows, its last one channels.
        project: Function from unprojected tokens to keys and values.
        like: Input of attention, whose dtype unprojected tokens get.
        extras: Tokens of each adapter.
    """
    images = parts[0].grid[0]

    def attend(keys: Tensor | None, values: Tensor | None) -> Tensor:
        shares = [[None] * len(parts) if t is None else t.chunk(len(parts), -1) for t in (keys, values)]
        return output([part.attended(k, v) for part, k, v in zip(parts, *shares, strict=True)])

    without = attend(None, None)
    total = torch.zeros_like(without)
    for tokens in extras:
        keys, values = (t.expand(images, -1, -1) for t in (tokens.keys, tokens.values))
        if not tokens.projected:
            keys, values = _projected(keys.to(like.dtype), values.to(like.dtype), project)
        difference = attend(keys, values) - without
        gated = difference.reshape(images, -1, difference.shape[-1]) * tokens.gate.to(difference.dtype)
        total = total + gated.view(difference.shape)
    return total


def _projected(keys: Tensor, values: Tensor, project: Project) -> tuple[Tensor, Tensor]:
    return project(keys)[0], project(values)[1]


def of_qkv(layer: Callable[[Tensor], Tensor], norm: Callable[[Tensor], Tensor] | None = None) -> Project:
    """Return the projection of a layer that gives queries, keys and values, after a norm if there is one."""

    def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
        _, keys, values = layer(tokens if norm is None else norm(tokens)).chunk(3, -1)
        return keys, values

    return project


def in_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return projected (B, L, 3C) as the queries, keys and values of `Windows`, (B, heads, L, d) each."""
    query, key, value = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
    return query, key, value


def window_change(
    attention: Any,
    windows: Tensor,
    norm: nn.Module,
    bias: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int, int],
    extras: Sequence[ExtraTokens],
) -> Tensor:
    """Return the change in the output of Swin's window attention that extra tokens cause, (windows, L, C).

    Args:
        attention: Module with `qkv`, `num_heads`, `scale` and `proj`.
        windows: Input of attention, (windows, L, C), the windows of one image in a row.
        norm: Norm in front of attention.
        bias: Position bias, (heads, L, L).
        mask: Mask as in `Windows`, equal in all windows of a region, or None.
        grid: Grid as in `Windows`.
        extras: Tokens of each adapter.
    """
    own = in_heads(attention.qkv(windows), attention.num_heads)
    parts = Windows(*own, grid=grid, scale=attention.scale, bias=bias, mask=mask)
    return change([parts], lambda out: attention.proj(out[0]), of_qkv(attention.qkv, norm), windows, extras)


def cosine_window_change(
    attention: Any, windows: Tensor, mask: Tensor | None, grid: tuple[int, int, int], extras: Sequence[ExtraTokens]
) -> Tensor:
    """Return the change in the output of Swin v2's window attention that extra tokens cause, (windows, L, C).

    The tokens' keys are normalised like the base's. Attention reads the residual stream without a norm, so unprojected
    tokens have none either.

    Args:
        attention: Module with `qkv`, `q_bias`, `v_bias`, `logit_scale`, `cpb_mlp`, `proj` and `num_heads`.
        windows: Input of attention, (windows, L, C), the windows of one image in a row.
        mask: Mask as in `Windows`, equal in all windows of a region, or None.
        grid: Grid as in `Windows`.
        extras: Tokens of each adapter.
    """

    def qkv(x: Tensor) -> Tensor:
        if attention.q_bias is None:
            return attention.qkv(x)  # type: ignore[no-any-return]
        bias = torch.cat((attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias))
        return F.linear(x, attention.qkv.weight, bias)

    cosine, bias = cosine_terms(attention, attention.cpb_mlp)
    own = in_heads(qkv(windows), attention.num_heads)
    parts = Windows(*own, grid=grid, cosine=cosine, bias=bias, mask=mask)
    return change([parts], lambda out: attention.proj(out[0]), of_qkv(qkv), windows, extras)


def cosine_terms(attention: Any, mlp: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factor of the cosines in Swin v2's attention, (heads, 1, 1), and the position bias, (heads, L, L)."""
    factor = attention.logit_scale.clamp(max=math.log(100.0)).exp()
    table = mlp(attention.relative_coords_table).flatten(0, -2)
    return factor, 16 * torch.sigmoid(table[attention.relative_position_index].permute(2, 0, 1))


def multihead_change(
    attention: Any,
    norm: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extras: Sequence[ExtraTokens],
) -> Tensor:
    """Return the change in the output of an `nn.MultiheadAttention` that extra tokens cause, (L, N, C).

    Args:
        attention: Attention module with the batch second; queries, keys and values have its width C.
        norm: Norm in front of attention.
        query: Queries before the projection, (L, N, C).
        key: Keys before the projection, (L, N, C).
        value: Values before the projection, (L, N, C).
        extras: Tokens of each adapter.
    """
    weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)

    def heads(x: Tensor, i: int) -> Tensor:
        projected = F.linear(x, weights[i], biases[i])
        return projected.view(*x.shape[:2], attention.num_heads, -1).permute(1, 2, 0, 3)

    def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed = norm(tokens)
        return F.linear(normed, weights[1], biases[1]), F.linear(normed, weights[2], biases[2])

    queries = heads(query, 0)
    grid, scale = (query.shape[1], 1, 1), queries.shape[-1] ** -0.5
    parts = Windows(queries, heads(key, 1), heads(value, 2), grid, scale)
    return change([parts], lambda out: attention.out_proj(out[0]), project, value, extras).transpose(0, 1)
