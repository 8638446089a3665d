"""ATD (official code, spandrel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ports.layouts import ExtraTokens, Layout
from .base import TOKENS, BlockForward, Family, Place, Ports, added, block_places, register_family
from .swin import BLOCK_PORTS, in_windows, mlp_added, noise, position_bias
from .tokens import Windows, change, in_heads, of_qkv


def atd_forward(
    block: nn.Module, ports: Ports, x: Tensor, td: Tensor, x_size: tuple[int, int], params: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Run ATD's layer: x + windows + dictionary + categories (three sorts of attention of norm1 x), then the MLP.

    The port `attention` reads the sum of the three; extra tokens go to the windows alone. Except in the last layer, the
    token dictionary is updated from the new features, which include the deltas.

    Args:
        block: ATDTransformerLayer.
        ports: Adapters of the block.
        x: Tokens (N, L, C) with L = H·W.
        td: Token dictionary, (N, tokens, C).
        x_size: Height and width (H, W), multiples of the window's side.
        params: Relative position index of the windows (`rpi_sa`) and mask of shifted windows (`attn_mask`).

    Returns:
        The new features and the new dictionary.

    Source: ATD (arXiv 2401.08209).
    """
    b: Any = block
    (height, width), (batch, length, channels) = x_size, x.shape
    normed = b.norm1(x)
    qkv = b.wqkv(normed)
    dictionary, similarity = b.attn_atd(normed, td, x_size)
    categories = b.attn_aca(qkv, similarity, x_size)
    mask = params["attn_mask"] if b.shift_size > 0 else None

    extras = ports.tokens(TOKENS, normed, Layout.NLC, x_size) if ports.wants(TOKENS) else ()

    def attend(windows: Tensor) -> Tensor:
        out: Tensor = b.attn_win(windows, rpi=params["rpi_sa"], mask=mask)
        if extras:
            grid = (batch, height // b.window_size, width // b.window_size)
            out = out + _token_change(b, windows, params["rpi_sa"], mask, grid, extras)
        return out

    rows = qkv.reshape(batch, height, width, 3 * channels)
    windows = in_windows(rows, b.window_size, b.shift_size, attend).view(batch, length, channels)
    out = x + windows + dictionary + categories
    features = {"parallel_attention": normed, "parallel_attention_raw": x}
    if ports.wants("attention"):
        features["attention"] = windows + dictionary + categories
    out = added(out, ports, Layout.NLC, x_size, features)
    normed = b.norm2(out)
    out = mlp_added(out, b.convffn(normed, x_size), normed, ports, Layout.NLC, x_size)
    if not b.is_last:
        kept = b.sigmoid(b.sigma)
        weights = b.softmax(b.norm3(similarity.transpose(-1, -2)))
        td = kept * td + (1 - kept) * torch.einsum("btn,bnc->btc", weights, out)
    return out, td


def _token_change(
    b: Any,
    windows: Tensor,
    index: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int, int],
    extras: Sequence[ExtraTokens],
) -> Tensor:
    """Return the change in attention in windows that extra tokens cause, from projected windows (windows, L, 3C)."""
    attention = b.attn_win
    own = in_heads(windows, attention.num_heads)
    parts = Windows(*own, grid=grid, scale=attention.scale, bias=position_bias(attention, index), mask=mask)
    return change([parts], lambda out: attention.proj(out[0]), of_qkv(b.wqkv, b.norm1), windows, extras)


def atd_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x2 windows, a dictionary, the size, and a random position index and mask."""
    b: Any = block
    window, weight = b.window_size, b.norm1.weight
    entries = b.attn_win.relative_position_bias_table.shape[0]
    index = torch.randint(0, entries, (window**2, window**2), generator=torch.Generator().manual_seed(0), device="cpu")
    params = {"rpi_sa": index.to(weight.device), "attn_mask": noise(weight, 4, window**2, window**2)}
    tokens = noise(weight, 1, 4 * window**2, weight.shape[0])
    return tokens, noise(weight, 1, b.num_tokens, weight.shape[0]), (2 * window, 2 * window), params


LAYER = BlockForward(name="atd.layer", forward=atd_forward, ports=BLOCK_PORTS | {TOKENS}, example=atd_example)

ATD = register_family(
    Family(
        name="atd",
        title="ATD",
        signature=(
            (
                "layers.*.residual_group.layers.*.attn_win.relative_position_bias_table",
                "layers.*.residual_group.layers.*.attn_atd",
                "layers.*.residual_group.layers.*.attn_aca",
                "layers.*.conv",
            ),
        ),
        places=(
            *block_places("layers.{stage}.residual_group.layers.{block}", "norm1.weight", LAYER),
            Place(
                name="stage",
                path="layers.{stage}.conv",
                channels="^residual_group.layers.0.norm1.weight",
                layout=Layout.NCHW,
            ),
        ),
        blocks=(LAYER,),
        facts=lambda network: {"scale": network.upscale, "channels": network.conv_first.weight.shape[1]},
        source="arXiv 2401.08209",
    )
)
