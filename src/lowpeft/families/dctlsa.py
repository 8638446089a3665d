"""DCTLSA (official code, spandrel)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ports.layouts import Layout
from .base import TOKENS, BlockForward, Family, Place, Ports, added, block_places, register_family
from .swin import BLOCK_PORTS, mlp_added, noise, pixel_shuffle_scale

BLOCK = "B{stage}.body.{block}.transformer_body.{part}.blocks.{block}"


def dctlsa_forward(block: nn.Module, ports: Ports, x: Tensor, x_size: tuple[int, int]) -> Tensor:
    """Run DCTLSA's block: linear attention in (cyclically shifted, unmasked) windows and a local branch, then the MLP.

    The module `attn` contains its shortcut: it returns x + local(x) + windows. The port `attention` reads that minus x.
    The MLP half is x + MLP x. There are no norms, so the ports `parallel` and `parallel_raw` are the same, and so are
    `parallel_attention` and `parallel_attention_raw`.

    Args:
        block: SwinTransformerBlock of DCTLSA.
        ports: Adapters of the block.
        x: Tokens (N, L, C) with L = H·W.
        x_size: Height and width (H, W), multiples of the window's side.

    Source: DCTLSA (doi 10.1109/TIM.2023.3304672).
    """
    b: Any = block
    (height, width), shift = x_size, b.shift_size
    rows = x.view(x.shape[0], height, width, x.shape[2])
    if shift > 0:
        rows = torch.roll(rows, shifts=(-shift, -shift), dims=(1, 2))
    rows = b.attn(rows, height, width, mask=None)
    if shift > 0:
        rows = torch.roll(rows, shifts=(shift, shift), dims=(1, 2))
    attended = rows.view(x.shape)
    features = {"parallel_attention": x, "parallel_attention_raw": x}
    if ports.wants("attention"):
        features["attention"] = attended - x
    out = added(attended, ports, Layout.NLC, x_size, features)
    return mlp_added(out, b.mlp(out), out, ports, Layout.NLC, x_size)


def dctlsa_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of 1x2 windows, and their size."""
    b: Any = block
    weight = b.mlp.fc2.weight
    size = (b.window_size, 2 * b.window_size)
    return noise(weight, 1, size[0] * size[1], weight.shape[0]), size


DCTLSA_BLOCK = BlockForward(name="dctlsa.block", forward=dctlsa_forward, ports=BLOCK_PORTS, example=dctlsa_example)

DCTLSA = register_family(
    Family(
        name="dctlsa",
        title="DCTLSA",
        signature=(
            (
                "B1.body.*.transformer_body.*.blocks.*.attn.local",
                "B1.body.*.transformer_body.*.blocks.*.mlp.fc2",
                "fea_conv",
                "upsampler",
            ),
        ),
        places=(
            *block_places(BLOCK, "mlp.fc2.weight", DCTLSA_BLOCK),
            Place(
                name="stage",
                path="B{stage}",
                channels="body.0.transformer_body.0.blocks.0.mlp.fc2.weight",
                layout=Layout.NCHW,
            ),
        ),
        blocks=(DCTLSA_BLOCK,),
        facts=lambda network: {
            "scale": pixel_shuffle_scale(network.upsampler),
            "channels": network.fea_conv.weight.shape[1],
        },
        without={TOKENS: "DCTLSA's attention is linear, without a softmax over tokens"},
        source="doi 10.1109/TIM.2023.3304672; the groups are joined densely, without a shortcut",
    )
)
