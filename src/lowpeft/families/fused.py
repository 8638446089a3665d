"""Shared parts of fused block forwards, which families give beside their exact ones (`BlockForward.fused`).

They compute the same as the block to rounding, with frozen weights, keep no attention scores, and note what backward
can make again (`lowpeft.frozen`). A fused forward returns NotImplemented if it cannot stand in for the block in a call:
because an inner layer that it does not call has adapters on its output or hooks, because of dropout, or because the
position bias is trained.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ..frozen import windows
from ..frozen.linear import Affine
from ..frozen.rebuilding import Level, note
from ..ports.layouts import Layout, Size
from .base import Ports
from .swin import mlp_added


def can_fuse(ports: Ports, attention: nn.Module, *frozen: Tensor) -> bool:
    """Return whether attention may be computed from the parameters of its layers, without calling them.

    Args:
        ports: Adapters of the block.
        attention: Module with the layers.
        frozen: Tensors that must be frozen, e.g. the table of position biases: with a gradient for what is added to the
            logits, `scaled_dot_product_attention` would keep the scores.
    """
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in frozen)
    return not (trained or _drops(attention) or ports.must_call(attention))


def _drops(module: nn.Module) -> bool:
    """Return whether dropout acts in a module or below it."""
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in module.modules())


def can_repeat(ports: Ports, norm: nn.Module | None) -> bool:
    """Return whether a norm may be called again, in backward or for a part of the tokens; True for None."""
    known = norm is None or isinstance(norm, (nn.LayerNorm, nn.Identity))
    return known and (norm is None or not (ports.is_adapted(norm) or ports.must_call(norm)))


def normed_rows(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Return tokens (N,…,C) after their norm, if there is one, as rows (tokens, C)."""
    return (x if norm is None else norm(x)).reshape(-1, x.shape[-1])


def projected(
    ports: Ports, layer: Affine, x: Tensor, normed: Tensor, norm: nn.Module | None, order: windows.Order | None = None
) -> Tensor:
    """Return a layer's output on the rows of normed tokens; the second level rebuilds it from the residual stream.

    Args:
        ports: Adapters of the block.
        layer: The layer, e.g. that of queries, keys and values.
        x: Residual stream before the norm, (N, …, C).
        normed: `x` after its norm.
        norm: That norm; None if the layer reads `x`.
        order: Order in which the rows are taken; None for that of `x`.
    """

    def again(given: Tensor, *tensors: Tensor) -> Tensor:
        rows = normed_rows(norm, given)
        return layer.again(rows if order is None else rows.index_select(0, order.rows), *tensors)

    rows = normed.reshape(-1, normed.shape[-1])
    out = layer.run(rows if order is None else order.taken(rows))
    if can_repeat(ports, norm):
        note(out, again, x, *layer.tensors, level=Level.PRODUCTS)
    return out


def _in_heads(qkv: Tensor, heads: windows.Heads, order: windows.Order) -> Tensor:
    """Return rows of queries, keys and values in the order of windows as (windows, L, 3, heads, width)."""
    return qkv.view(sum(order.counts), -1, 3, heads.heads, heads.width)


def table_bias(attention: Any, index: Tensor, masks: list[Tensor] | None, like: Tensor) -> Callable[[int], Tensor]:
    """Return a function from a region to Swin's position bias, plus the region's mask, for `windows.attended`.

    Args:
        attention: Module with `relative_position_bias_table`.
        index: Position index, (queries, keys).
        masks: Mask of each region, (L, L); None for none.
        like: Tensor with the dtype of the logits.
    """
    dtype, table = like.dtype, attention.relative_position_bias_table

    def make(values: Tensor, *mask: Tensor) -> Tensor:
        bias = values[index].permute(2, 0, 1)[None]
        return (bias + mask[0] if mask else bias).to(dtype)

    return lambda region: windows.biased((table,) if masks is None else (table, masks[region]), make)


def region_masks(mask: Tensor, order: windows.Order, columns: int) -> list[Tensor]:
    """Return the mask of each region from the masks of all windows of an image, (windows, L, L)."""
    return [mask[row * columns + column] for row, column in order.regions]


def has_region_masks(module: Any) -> bool:
    """Return whether the masks that a module computes are the same in all windows of a region; True without masks.

    HAT's network and SwinIR's and Swin2SR's blocks compute them by `calculate_mask`. A copy of the code may compute
    others, which fused attention would not see.
    """
    compute, window, shift = (getattr(module, name, None) for name in ("calculate_mask", "window_size", "shift_size"))
    if not callable(compute) or not isinstance(window, int) or not shift:
        return True
    size, rows, columns = (3 * window, 4 * window), (0, 0, 2), (0, 0, 0, 3)
    named = {"dtype": torch.float32} if "dtype" in inspect.signature(compute).parameters else {}
    try:
        masks = compute(size, **named).view(3, 4, window**2, window**2)
    except Exception:  # noqa: BLE001  (another signature or result: another function)
        return False
    return all(torch.equal(masks[r, c], masks[rows[r], columns[c]]) for r in range(3) for c in range(4))


def small_grid_masks(order: windows.Order, grid: Size, compute: Callable[[Size], Tensor]) -> list[Tensor]:
    """Return the mask of each region, computed for a grid of at most 2x2 windows, which has the same regions.

    Args:
        order: Order of the tokens.
        grid: Numbers of rows and columns of windows.
        compute: Function from a grid to the masks of its windows, (windows, L, L).
    """
    rows, columns = (min(2, n) for n in grid)
    mask = compute((rows, columns))
    return [mask[min(row, 1) * columns + min(column, 1)] for row, column in order.regions]


def window_attention(
    ports: Ports,
    attention: Any,
    x: Tensor,
    normed: Tensor,
    norm: nn.Module | None,
    order: windows.Order,
    bias: Callable[[Tensor], Callable[[int], Tensor]],
) -> Tensor:
    """Return Swin's attention in windows, shaped like `x`, of a module with `qkv`, `proj`, `num_heads` and `scale`.

    Args:
        ports: Adapters of the block.
        attention: The module.
        x: Residual stream before attention, (N, L, C) or (N, H, W, C).
        normed: `x` after its norm.
        norm: That norm; None if attention reads `x`.
        order: Order of the tokens in windows.
        bias: Function from a tensor of the logits' dtype to the bias of each region.
    """
    qkv, proj = attention.qkv, attention.proj
    heads = windows.padded_heads(ports.layer(qkv), ports.layer(proj), attention.num_heads)
    values = _in_heads(projected(ports, heads.into, x, normed, norm, order), heads, order)
    out = windows.attended(values, order, bias(values), attention.scale)
    return order.put_back(heads.out.run(out)).view(x.shape)


def can_fuse_cosine(ports: Ports, attention: Any) -> bool:
    """Return whether `cosine_window_attention` may be used: `can_fuse`, and what makes its bias is frozen."""
    frozen = (attention.logit_scale, *attention.cpb_mlp.parameters())
    return can_fuse(ports, attention, *frozen) and not ports.is_adapted(attention.cpb_mlp)


def cosine_window_attention(
    ports: Ports, attention: Any, x: Tensor, order: windows.Order, masks: list[Tensor] | None
) -> Tensor:
    """Return Swin v2's attention in windows, shaped like `x`: cosines as logits, and position biases from an MLP.

    Args:
        ports: Adapters of the block.
        attention: Module with `qkv`, `q_bias`, `v_bias`, `logit_scale`, `cpb_mlp`, `proj` and `num_heads`.
        x: Residual stream, which attention reads without a norm, (N, L, C) or (N, H, W, C).
        order: Order of the tokens in windows.
        masks: Mask of each region; None for none.

    Source: Swin Transformer v2 (arXiv 2111.09883), section 3.2 and 3.3.
    """
    qkv, proj, offset = attention.qkv, attention.proj, None
    if attention.q_bias is not None:
        offset = torch.cat((attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias))
    into = ports.layer(qkv)._replace(bias=offset)
    heads = windows.padded_heads(into, ports.layer(proj), attention.num_heads)
    values = _in_heads(projected(ports, heads.into, x, x, None, order), heads, order)
    factor: Tensor = attention.logit_scale.clamp(max=math.log(100.0)).exp()
    index: Tensor = attention.relative_position_index
    dtype = values.dtype

    def unit(rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1).to(dtype)

    def scaled(rows: Tensor) -> Tensor:
        return (F.normalize(rows, dim=-1) * factor).to(dtype)

    def prepared(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return note(scaled(q), scaled, q), note(unit(k), unit, k)

    def make(coordinates: Tensor, *mask: Tensor) -> Tensor:
        table = attention.cpb_mlp(coordinates).view(-1, heads.heads)
        bias = 16 * torch.sigmoid(table[index].permute(2, 0, 1)[None])
        return (bias + mask[0] if mask else bias).to(dtype)

    def bias(region: int) -> Tensor:
        given = (attention.relative_coords_table,)
        return windows.biased(given if masks is None else (*given, masks[region]), make)

    out = windows.attended(values, order, bias, 1.0, prepared=prepared)
    return order.put_back(heads.out.run(out)).view(x.shape)


def swin_order(x: Tensor, size: Size, window: Size, shift: Size, *, masked: bool) -> windows.Order:
    """Return the order of tokens (N, L, C) in windows; arguments as for `windows.order_of`."""
    return windows.order_of(x.shape[0], size, window, shift, masked=masked, device=x.device)


TOKENWISE = (nn.GELU, nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.Identity)
"""Activations that act on each number by itself, so that tokens can be taken in chunks."""


def mlp_of(ports: Ports, mlp: Any, x: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Return the output of an MLP with `fc1`, `act` and `fc2`, after its norm if it has one.

    Its layers are called if they have adapters or hooks, or drop.
    """
    of_tokens = type(mlp.act) in TOKENWISE and not getattr(mlp.act, "inplace", False)
    if _drops(mlp) or not of_tokens or ports.must_call(mlp) or not can_repeat(ports, norm):
        called: Tensor = mlp(x if norm is None else norm(x))
        return called
    return windows.mlp(x, norm, ports.layer(mlp.fc1), mlp.act, ports.layer(mlp.fc2))


def fused_pre_norm_mlp(block: Any, ports: Ports, x: Tensor, size: Size) -> Tensor:
    """Run the second half of a pre-norm block like `swin.pre_norm_mlp`, on tokens (N, L, C)."""
    normed = block.norm2(x) if ports.wants("parallel") else x  # nobody else reads it
    return mlp_added(x, block.drop_path(mlp_of(ports, block.mlp, x, block.norm2)), normed, ports, Layout.NLC, size)
