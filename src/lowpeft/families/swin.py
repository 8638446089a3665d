"""Places that the networks made of Swin-type blocks have in common."""

from __future__ import annotations

from typing import Any

from ..layouts import Layout
from .base import Place

BLOCK = "layers.{stage}.residual_group.blocks.{block}"
GROUP_CONV = Place(
    name="stage",
    path="layers.{stage}.conv",
    channels="^residual_group.blocks.0.norm1.weight",
    layout=Layout.NCHW,
)
"""The last convolution of a residual group, before the group's shortcut is added."""


def mlp_contribution(block: str) -> Place:
    """What a pre-norm block's MLP adds to the residual stream."""
    return Place(name="mlp", path=f"{block}.mlp", channels="fc2.weight", layout=Layout.NLC)


def beside_mlp(block: str) -> Place:
    """The MLP's input, for an adapter in parallel to it."""
    return Place(name="parallel", path=f"{block}.mlp", channels="fc2.weight", layout=Layout.NLC, source="input")


def window_attention(block: str) -> Place:
    """Window attention of a pre-norm block, before windows are merged: the adapters work on each position by itself."""
    return Place(name="attention", path=f"{block}.attn", channels="proj.weight", layout=Layout.NLC)


def post_norm(block: str, layout: Layout = Layout.NLC) -> tuple[Place, Place]:
    """Both contributions of a post-norm block: what it adds to the residual stream are the norms' outputs."""
    return (
        Place(name="attention", path=f"{block}.norm1", channels="weight", layout=layout),
        Place(name="mlp", path=f"{block}.norm2", channels="weight", layout=layout),
    )


def image_facts(network: Any) -> dict[str, Any]:
    """Facts that HAT, SwinIR and Swin2SR keep as attributes; sides are padded to the window by some copies only."""
    return {
        "scale": network.upscale,
        "channels": network.conv_first.weight.shape[1],
        "size_multiple": network.window_size,
    }
