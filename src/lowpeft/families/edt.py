"""EDT (lowpeft's own code, with the authors' names)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..frozen import windows
from ..frozen.rebuilding import note
from ..ports.layouts import ExtraTokens, Layout
from . import fused
from .base import TOKENS, BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, from_windows, mlp_added, noise, to_windows
from .tokens import Windows, change, in_heads, of_qkv

GROUP = "body.layers.{stage}.residual_group"
BLOCK = GROUP + ".blocks.{block}"


def block_forward(
    block: nn.Module,
    ports: Ports,
    x: Tensor,
    x_size: tuple[int, int],
    masks: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Run EDT's block: x + attention(norm1 x), then x + MLP(norm2 x). Its adapters get (N,H,W,C).

    Args:
        block: Block of `lowpeft.backbones.networks.EDT`.
        ports: Adapters of the block.
        x: Tokens (N,L,C) with L = H·W.
        x_size: Height and width (H, W), multiples of the windows' sides.
        masks: Masks of the shifted wide and tall windows; None to use the block's own, for its own size.

    Source: EDT (arXiv 2112.10175).
    """
    b: Any = block
    x = x.view(x.shape[0], *x_size, -1)  # `len(x)` would fix the batch size of an exported network
    normed = b.norm1(x)
    attended = b.attend(normed, masks)
    if ports.wants(TOKENS):
        attended = attended + _token_change(b, normed, masks, ports.tokens(TOKENS, normed, Layout.NHWC, x_size))
    x = attention_added(x, attended, normed, ports, Layout.NHWC, x_size)
    normed = b.norm2(x)
    return mlp_added(x, b.mlp(normed), normed, ports, Layout.NHWC, x_size).flatten(1, 2)


def _token_change(b: Any, normed: Tensor, masks: tuple[Tensor, Tensor] | None, extras: Sequence[ExtraTokens]) -> Tensor:
    """Return the change in attention's output (N,H,W,C) that extra tokens cause; the position term stays the same."""
    batch, height, width, channels = normed.shape
    qkv = b.qkv(normed).unflatten(-1, (3, 2, -1))
    own = (b.attn_mask_h, b.attn_mask_v) if masks is None else masks
    parts, places = [], []
    for i, (h, w) in enumerate(b.windows):
        shift = (h // 2, w // 2) if b.shifted else (0, 0)
        count, grid = b.attns[i].heads, (batch, height // h, width // w)
        windows = to_windows(qkv[..., i, :].flatten(3), (h, w), shift)
        scale = (channels // (2 * count)) ** -0.5
        mask = own[i] if b.shifted else None
        parts.append(Windows(*in_heads(windows, count), grid=grid, scale=scale, mask=mask))
        places.append((grid, (h, w), shift))

    def output(attended: list[Tensor]) -> Tensor:
        maps = [from_windows(out, *place) for out, place in zip(attended, places, strict=True)]
        return b.proj(torch.cat(maps, -1))  # type: ignore[no-any-return]

    return change(parts, output, of_qkv(b.qkv, b.norm1), normed, extras)


def block_fused(
    block: nn.Module,
    ports: Ports,
    x: Tensor,
    x_size: tuple[int, int],
    masks: tuple[Tensor, Tensor] | None = None,
) -> Any:
    """Run EDT's block like `block_forward`, fused; both halves of the channels have heads of their own."""
    b: Any = block
    if ports.wants(TOKENS) or ports.must_call(b.attns) or ports.must_call(b.qkv) or ports.must_call(b.proj):
        return NotImplemented
    grid = x.view(x.shape[0], *x_size, -1)
    normed = b.norm1(grid)
    count, width = 2 * b.attns[0].heads, b.qkv.weight.shape[1] // (2 * b.attns[0].heads)
    last = ports.layer(b.proj)
    heads = windows.padded_heads(ports.layer(b.qkv), last, count)
    qkv = fused.projected(ports, heads.into, grid, normed, b.norm1)
    own = (b.attn_mask_h, b.attn_mask_v) if masks is None else masks
    halves = qkv.view(len(qkv), 3, 2, -1).unbind(2)
    parts = [_half_attended(b, i, half, x_size, own[i], heads.width, width) for i, half in enumerate(halves)]
    attended = last.run(torch.cat(parts, -1)).view(grid.shape)
    out = attention_added(grid, attended, normed, ports, Layout.NHWC, x_size)
    normed = b.norm2(out)
    return mlp_added(out, b.mlp(normed), normed, ports, Layout.NHWC, x_size).flatten(1, 2)


def _half_attended(
    b: Any, half: int, qkv: Tensor, size: tuple[int, int], mask: Tensor | None, padded: int, width: int
) -> Tensor:
    """Return attention of one half of the channels with its position term, (tokens, C/2), before the projection.

    Args:
        b: The block.
        half: 0 for wide windows, 1 for tall ones.
        qkv: Queries, keys and values of this half, (tokens, 3, heads·padded).
        size: Height and width of the image in tokens.
        mask: Mask of the shifted windows.
        padded: Channels of a head in `qkv`.
        width: Channels of a head.
    """
    part, (h, w) = b.attns[half], b.windows[half]
    shift, batch = ((h // 2, w // 2) if b.shifted else (0, 0)), len(qkv) // (size[0] * size[1])
    order = windows.order_of(batch, size, (h, w), shift, masked=b.shifted, device=qkv.device)
    rows = order.taken(qkv)
    note(rows, lambda given: given.index_select(0, order.rows), qkv)
    values = rows.view(-1, h * w, 3, part.heads, padded)
    masks = fused.region_masks(mask, order, size[1] // w) if b.shifted and mask is not None else None
    out = windows.attended(values, order, lambda region: None if masks is None else masks[region], width**-0.5)
    real = values[:, :, 2, :, :width].permute(0, 2, 3, 1).reshape(-1, part.heads * width, h, w)
    position = part.lepe(real).flatten(2).transpose(1, 2).reshape(-1, part.heads * width)
    return order.put_back(out.view(-1, part.heads, padded)[..., :width].flatten(1) + position)


def example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of side x 2·side for the window's longer side, their size, and a random mask per region."""
    b: Any = block
    weight, side = b.norm1.weight, max(b.windows[0])
    size = (side, 2 * side)
    tokens = noise(weight, 1, size[0] * size[1], weight.shape[0])
    return tokens, size, tuple(_region_noise(weight, size, window) for window in b.windows)


def _region_noise(like: Tensor, size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Return masks (windows, L, L) that are the same in all windows of a region; see `frozen.windows`."""
    rows, columns = size[0] // window[0], size[1] // window[1]
    regions = noise(like, 2, 2, window[0] * window[1], window[0] * window[1])
    last = [[int(i == n - 1) for i in range(n)] for n in (rows, columns)]
    return torch.stack([regions[row, column] for row in last[0] for column in last[1]])


BLOCK_FORWARD = BlockForward(
    name="edt.block", forward=block_forward, ports=BLOCK_PORTS | {TOKENS}, example=example, fused=block_fused
)

EDT = register_family(
    Family(
        name="edt",
        title="EDT",
        signature=(
            ("body.layers.*.residual_group.blocks.*.attns.*.lepe", "body.layers.*.residual_group.blocks.*.proj"),
        ),
        places=(
            *block_places(BLOCK, "norm1.weight", BLOCK_FORWARD),
            # EDT's groups have no convolution: the shortcut is added to residual_group's tokens.
            Place(name="stage", path=GROUP, channels="blocks.0.norm1.weight", layout=Layout.NLC),
        ),
        blocks=(BLOCK_FORWARD,),
        fused=((BLOCK, BLOCK_FORWARD.name),),
        facts=lambda network: {
            "scale": max(map(network.scale, network.config.tasks)),
            "channels": 3,
            "size_multiple": network.size_multiple,
            "tasks": network.config.tasks if len(network.config.tasks) > 1 else (),
        },
        source="arXiv 2112.10175",
    )
)
