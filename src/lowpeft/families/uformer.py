"""Uformer (official code, spandrel)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ports.layouts import ExtraTokens, Layout
from .base import TOKENS, BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, in_windows, noise, position_bias, pre_norm_mlp
from .tokens import Windows, change

LEVELS = ("encoderlayer_{stage}", "conv", "decoderlayer_{stage}")
"""Paths of the levels, from the finest resolution down and up again."""


def _different(regions: Tensor, window: int) -> Tensor:
    """Return -100 for pairs of positions of a window that are in different regions of a map (1,H,W,1), else 0."""
    _, height, width, _ = regions.shape
    grid = regions.view(height // window, window, width // window, window).permute(0, 2, 1, 3)
    flat = grid.reshape(-1, window * window)
    difference = flat.unsqueeze(1) - flat.unsqueeze(2)
    return difference.masked_fill(difference != 0, -100.0).masked_fill(difference == 0, 0.0)


def _mask(block: Any, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor | None:
    """Return the mask to add to the scores of each window, from the image's mask and for windows that wrap around."""
    total: Tensor | None = None
    if mask is not None:
        rows = F.interpolate(mask, size=size).permute(0, 2, 3, 1)
        window = block.win_size
        grid = rows.view(rows.shape[0], size[0] // window, window, size[1] // window, window, 1)
        flat = grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window)
        pairs = flat.unsqueeze(2) * flat.unsqueeze(1)
        total = pairs.masked_fill(pairs != 0, -100.0).masked_fill(pairs == 0, 0.0)
    if block.shift_size > 0:
        regions = torch.zeros((1, *size, 1)).type_as(x)
        bands = (
            slice(0, -block.win_size),
            slice(-block.win_size, -block.shift_size),
            slice(-block.shift_size, None),
        )
        for i, down in enumerate(bands):
            for j, right in enumerate(bands):
                regions[:, down, right] = 3 * i + j
        wrapped = _different(regions, block.win_size)
        total = wrapped if total is None else total + wrapped
    return total


def lewin_forward(block: nn.Module, ports: Ports, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run Uformer's block: x + attention(norm1 x) in windows, then x + MLP(norm2 x).

    A block with a cross-modulator first adds cross-attention to it; the ports of attention do not include that.

    Args:
        block: LeWinTransformerBlock.
        ports: Adapters of the block.
        x: Tokens (N, L, C) of a square feature map, as the block assumes; its side is a multiple of the window's side.
        mask: Mask of the image, (N, 1, H', W'), or None.

    Source: Uformer (arXiv 2106.03106).
    """
    b: Any = block
    side = int(math.sqrt(x.shape[1]))
    size, scores = (side, side), _mask(b, x, (side, side), mask)
    if b.cross_modulator is not None:
        x = x + b.cross_attn(x, b.cross_modulator.weight)
    normed = b.norm1(x)

    extras = ports.tokens(TOKENS, normed, Layout.NLC, size) if ports.wants(TOKENS) else ()

    def attend(windows: Tensor) -> Tensor:
        if b.modulator is not None:
            windows = windows + b.modulator.weight
        out: Tensor = b.attn(windows, mask=scores)
        return out + _token_change(b, windows, scores, x.shape[0], extras, by_region=mask is None) if extras else out

    rows = normed.view(x.shape[0], side, side, x.shape[2])
    attended = in_windows(rows, b.win_size, b.shift_size, attend).view(x.shape)
    out = attention_added(x, b.drop_path(attended), normed, ports, Layout.NLC, size)
    return pre_norm_mlp(block, ports, out, size)


def _token_change(
    b: Any, windows: Tensor, mask: Tensor | None, images: int, extras: Sequence[ExtraTokens], *, by_region: bool
) -> Tensor:
    """Return the change in attention's output that extra tokens cause, (windows, L, C); tokens get no modulator."""
    attention, rows = b.attn, math.isqrt(len(windows) // images)

    def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
        _, key, value = attention.qkv(b.norm1(tokens))
        return key.transpose(1, 2).flatten(2), value.transpose(1, 2).flatten(2)

    query, key, value = attention.qkv(windows)
    bias, grid = position_bias(attention, attention.relative_position_index), (images, rows, rows)
    parts = Windows(query, key, value, grid, attention.scale, bias=bias, mask=mask, by_region=by_region)
    return change([parts], lambda out: attention.proj(out[0]), project, windows, extras)


def lewin_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x2 windows."""
    b: Any = block
    weight = b.norm1.weight
    return (noise(weight, 1, 4 * b.win_size**2, weight.shape[0]),)


LEWIN = BlockForward(name="uformer.lewin", forward=lewin_forward, ports=BLOCK_PORTS | {TOKENS}, example=lewin_example)


def _facts(network: Any) -> dict[str, Any]:
    """Return the facts. Each level halves the sides; a level's window is smaller if the training size was smaller."""
    levels = [*(f"encoderlayer_{i}" for i in range(network.num_enc_layers)), "conv"]
    windows = [network.get_submodule(f"{level}.blocks.0").win_size for level in levels]
    return {
        "scale": 1,
        "channels": network.input_proj.proj[0].weight.shape[1],
        "size_multiple": math.lcm(*(window * 2**i for i, window in enumerate(windows))),
    }


UFORMER = register_family(
    Family(
        name="uformer",
        title="Uformer",
        signature=(
            (
                "encoderlayer_*.blocks.*.attn.relative_position_bias_table",
                "conv.blocks.*.attn.relative_position_bias_table",
                "decoderlayer_*.blocks.*.norm2",
                "input_proj.proj",
                "output_proj.proj",
            ),
        ),
        places=(
            *(place for level in LEVELS for place in block_places(f"{level}.blocks.{{block}}", "norm1.weight", LEWIN)),
            *(
                Place(name="stage", path=p, channels="blocks.0.norm1.weight", layout=Layout.NLC, square=True)
                for p in LEVELS
            ),
        ),
        blocks=(LEWIN,),
        facts=_facts,
        source="arXiv 2106.03106; takes square images only",
    )
)
