"""Shared parts of the families with Swin-type blocks: paths, ports, the halves of a block, shifted windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ports.layouts import Layout, Size
from .base import Place, Ports, added

BLOCK = "layers.{stage}.residual_group.blocks.{block}"
GROUP_CONV = Place(
    name="stage",
    path="layers.{stage}.conv",
    channels="^residual_group.blocks.0.norm1.weight",
    layout=Layout.NCHW,
)
"""Place at the last convolution of a residual group, before the group's shortcut is added."""

BLOCK_PORTS = frozenset(
    {"attention", "mlp", "parallel", "parallel_raw", "parallel_attention", "parallel_attention_raw"}
)


def attention_added(
    x: Tensor, contribution: Tensor, normed: Tensor, ports: Ports, layout: Layout, size: Size | None
) -> Tensor:
    """Return the residual stream after attention: x + contribution + deltas of the adapters at the attention's ports.

    Args:
        x: Residual stream before attention.
        contribution: Output of the attention branch.
        normed: Input of attention: `x` after its norm, or `x` itself in a post-norm block.
        ports: Adapters of the block.
        layout: Layout of the three tensors.
        size: Height and width in positions; None if unknown.
    """
    features = {"attention": contribution, "parallel_attention": normed, "parallel_attention_raw": x}
    return added(x + contribution, ports, layout, size, features)


def mlp_added(
    x: Tensor, contribution: Tensor, normed: Tensor, ports: Ports, layout: Layout, size: Size | None
) -> Tensor:
    """Return the residual stream after the MLP; arguments as in `attention_added`."""
    features = {"mlp": contribution, "parallel": normed, "parallel_raw": x}
    return added(x + contribution, ports, layout, size, features)


def pre_norm_mlp(block: nn.Module, ports: Ports, x: Tensor, size: Size | None, layout: Layout = Layout.NLC) -> Tensor:
    """Run the second half of a pre-norm block: x + drop_path(mlp(norm2 x)), plus the deltas at its ports.

    Args:
        block: Block with `norm2`, `mlp` and `drop_path`.
        ports: Adapters of the block.
        x: Residual stream after attention.
        size: Height and width in positions; None if unknown.
        layout: Layout of `x`.
    """
    b: Any = block
    normed = b.norm2(x)
    return mlp_added(x, b.drop_path(b.mlp(normed)), normed, ports, layout, size)


def in_windows(x: Tensor, window: int | Size, shift: int | Size, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Cut features into windows, apply `attend`, and put the windows together again.

    Args:
        x: Features (N,H,W,C); H and W are multiples of the window's sides.
        window: Side of a window, or its height and width, in positions.
        shift: Shift of the windows down and to the right, in positions; one number or two.
        attend: Function from (windows, L, C), the windows of one image in a row, to (windows, L, C'), with any number
            of channels C'.
    """
    (h, w), shift = _pair(window), _pair(shift)
    grid = (x.shape[0], x.shape[1] // h, x.shape[2] // w)
    return from_windows(attend(to_windows(x, (h, w), shift)), grid, (h, w), shift)


def to_windows(x: Tensor, window: Size, shift: Size) -> Tensor:
    """Return features (N,H,W,C) in windows, (windows, L, C); arguments as in `in_windows`."""
    batch, height, width, channels = x.shape
    if any(shift):
        x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    (h, w), rows, columns = window, height // window[0], width // window[1]
    windows = x.view(batch, rows, h, columns, w, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
    return windows.view(-1, h * w, channels)


def from_windows(x: Tensor, grid: tuple[int, int, int], window: Size, shift: Size) -> Tensor:
    """Return windows (windows, L, C) as features (N,H,W,C); `grid`: numbers of images, rows and columns of windows."""
    (h, w), (batch, rows, columns) = window, grid
    x = x.view(batch, rows, columns, h, w, -1).permute(0, 1, 3, 2, 4, 5).contiguous()
    x = x.view(batch, rows * h, columns * w, -1)
    return torch.roll(x, shifts=shift, dims=(1, 2)) if any(shift) else x


def _pair(value: int | Size) -> Size:
    return value if isinstance(value, tuple) else (value, value)


def position_bias(attention: Any, index: Tensor) -> Tensor:
    """Return the bias of each pair of positions in a window, (heads, window², window²), from the bias table."""
    bias: Tensor = attention.relative_position_bias_table[index.reshape(-1)].view(*index.shape, -1)
    return bias.permute(2, 0, 1)


def noise(like: Tensor, *shape: int) -> Tensor:
    """Return normally distributed numbers, the same in each call, with the device and dtype of a tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(like.device, like.dtype)


def pixel_shuffle_scale(upscaler: nn.Module) -> int:
    """Return the product of the factors of all pixel shuffles in a module."""
    return math.prod(m.upscale_factor for m in upscaler.modules() if isinstance(m, nn.PixelShuffle))


def image_facts(network: Any) -> dict[str, Any]:
    """Return facts from attributes of HAT, SwinIR and Swin2SR. Only some copies of the code pad to the window size."""
    return {
        "scale": network.upscale,
        "channels": network.conv_first.weight.shape[1],
        "size_multiple": network.window_size,
    }
