"""CRAFT (official code, spandrel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ports.layouts import ExtraTokens, Layout
from .base import TOKENS, BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, from_windows, mlp_added, noise, to_windows
from .tokens import Windows, change, in_heads, of_qkv

GROUP = "layers.{stage}.residual_group"
HYBRID = GROUP + ".hf_blocks.{block}"


def srwab_forward(
    block: nn.Module,
    ports: Ports,
    x: Tensor,
    x_size: tuple[int, int],
    params: Mapping[str, Any],
    attn_mask: Sequence[Tensor | None],
) -> Tensor:
    """Run CRAFT's shifted rectangle window attention block: x + attention(norm1 x), then x + MLP(norm2 x).

    Half of the channels goes through wide windows, the other half through tall ones. A depth-wise convolution of the
    values is added before the projection.

    Args:
        block: SRWAB.
        ports: Adapters of the block.
        x: Tokens (N, L, C) with L = H·W.
        x_size: Height and width (H, W), multiples of the windows' sides.
        params: Relative positions and their indices: `biases_h` and `rpi_sa_h` for wide windows, `biases_v` and
            `rpi_sa_v` for tall ones.
        attn_mask: Masks of wide and of tall windows, used by shifted blocks; None for no mask.

    Source: CRAFT (arXiv 2308.05022).
    """
    b: Any = block
    (height, width), half = x_size, x.shape[2] // 2
    batch, _, channels = x.shape
    normed = b.norm1(x)
    qkv = b.qkv(normed).reshape(batch, -1, 3, channels).permute(2, 0, 1, 3)
    value = qkv[2].transpose(-2, -1).contiguous().view(batch, channels, height, width)

    down, right = b.shift_size
    shifted = down > 0 or right > 0

    def attend(side: str, number: int, part: Tensor, shift: tuple[int, int]) -> Tensor:
        if shifted:
            rows = part.reshape(3, batch, height, width, half)
            part = torch.roll(rows, shifts=(-shift[0], -shift[1]), dims=(2, 3)).view(3, batch, height * width, half)
        out: Tensor = b.attns[number](
            part,
            height,
            width,
            mask=attn_mask[number] if shifted else None,
            rpi=params[f"rpi_sa_{side}"],
            rpe_biases=params[f"biases_{side}"],
        )
        return torch.roll(out, shifts=shift, dims=(1, 2)) if shifted else out

    wide = attend("h", 0, qkv[..., :half], (down, right))
    tall = attend("v", 1, qkv[..., half:], (right, down))
    attended = torch.cat([wide, tall], dim=-1).view(batch, -1, channels).contiguous()
    local = b.get_v(value).permute(0, 2, 3, 1).contiguous().view(batch, -1, channels)
    contribution = b.proj(attended + local)
    if ports.wants(TOKENS):
        extras = ports.tokens(TOKENS, normed, Layout.NLC, x_size)
        contribution = contribution + _token_change(b, normed, x_size, params, attn_mask, extras)
    out = attention_added(x, contribution, normed, ports, Layout.NLC, x_size)
    normed = b.norm2(out)
    return mlp_added(out, b.mlp(normed), normed, ports, Layout.NLC, x_size)


def _token_change(
    b: Any,
    normed: Tensor,
    x_size: tuple[int, int],
    params: Mapping[str, Any],
    masks: Sequence[Tensor | None],
    extras: Sequence[ExtraTokens],
) -> Tensor:
    """Return the change in attention's output (N, L, C) that extra tokens cause; the convolution stays the same."""
    batch, length, channels = normed.shape
    qkv = b.qkv(normed).view(batch, *x_size, 3, 2, channels // 2)
    shifted = any(shift > 0 for shift in b.shift_size)
    parts, places = [], []
    for i, (name, attention) in enumerate(zip("hv", b.attns, strict=True)):
        window = (attention.H_sp, attention.W_sp)
        shift = (b.shift_size[i], b.shift_size[1 - i]) if shifted else (0, 0)
        grid = (batch, x_size[0] // window[0], x_size[1] // window[1])
        bias = attention.pos(params[f"biases_{name}"])[params[f"rpi_sa_{name}"]].permute(2, 0, 1)
        own = in_heads(to_windows(qkv[..., i, :].flatten(3), window, shift), attention.num_heads)
        mask = masks[i] if shifted else None
        parts.append(Windows(*own, grid=grid, scale=attention.scale, bias=bias, mask=mask))
        places.append((grid, window, shift))

    def output(attended: list[Tensor]) -> Tensor:
        maps = [from_windows(out, *place) for out, place in zip(attended, places, strict=True)]
        return b.proj(torch.cat(maps, -1).view(batch, length, channels))  # type: ignore[no-any-return]

    return change(parts, output, of_qkv(b.qkv, b.norm1), normed, extras)


def srwab_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of a square of windows, their size, random relative positions, and no masks."""
    b: Any = block
    weight = b.norm1.weight
    low, high = sorted((b.attns[0].H_sp, b.attns[0].W_sp))
    side = 2 * high if high % low == 0 else low * high
    generator = torch.Generator().manual_seed(0)
    params: dict[str, Any] = {}
    for name, attention in zip("hv", b.attns, strict=True):
        rows, columns = attention.H_sp, attention.W_sp
        entries, count = (2 * rows - 1) * (2 * columns - 1), rows * columns
        index = torch.randint(0, entries, (count, count), generator=generator, device="cpu")
        params[f"rpi_sa_{name}"] = index.to(weight.device)
        params[f"biases_{name}"] = noise(weight, entries, 2)
    return noise(weight, 1, side * side, weight.shape[0]), (side, side), params, (None, None)


SRWAB = BlockForward(name="craft.srwab", forward=srwab_forward, ports=BLOCK_PORTS | {TOKENS}, example=srwab_example)


def _hybrid(name: str, child: str, **options: Any) -> Place:
    """Return a place at a branch of a hybrid fusion block; the branch's output is added to the residual stream."""
    return Place(name=name, path=f"{HYBRID}.{child}", channels="project_out.weight", layout=Layout.NCHW, **options)


CRAFT = register_family(
    Family(
        name="craft",
        title="CRAFT",
        signature=(
            (
                "layers.*.residual_group.srwa_blocks.*.attns",
                "layers.*.residual_group.srwa_blocks.*.get_v",
                "layers.*.residual_group.hf_blocks.*.attn.q_dwconv",
                "layers.*.conv",
            ),
        ),
        places=(
            *block_places(GROUP + ".srwa_blocks.{block}", "norm1.weight", SRWAB),
            _hybrid("attention", "attn"),
            _hybrid("parallel_attention", "attn", source="input"),
            _hybrid("mlp", "ffn"),
            _hybrid("parallel", "ffn", source="input"),
            Place(name="stage", path="layers.{stage}.conv", channels="weight", layout=Layout.NCHW),
        ),
        blocks=(SRWAB,),
        facts=lambda network: {"scale": network.upscale, "channels": network.conv_first.weight.shape[1]},
        source="arXiv 2308.05022; the window blocks of a group are numbered first, then its hybrid fusion blocks",
    )
)
