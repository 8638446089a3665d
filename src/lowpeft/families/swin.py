"""Places that the networks made of Swin-type blocks have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layouts import Layout, Size
from .base import Place, Ports, added

BLOCK = "layers.{stage}.residual_group.blocks.{block}"
GROUP_CONV = Place(
    name="stage",
    path="layers.{stage}.conv",
    channels="^residual_group.blocks.0.norm1.weight",
    layout=Layout.NCHW,
)
"""The last convolution of a residual group, before the group's shortcut is added."""

BLOCK_PORTS = frozenset(
    {"attention", "mlp", "parallel", "parallel_raw", "parallel_attention", "parallel_attention_raw"}
)


def pre_norm_mlp(block: nn.Module, ports: Ports, x: Tensor, size: Size | None, layout: Layout = Layout.NLC) -> Tensor:
    """The second half of a pre-norm block: x + drop_path(mlp(norm2 x)), with the adapters at its ports.

    Args:
        block: The block.
        ports: Its adapters.
        x: The residual stream after attention.
        size: Height and width in positions.
        layout: Layout of `x`.
    """
    b: Any = block
    normed = b.norm2(x)
    contribution = b.drop_path(b.mlp(normed))
    features = {"mlp": contribution, "parallel": normed, "parallel_raw": x}
    return added(x + contribution, ports, layout, size, features)


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
