"""HAT (official code, BasicSR forks, spandrel)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layouts import Layout
from .base import AddDelta, Branch, Family, Place, register_family
from .swin import BLOCK, GROUP_CONV, beside_mlp, image_facts, mlp_contribution


def hab_forward(
    block: nn.Module, delta: AddDelta, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor | None
) -> Tensor:
    """HAT's hybrid attention block, with adapters on the sum of window attention and scaled channel attention.

    With a = attention(norm1 x) and c = conv_scale · CAB(norm1 x): `x + a + c + delta(a + c)`, then the MLP. The base's
    own order of additions is kept, so that a delta of zero changes no bit.

    Args:
        block: A HAB.
        delta: What the adapters add to (B, L, C) tokens.
        x: (B, L, C) with L = H·W.
        x_size: (H, W), multiples of the window.
        rpi_sa: (window², window²) relative position index.
        attn_mask: (windows, window², window²) of the shifted windows; unshifted blocks use none.

    Source: HAT (arXiv 2205.04437), section 3.2.
    """
    b: Any = block
    (height, width), window, shift = x_size, b.window_size, b.shift_size
    batch, _, channels = x.shape
    normed = b.norm1(x).view(batch, height, width, channels)

    conv = b.conv_block(normed.permute(0, 3, 1, 2))
    conv = conv.permute(0, 2, 3, 1).contiguous().view(batch, height * width, channels)

    shifted = torch.roll(normed, shifts=(-shift, -shift), dims=(1, 2)) if shift > 0 else normed
    windows = shifted.view(batch, height // window, window, width // window, window, channels)
    windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)
    attended = b.attn(windows, rpi=rpi_sa, mask=attn_mask if shift > 0 else None)
    attended = attended.view(batch, height // window, width // window, window, window, channels)
    attended = attended.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
    if shift > 0:
        attended = torch.roll(attended, shifts=(shift, shift), dims=(1, 2))
    attention = b.drop_path(attended.reshape(batch, height * width, channels))

    scaled = conv * b.conv_scale
    out = x + attention + scaled
    extra = delta(attention + scaled)
    if extra is not None:
        out = out + extra
    result: Tensor = out + b.drop_path(b.mlp(b.norm2(out)))
    return result


def hab_example(block: nn.Module) -> tuple[Any, ...]:
    """Random tokens of 2x2 windows, and the index and mask that go with them."""
    b: Any = block
    window, weight = b.window_size, b.norm1.weight
    generator = torch.Generator().manual_seed(0)
    entries = b.attn.relative_position_bias_table.shape[0]
    x = torch.randn(1, 4 * window**2, weight.shape[0], generator=generator).to(weight.device, weight.dtype)
    index = torch.randint(0, entries, (window**2, window**2), generator=generator).to(weight.device)
    mask = torch.randn(4, window**2, window**2, generator=generator).to(weight.device, weight.dtype)
    return x, (2 * window, 2 * window), index, mask


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
        places=(
            Place(name="attention", path=BLOCK, channels="norm1.weight", layout=Layout.NLC, branch="hat.hab"),
            mlp_contribution(BLOCK),
            beside_mlp(BLOCK),
            GROUP_CONV,
        ),
        facts=image_facts,
        branches=(Branch(name="hat.hab", forward=hab_forward, example=hab_example),),
        source="arXiv 2205.04437; placement as in ASteISR, arXiv 2407.03598",
    )
)
