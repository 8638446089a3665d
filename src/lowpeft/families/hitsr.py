"""HiT-SR: HiT-SRF, HiT-SIR and HiT-SNG (official code)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ports.layouts import Layout, Size
from .base import TOKENS, BlockForward, Family, Ports, block_places, register_family
from .swin import BLOCK, BLOCK_PORTS, GROUP_CONV, attention_added, mlp_added, noise

Mlp = Callable[[Any, Tensor, Size], Tensor]


def _forward(block: nn.Module, ports: Ports, x: Tensor, x_size: Size, *, padded_to: Size, mlp: Mlp) -> Tensor:
    """Run HiT-SR's block: x + norm1(correlation x), then x + norm2(MLP x).

    The branches' outputs are those of the norms. Correlation and MLP read the residual stream without a norm, so the
    ports `parallel` and `parallel_raw` are the same, and so are `parallel_attention` and `parallel_attention_raw`.

    Args:
        block: HierarchicalTransformerBlock.
        ports: Adapters of the block.
        x: Tokens (N, L, C) with L = H·W.
        x_size: Height and width (H, W).
        padded_to: Height and width of which the block pads to multiples.
        mlp: Function from the MLP, its input and (H, W) to the MLP's output.

    Source: HiT-SR (arXiv 2407.05878).
    """
    b: Any = block
    (height, width), (batch, length, channels) = x_size, x.shape
    padded = b.check_image_size(x.view(batch, height, width, channels), padded_to)
    attended = b.correlation(padded)[:, :height, :width, :].contiguous().view(batch, length, channels)
    out = attention_added(x, b.drop_path(b.norm1(attended)), x, ports, Layout.NLC, x_size)
    contribution = b.drop_path(b.norm2(mlp(b.mlp, out, x_size)))
    return mlp_added(out, contribution, out, ports, Layout.NLC, x_size)


def srf_forward(block: nn.Module, ports: Ports, x: Tensor, x_size: Size, win_size: Size) -> Tensor:
    """Run the block of HiT-SRF, whose MLP contains a convolution; see `_forward`."""
    return _forward(block, ports, x, x_size, padded_to=win_size, mlp=lambda mlp, out, size: mlp(out, size))


def sir_forward(block: nn.Module, ports: Ports, x: Tensor, x_size: Size, win_size: Size) -> Tensor:
    """Run the block of HiT-SIR; see `_forward`."""
    return _forward(block, ports, x, x_size, padded_to=win_size, mlp=lambda mlp, out, size: mlp(out))


def sng_forward(block: nn.Module, ports: Ports, x: Tensor, x_size: Size, win_size: Size) -> Tensor:
    """Run the block of HiT-SNG, which pads to pairs of windows; see `_forward`."""
    pairs = (2 * win_size[0], 2 * win_size[1])
    return _forward(block, ports, x, x_size, padded_to=pairs, mlp=lambda mlp, out, size: mlp(out))


def example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 2x2 windows (the lower ones lack a row), their size, and the window's size."""
    b: Any = block
    weight, (down, right) = b.norm1.weight, b.window_size
    size = (2 * down - 1, 2 * right)
    return noise(weight, 1, size[0] * size[1], weight.shape[0]), size, b.window_size


CORRELATION = "layers.*.residual_group.blocks.*.correlation"
NGRAM = f"{CORRELATION}.ngram_window_partition"
CONVOLUTION = "layers.*.residual_group.blocks.*.mlp.dwconv"


def _family(name: str, title: str, forward: Callable[..., Tensor], *more: str) -> Family:
    block = BlockForward(name=f"{name}.block", forward=forward, ports=BLOCK_PORTS, example=example)
    return register_family(
        Family(
            name=name,
            title=title,
            signature=((f"{CORRELATION}.qv", "layers.*.conv", "conv_first", *more),),
            places=(*block_places(BLOCK, "norm1.weight", block), GROUP_CONV),
            blocks=(block,),
            facts=lambda network: {
                "scale": network.upscale,
                "channels": network.conv_first.weight.shape[1],
                "size_multiple": 1,
            },
            without={TOKENS: f"{title} correlates windows without a softmax over tokens"},
            source="arXiv 2407.05878; blocks pad to their windows themselves",
        )
    )


HITSRF = _family("hitsrf", "HiT-SRF", srf_forward, CONVOLUTION)
HITSIR = _family("hitsir", "HiT-SIR", sir_forward, f"!{CONVOLUTION}", f"!{NGRAM}")
HITSNG = _family("hitsng", "HiT-SNG", sng_forward, NGRAM)
