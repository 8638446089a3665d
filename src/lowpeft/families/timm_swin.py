"""timm's Swin Transformer v1 and v2, which return features, not images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..frozen import windows
from ..ports.layouts import Layout
from . import fused
from .base import TOKENS, BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, in_windows, mlp_added, noise
from .tokens import cosine_window_change, window_change

STAGES = ("layers.{stage}", "layers_{stage}")
"""Paths of the stages; the second with `features_only=True`, where the network returns a list of stage features."""


def v1_forward(block: nn.Module, ports: Ports, x: Tensor) -> Tensor:
    """Run timm's Swin block: x + attention(norm1 x), then x + MLP(norm2 x), on (N,H,W,C).

    Args:
        block: SwinTransformerBlock.
        ports: Adapters of the block. Those of the MLP get (N,L,C) with L = H·W.
        x: Features (N,H,W,C).

    Source: Swin Transformer (arXiv 2103.14030).
    """
    b: Any = block
    size, normed = (x.shape[1], x.shape[2]), b.norm1(x)
    attended = b._attn(normed)
    if ports.wants(TOKENS):
        extras = ports.tokens(TOKENS, normed, Layout.NHWC, size)

        def changed(windows: Tensor, mask: Tensor | None, grid: tuple[int, int, int]) -> Tensor:
            return window_change(b.attn, windows, b.norm1, b.attn._get_rel_pos_bias()[0], mask, grid, extras)

        attended = attended + _in_padded_windows(b, normed, changed)
    out = attention_added(x, b.drop_path1(attended), normed, ports, Layout.NHWC, size)
    tokens = out.reshape(x.shape[0], -1, x.shape[3])
    normed = b.norm2(tokens)
    out = mlp_added(tokens, b.drop_path2(b.mlp(normed)), normed, ports, Layout.NLC, size)
    return out.reshape(x.shape)


def v1_fused(block: nn.Module, ports: Ports, x: Tensor) -> Any:
    """Run timm's Swin block like `v1_forward`, fused, unless it has to pad to whole windows."""
    b: Any = block
    if ports.wants(TOKENS) or not (_fits(b, x) and fused.can_fuse(ports, b.attn, b.attn.relative_position_bias_table)):
        return NotImplemented
    size, normed = (x.shape[1], x.shape[2]), b.norm1(x)
    order, masks = _fused_order(b, x)
    bias = functools.partial(fused.table_bias, b.attn, b.attn.relative_position_index, masks)
    attention = b.drop_path1(fused.window_attention(ports, b.attn, x, normed, b.norm1, order, bias))
    tokens = attention_added(x, attention, normed, ports, Layout.NHWC, size).reshape(x.shape[0], -1, x.shape[3])
    normed = b.norm2(tokens) if ports.wants("parallel") else tokens
    contribution = b.drop_path2(fused.mlp_of(ports, b.mlp, tokens, b.norm2))
    return mlp_added(tokens, contribution, normed, ports, Layout.NLC, size).reshape(x.shape)


def v2_fused(block: nn.Module, ports: Ports, x: Tensor) -> Any:
    """Run timm's Swin v2 block like `v2_forward`, fused, unless it has to pad to whole windows."""
    b: Any = block
    if ports.wants(TOKENS) or not (_fits(b, x) and fused.can_fuse_cosine(ports, b.attn)):
        return NotImplemented
    size, (order, masks) = (x.shape[1], x.shape[2]), _fused_order(b, x)
    contribution = b.drop_path1(b.norm1(fused.cosine_window_attention(ports, b.attn, x, order, masks)))
    tokens = attention_added(x, contribution, x, ports, Layout.NHWC, size).reshape(x.shape[0], -1, x.shape[3])
    contribution = b.drop_path2(b.norm2(fused.mlp_of(ports, b.mlp, tokens)))
    return mlp_added(tokens, contribution, tokens, ports, Layout.NLC, size).reshape(x.shape)


def _fits(b: Any, x: Tensor) -> bool:
    return bool(x.shape[1] % b.window_size[0] == 0 and x.shape[2] % b.window_size[1] == 0)


def _fused_order(b: Any, x: Tensor) -> tuple[windows.Order, list[Tensor] | None]:
    """Return the order of the tokens in the block's windows, and the mask of each region of shifted windows."""
    size, window, shift = (x.shape[1], x.shape[2]), tuple(b.window_size), tuple(b.shift_size)
    order = fused.swin_order(x, size, window, shift, masked=any(shift))
    if not any(shift):
        return order, None
    grid = (size[0] // window[0], size[1] // window[1])
    if not getattr(b, "dynamic_mask", False):
        return order, fused.region_masks(b.attn_mask, order, grid[1])

    def compute(small: tuple[int, int]) -> Tensor:
        mask: Tensor = b.get_attn_mask(x[:1, : small[0] * window[0], : small[1] * window[1]])
        return mask

    return order, fused.small_grid_masks(order, grid, compute)


def v2_forward(block: nn.Module, ports: Ports, x: Tensor) -> Tensor:
    """Run timm's Swin v2 block: x + norm1(attention x), then x + norm2(MLP x), on (N,H,W,C).

    The branches' outputs are those of the norms. Attention and MLP read the residual stream without a norm, so the
    ports `parallel` and `parallel_raw` are the same, and so are `parallel_attention` and `parallel_attention_raw`.

    Args:
        block: SwinTransformerV2Block.
        ports: Adapters of the block. Those of the MLP get (N,L,C) with L = H·W.
        x: Features (N,H,W,C).

    Source: Swin Transformer v2 (arXiv 2111.09883).
    """
    b: Any = block
    size, attended = (x.shape[1], x.shape[2]), b._attn(x)
    if ports.wants(TOKENS):
        extras = ports.tokens(TOKENS, x, Layout.NHWC, size)

        def changed(windows: Tensor, mask: Tensor | None, grid: tuple[int, int, int]) -> Tensor:
            return cosine_window_change(b.attn, windows, mask, grid, extras)

        attended = attended + _in_padded_windows(b, x, changed)
    out = attention_added(x, b.drop_path1(b.norm1(attended)), x, ports, Layout.NHWC, size)
    tokens = out.reshape(x.shape[0], -1, x.shape[3])
    out = mlp_added(tokens, b.drop_path2(b.norm2(b.mlp(tokens))), tokens, ports, Layout.NLC, size)
    return out.reshape(x.shape)


def _in_padded_windows(
    b: Any, x: Tensor, attend: Callable[[Tensor, Tensor | None, tuple[int, int, int]], Tensor]
) -> Tensor:
    """Apply a function of windows, their mask and their grid to (N,H,W,C), shifted, then padded, as the block does."""
    (height, width), (h, w), shift = x.shape[1:3], b.window_size, tuple(b.shift_size)
    shifted = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2)) if any(shift) else x
    shifted = F.pad(shifted, (0, 0, 0, -width % w, 0, -height % h))
    mask = b.get_attn_mask(shifted) if getattr(b, "dynamic_mask", False) else b.attn_mask
    grid = (x.shape[0], shifted.shape[1] // h, shifted.shape[2] // w)
    out = in_windows(shifted, (h, w), 0, lambda windows: attend(windows, mask, grid))[:, :height, :width]
    return torch.roll(out, shifts=shift, dims=(1, 2)) if any(shift) else out


def example(block: nn.Module) -> tuple[Tensor]:
    """Return random features of 2x2 windows, or of the one size for which a block stores its mask."""
    b: Any = block
    height, width = (2 * side for side in b.window_size) if b.attn_mask is None else b.input_resolution
    return (noise(b.norm1.weight, 1, height, width, b.norm1.weight.shape[0]),)


def _places(block: BlockForward) -> tuple[Place, ...]:
    """Return places for the blocks' ports and the stages' outputs; the shortcuts are inside the blocks."""
    blocks = [p for stage in STAGES for p in block_places(f"{stage}.blocks.{{block}}", "norm1.weight", block)]
    stages = [Place(name="stage", path=p, channels="blocks.0.norm1.weight", layout=Layout.NHWC) for p in STAGES]
    return (*blocks, *stages)


def _fused(block: BlockForward) -> tuple[tuple[str, str], ...]:
    return tuple((f"{stage}.blocks.{{block}}", block.name) for stage in STAGES)


def _signature(part: str) -> tuple[tuple[str, ...], ...]:
    """Return signatures of networks whose attention has a part, without and with `features_only=True`."""
    return tuple(
        (f"{stages}.blocks.*.attn.{part}", f"{stages}.downsample", "patch_embed.proj")
        for stages in ("layers.*", "layers_*")
    )


V1_BLOCK = BlockForward(
    name="timm_swin.block", forward=v1_forward, ports=BLOCK_PORTS | {TOKENS}, example=example, fused=v1_fused
)
V2_BLOCK = BlockForward(
    name="timm_swin_v2.block", forward=v2_forward, ports=BLOCK_PORTS | {TOKENS}, example=example, fused=v2_fused
)


def _feature_facts(network: Any) -> dict[str, Any]:
    embed = network.patch_embed
    size = embed.img_size if getattr(embed, "strict_img_size", False) else None
    fixed = {"fixed_px": size[0]} if size is not None and size[0] == size[1] else {}
    return fixed | {
        "scale": None,
        "channels": network.patch_embed.proj.weight.shape[1],
        "size_multiple": network.patch_embed.patch_size[0],
        "notes": ("scale: none, because the network gives features",),
    }


TIMM_SWIN = register_family(
    Family(
        name="timm_swin",
        title="Swin Transformer v1 (timm)",
        signature=_signature("relative_position_bias_table"),
        places=_places(V1_BLOCK),
        blocks=(V1_BLOCK,),
        fused=_fused(V1_BLOCK),
        facts=_feature_facts,
        source="arXiv 2103.14030; the timm package",
    )
)

TIMM_SWIN_V2 = register_family(
    Family(
        name="timm_swin_v2",
        title="Swin Transformer v2 (timm)",
        signature=_signature("cpb_mlp"),
        places=_places(V2_BLOCK),
        blocks=(V2_BLOCK,),
        fused=_fused(V2_BLOCK),
        facts=_feature_facts,
        source="arXiv 2111.09883; the timm package",
    )
)
