"""SwinIR and Swin2SR (official code, BasicSR forks, spandrel; Swin2SR also from transformers)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..frozen import windows
from ..ports.layouts import ExtraTokens, Layout
from . import fused
from .base import TOKENS, BlockForward, Family, Place, Ports, block_places, register_family
from .swin import (
    BLOCK,
    BLOCK_PORTS,
    GROUP_CONV,
    attention_added,
    image_facts,
    in_windows,
    mlp_added,
    noise,
    position_bias,
    pre_norm_mlp,
)
from .tokens import Windows, change, cosine_terms, cosine_window_change, window_change

HF_BLOCK = "encoder.stages.{stage}.layers.{block}"


def _attended(block: Any, x: Tensor, x_size: tuple[int, int], extras: Sequence[ExtraTokens] = ()) -> Tensor:
    """Return attention in the block's windows, (N,L,C) to (N,L,C), with extra keys and values."""
    # The block stores a mask for one size only. At other sizes even unshifted blocks use a mask, of zeros.
    own = block.input_resolution == x_size
    mask = block.attn_mask if own else block.calculate_mask(x_size).to(x.device)
    rows = x.view(x.shape[0], x_size[0], x_size[1], x.shape[2])
    window, shift = block.window_size, block.shift_size

    def attend(windows: Tensor) -> Tensor:
        out: Tensor = block.attn(windows, mask=mask)
        if extras:
            grid = (x.shape[0], x_size[0] // window, x_size[1] // window)
            out = out + _token_change(block, windows, mask if shift > 0 else None, grid, extras)
        return out

    return in_windows(rows, window, shift, attend).view(x.shape)


def _token_change(
    block: Any, windows: Tensor, mask: Tensor | None, grid: tuple[int, int, int], extras: Sequence[ExtraTokens]
) -> Tensor:
    """Return the change in SwinIR's or Swin2SR's attention that extra tokens cause."""
    if hasattr(block.attn, "cpb_mlp"):
        return cosine_window_change(block.attn, windows, mask, grid, extras)
    bias = position_bias(block.attn, block.attn.relative_position_index)
    return window_change(block.attn, windows, block.norm1, bias, mask, grid, extras)


def swinir_forward(block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int]) -> Tensor:
    """Run SwinIR's block: x + attention(norm1 x), then x + MLP(norm2 x).

    Args:
        block: SwinTransformerBlock of SwinIR.
        ports: Adapters of the block.
        x: Tokens (N, L, C) with L = H·W.
        x_size: Height and width (H, W), multiples of the window's side.

    Source: SwinIR (arXiv 2108.10257).
    """
    b: Any = block
    normed = b.norm1(x)
    extras = ports.tokens(TOKENS, normed, Layout.NLC, x_size) if ports.wants(TOKENS) else ()
    contribution = b.drop_path(_attended(b, normed, x_size, extras))
    out = attention_added(x, contribution, normed, ports, Layout.NLC, x_size)
    return pre_norm_mlp(block, ports, out, x_size)


def swinir_fused(block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int]) -> Any:
    """Run SwinIR's block like `swinir_forward`, fused."""
    b: Any = block
    attn = b.attn
    if ports.wants(TOKENS) or not fused.can_fuse(ports, attn, attn.relative_position_bias_table):
        return NotImplemented
    normed = b.norm1(x)
    order, masks = _fused_order(b, x, x_size)
    bias = functools.partial(fused.table_bias, attn, attn.relative_position_index, masks)
    attention = b.drop_path(fused.window_attention(ports, attn, x, normed, b.norm1, order, bias))
    out = attention_added(x, attention, normed, ports, Layout.NLC, x_size)
    return fused.fused_pre_norm_mlp(b, ports, out, x_size)


def _fused_order(b: Any, x: Tensor, x_size: tuple[int, int]) -> tuple[windows.Order, list[Tensor] | None]:
    """Return the order of the tokens in the block's windows, and the mask of each region of shifted windows."""
    window, shift = b.window_size, b.shift_size
    order = fused.swin_order(x, x_size, (window, window), (shift, shift), masked=shift > 0)
    if shift == 0:
        return order, None
    if b.input_resolution == x_size:
        return order, fused.region_masks(b.attn_mask, order, x_size[1] // window)

    def compute(grid: tuple[int, int]) -> Tensor:
        mask: Tensor = b.calculate_mask((grid[0] * window, grid[1] * window))
        return mask.to(x.device)

    return order, fused.small_grid_masks(order, (x_size[0] // window, x_size[1] // window), compute)


def swin2sr_forward(block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int]) -> Tensor:
    """Run Swin2SR's block: x + norm1(attention x), then x + norm2(MLP x).

    The branches' outputs are those of the norms. Attention and MLP read the residual stream without a norm, so the
    ports `parallel` and `parallel_raw` are the same, and so are `parallel_attention` and `parallel_attention_raw`.

    Args:
        block: SwinTransformerBlock of Swin2SR.
        ports: Adapters of the block.
        x: Tokens (N, L, C) with L = H·W.
        x_size: Height and width (H, W), multiples of the window's side.

    Source: Swin2SR (arXiv 2209.11345); Swin v2 (arXiv 2111.09883).
    """
    b: Any = block
    extras = ports.tokens(TOKENS, x, Layout.NLC, x_size) if ports.wants(TOKENS) else ()
    contribution = b.drop_path(b.norm1(_attended(b, x, x_size, extras)))
    x = attention_added(x, contribution, x, ports, Layout.NLC, x_size)
    return mlp_added(x, b.drop_path(b.norm2(b.mlp(x))), x, ports, Layout.NLC, x_size)


def swin2sr_fused(block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int]) -> Any:
    """Run Swin2SR's block like `swin2sr_forward`, fused."""
    b: Any = block
    if ports.wants(TOKENS) or not fused.can_fuse_cosine(ports, b.attn):
        return NotImplemented
    order, masks = _fused_order(b, x, x_size)
    contribution = b.drop_path(b.norm1(fused.cosine_window_attention(ports, b.attn, x, order, masks)))
    x = attention_added(x, contribution, x, ports, Layout.NLC, x_size)
    return mlp_added(x, b.drop_path(b.norm2(fused.mlp_of(ports, b.mlp, x))), x, ports, Layout.NLC, x_size)


def swin_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x2 windows, or of the block's own size in half precision, and their size."""
    b: Any = block
    weight = b.norm1.weight
    size = (2 * b.window_size, 2 * b.window_size)
    if weight.dtype not in (torch.float32, torch.float64):  # at other sizes the block computes a mask, in float32
        size = b.input_resolution
    return noise(weight, 1, size[0] * size[1], weight.shape[0]), size


def swin2sr_transformers_forward(
    block: nn.Module, ports: Ports, hidden_states: Tensor, input_dimensions: tuple[int, int], *rest: Any
) -> tuple[Tensor, ...]:
    """Run Swin2SR's layer of transformers, which itself pads to whole windows; ports as in `swin2sr_forward`.

    Args:
        block: Swin2SRLayer.
        ports: Adapters of the block.
        hidden_states: Tokens (N, L, C) with L = H·W.
        input_dimensions: Height and width (H, W).
        rest: Further arguments for the layer's attention; they depend on the version of transformers.

    Returns:
        The new hidden states and, if requested, the attention's probabilities.
    """
    b: Any = block
    x, (height, width), window = hidden_states, input_dimensions, b.window_size
    batch, _, channels = x.shape
    bottom, right = -height % window, -width % window
    padded = F.pad(x.view(batch, height, width, channels), (0, 0, 0, right, 0, bottom))
    mask = b.get_attn_mask(height + bottom, width + right, dtype=x.dtype)
    mask = mask if mask is None else mask.to(x.device)
    outputs: list[tuple[Tensor, ...]] = []
    extras = ports.tokens(TOKENS, x, Layout.NLC, input_dimensions) if ports.wants(TOKENS) else ()

    def attend(windows: Tensor) -> Tensor:
        outputs.append(b.attention(windows, mask, *rest))
        if not extras:
            return outputs[0][0]
        grid = (batch, padded.shape[1] // window, padded.shape[2] // window)
        return outputs[0][0] + _transformers_token_change(b.attention, windows, mask, grid, extras)

    attended = in_windows(padded, window, b.shift_size, attend)
    attended = attended[:, :height, :width, :].contiguous().view(batch, height * width, channels)
    contribution = b.drop_path(b.layernorm_before(attended))
    x = attention_added(x, contribution, x, ports, Layout.NLC, input_dimensions)
    contribution = b.drop_path(b.layernorm_after(b.output(b.intermediate(x))))
    return mlp_added(x, contribution, x, ports, Layout.NLC, input_dimensions), *outputs[0][1:]


def _transformers_token_change(
    attention: Any, windows: Tensor, mask: Tensor | None, grid: tuple[int, int, int], extras: Sequence[ExtraTokens]
) -> Tensor:
    """Return the change in the attention of transformers' Swin2SR that extra tokens cause, (windows, L, C)."""
    inner, heads = attention.self, attention.self.num_attention_heads
    layers = (inner.query, inner.key, inner.value)
    query, key, value = (layer(windows).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in layers)
    cosine, bias = cosine_terms(inner, inner.continuous_position_bias_mlp)
    parts = Windows(query, key, value, grid=grid, cosine=cosine, bias=bias, mask=mask)

    def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return inner.key(tokens), inner.value(tokens)

    return change([parts], lambda out: attention.output.dense(out[0]), project, windows, extras)


def swin2sr_transformers_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x2 windows, and their size; the right windows lack a column, except in float16."""
    b: Any = block
    weight = b.layernorm_before.weight
    height = width = 2 * b.window_size
    if weight.dtype != torch.float16:  # in float16 the layer's cosines of padding are 0 / 0
        width -= 1
    return noise(weight, 1, height * width, weight.shape[0]), (height, width)


SWINIR_BLOCK = BlockForward(
    name="swinir.block",
    forward=swinir_forward,
    ports=BLOCK_PORTS | {TOKENS},
    example=swin_example,
    fused=swinir_fused,
)
SWIN2SR_BLOCK = BlockForward(
    name="swin2sr.block",
    forward=swin2sr_forward,
    ports=BLOCK_PORTS | {TOKENS},
    example=swin_example,
    fused=swin2sr_fused,
)
SWIN2SR_TRANSFORMERS_LAYER = BlockForward(
    name="swin2sr_transformers.layer",
    forward=swin2sr_transformers_forward,
    ports=BLOCK_PORTS | {TOKENS},
    example=swin2sr_transformers_example,
)

SWINIR = register_family(
    Family(
        name="swinir",
        title="SwinIR",
        signature=(
            (
                "layers.*.residual_group.blocks.*.attn.relative_position_bias_table",
                "layers.*.residual_group.blocks.*.norm1",
                "layers.*.residual_group.blocks.*.mlp.fc2",
                "layers.*.conv",
                "!layers.*.residual_group.blocks.*.conv_block",
                "!layers.*.residual_group.overlap_attn",
            ),
        ),
        places=(*block_places(BLOCK, "norm1.weight", SWINIR_BLOCK), GROUP_CONV),
        blocks=(SWINIR_BLOCK,),
        fused=((BLOCK, SWINIR_BLOCK.name),),
        # spandrel advises against strips; with `reach_px` rows of context they are exact.
        facts=lambda network: {**image_facts(network), "strips": True},
        source="arXiv 2108.10257",
    )
)

SWIN2SR = register_family(
    Family(
        name="swin2sr",
        title="Swin2SR",
        signature=(("layers.*.residual_group.blocks.*.attn.cpb_mlp", "layers.*.conv"),),
        places=(*block_places(BLOCK, "norm1.weight", SWIN2SR_BLOCK), GROUP_CONV),
        blocks=(SWIN2SR_BLOCK,),
        fused=((BLOCK, SWIN2SR_BLOCK.name),),
        facts=image_facts,
        source="arXiv 2209.11345",
    )
)

SWIN2SR_TRANSFORMERS = register_family(
    Family(
        name="swin2sr_transformers",
        title="Swin2SR (transformers)",
        signature=(("encoder.stages.*.layers.*.layernorm_before", "encoder.stages.*.conv"),),
        places=(
            *block_places(HF_BLOCK, "layernorm_before.weight", SWIN2SR_TRANSFORMERS_LAYER),
            Place(
                name="stage",
                path="encoder.stages.{stage}.conv",
                channels="^layers.0.layernorm_before.weight",
                layout=Layout.NCHW,
            ),
        ),
        blocks=(SWIN2SR_TRANSFORMERS_LAYER,),
        output="reconstruction",
        inside="swin2sr",
        facts=lambda network: {
            "scale": network.config.upscale,
            "channels": network.config.num_channels,
            "size_multiple": network.config.window_size,
        },
        source="the transformers package, model type swin2sr",
    )
)
