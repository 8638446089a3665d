"""HAT (official code, BasicSR forks, spandrel)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..frozen import windows
from ..frozen.rebuilding import note
from ..ports.layouts import Layout
from . import fused
from .base import TOKENS, BlockForward, Family, Ports, added, block_places, register_block_forward, register_family
from .swin import BLOCK, BLOCK_PORTS, GROUP_CONV, image_facts, in_windows, noise, position_bias, pre_norm_mlp
from .tokens import window_change


def hab_forward(
    block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor | None
) -> Tensor:
    """Run HAT's hybrid attention block.

    Window attention a = attention(norm1 x) and channel attention c = conv_scale · CAB(norm1 x) give `x + a + c`; the
    MLP follows. The port `attention` reads a + c; ASteISR puts its spatial adapters there.

    Args:
        block: HAB.
        ports: Adapters of the block.
        x: Tokens (B, L, C) with L = H·W.
        x_size: Height and width (H, W), multiples of the window's side.
        rpi_sa: Relative position index, (window², window²).
        attn_mask: Mask of the shifted windows, (windows, window², window²); only blocks with a shift use it.

    Source: HAT (arXiv 2205.04437), section 3.2.
    """
    return _hybrid_block(block, ports, x, x_size, rpi_sa, attn_mask if block.shift_size else None)


def published_mask_forward(
    block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor | None
) -> Tensor:
    """Run HAT's block like `hab_forward`, but use the mask of shifted windows in unshifted blocks too.

    ASteISR's published code does this (it lacks HAT's `attn_mask = None`), so its networks were trained with it.
    """
    return _hybrid_block(block, ports, x, x_size, rpi_sa, attn_mask)


def _hybrid_block(
    block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, mask: Tensor | None
) -> Tensor:
    b: Any = block
    (height, width), shift = x_size, b.shift_size
    batch, _, channels = x.shape
    tokens = b.norm1(x)
    normed = tokens.view(batch, height, width, channels)

    conv = b.conv_block(normed.permute(0, 3, 1, 2))
    conv = conv.permute(0, 2, 3, 1).contiguous().view(batch, height * width, channels)

    extras = ports.tokens(TOKENS, tokens, Layout.NLC, x_size) if ports.wants(TOKENS) else ()

    def attend(windows: Tensor) -> Tensor:
        out: Tensor = b.attn(windows, rpi=rpi_sa, mask=mask)
        if extras:
            grid = (batch, height // b.window_size, width // b.window_size)
            out = out + window_change(b.attn, windows, b.norm1, position_bias(b.attn, rpi_sa), mask, grid, extras)
        return out

    attended = in_windows(normed, b.window_size, shift, attend)
    attention = b.drop_path(attended.view(batch, height * width, channels))

    scaled = conv * b.conv_scale
    out = x + attention + scaled
    features = {"parallel_attention": tokens, "parallel_attention_raw": x}
    if ports.wants("attention"):
        features["attention"] = attention + scaled
    out = added(out, ports, Layout.NLC, x_size, features)
    return pre_norm_mlp(block, ports, out, x_size)


def hab_fused(
    block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor | None
) -> Any:
    """Run HAT's hybrid attention block like `hab_forward`, fused."""
    return _fused_hybrid_block(block, ports, x, x_size, rpi_sa, attn_mask if block.shift_size else None)


def published_mask_fused(
    block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor | None
) -> Any:
    """Run HAT's hybrid attention block like `published_mask_forward`, fused."""
    return _fused_hybrid_block(block, ports, x, x_size, rpi_sa, attn_mask)


def _fused_hybrid_block(
    block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, mask: Tensor | None
) -> Any:
    b: Any = block
    if ports.wants(TOKENS) or not fused.can_fuse(ports, b.attn, b.attn.relative_position_bias_table):
        return NotImplemented
    (height, width), window, shift = x_size, b.window_size, b.shift_size
    normed = b.norm1(x)
    conv = b.conv_block(normed.view(-1, height, width, x.shape[-1]).permute(0, 3, 1, 2))
    conv = conv.permute(0, 2, 3, 1).reshape(x.shape)

    order = fused.swin_order(x, x_size, (window, window), (shift, shift), masked=mask is not None)
    masks = None if mask is None else fused.region_masks(mask, order, width // window)
    attention = fused.window_attention(
        ports, b.attn, x, normed, b.norm1, order, lambda qkv: fused.table_bias(b.attn, rpi_sa, masks, qkv)
    )
    attention = torch.add(b.drop_path(attention), conv, alpha=b.conv_scale)
    features = {"attention": attention, "parallel_attention": normed, "parallel_attention_raw": x}
    out = added(x + attention, ports, Layout.NLC, x_size, features)
    return fused.fused_pre_norm_mlp(b, ports, out, x_size)


def ocab_fused(block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int], rpi: Tensor) -> Any:
    """Run HAT's overlapping cross-attention block, fused: windows attend to larger windows around them.

    Args:
        block: OCAB.
        ports: Adapters of the block; none are possible.
        x: Tokens (B, L, C) with L = H·W.
        x_size: Height and width (H, W), multiples of the window's side.
        rpi: Relative position index, (window², overlapping window²).

    Source: HAT (arXiv 2205.04437), section 3.2.
    """
    b: Any = block
    side, large = b.window_size, b.overlap_win_size
    if not fused.can_fuse(ports, b, b.relative_position_bias_table) or (large - side) % 2:
        return NotImplemented
    heads = windows.padded_heads(ports.layer(b.qkv), ports.layer(b.proj), b.num_heads)
    inner = heads.heads * heads.width
    order = fused.swin_order(x, x_size, (side, side), (0, 0), masked=False)
    grid = (x.shape[0], *x_size, 2 * inner)

    qkv = fused.projected(ports, heads.into, x, b.norm1(x), b.norm1)
    queries, pairs = torch.split(qkv, [inner, 2 * inner], dim=1)
    queries, pairs = order.taken(queries), windows.overlapping(pairs.view(grid), large, side)
    note(queries, lambda given: given[:, :inner].index_select(0, order.rows), qkv)
    note(pairs, lambda given: windows.overlapping(given[:, inner:].reshape(grid), large, side), qkv)

    q = queries.view(-1, side * side, heads.heads, heads.width).transpose(1, 2)
    k, v = pairs.view(-1, large * large, 2, heads.heads, heads.width).permute(2, 0, 3, 1, 4).unbind()
    added_to_logits = fused.table_bias(b, rpi, None, qkv)(0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added_to_logits, scale=b.scale)
    out = heads.out.run(out.transpose(1, 2).reshape(-1, inner))
    x = order.put_back(out).view(x.shape) + x
    return x + fused.mlp_of(ports, b.mlp, x, b.norm2)


def ocab_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x3 windows, their size, and a random position index."""
    b: Any = block
    window, weight = b.window_size, b.norm1.weight
    entries, shape = b.relative_position_bias_table.shape[0], (window**2, b.overlap_win_size**2)
    index = torch.randint(0, entries, shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return noise(weight, 1, 6 * window**2, weight.shape[0]), (2 * window, 3 * window), index.to(weight.device)


def hab_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x2 windows, their size, and a random position index and mask."""
    b: Any = block
    window, weight = b.window_size, b.norm1.weight
    entries = b.attn.relative_position_bias_table.shape[0]
    index = torch.randint(0, entries, (window**2, window**2), generator=torch.Generator().manual_seed(0), device="cpu")
    mask = noise(weight, 4, window**2, window**2)
    return noise(weight, 1, 4 * window**2, weight.shape[0]), (2 * window, 2 * window), index.to(weight.device), mask


HAB = BlockForward(
    name="hat.hab", forward=hab_forward, ports=BLOCK_PORTS | {TOKENS}, example=hab_example, fused=hab_fused
)
OCAB = BlockForward(name="hat.ocab", forward=None, ports=frozenset(), example=ocab_example, fused=ocab_fused)

HAT = register_family(
    Family(
        name="hat",
        title="HAT",
        signature=(
            (
                "layers.*.residual_group.blocks.*.attn.relative_position_bias_table",
                "layers.*.residual_group.blocks.*.conv_block.cab",
                "layers.*.residual_group.overlap_attn.qkv",
                "layers.*.conv",
            ),
        ),
        places=(*block_places(BLOCK, "norm1.weight", HAB), GROUP_CONV),
        facts=image_facts,
        blocks=(HAB, OCAB),
        fused=((BLOCK, HAB.name), ("layers.{stage}.residual_group.overlap_attn", OCAB.name)),
        source="arXiv 2205.04437; placement as in ASteISR, arXiv 2407.03598",
    )
)

PUBLISHED_MASK = register_block_forward(
    BlockForward(
        name="hat.hab_published_mask",
        forward=published_mask_forward,
        ports=HAB.ports,
        example=hab_example,
        variant_of=HAB.name,
        fused=published_mask_fused,
    )
)
MASKS = {"hat": HAB.name, "published": PUBLISHED_MASK.name}
"""Names of HAT's block forwards, by the blocks that use the attention mask.

`hat`: shifted blocks only, e.g. blocks 1, 3, 5 of a stage. `published`: all blocks, as in ASteISR's published code.
"""
