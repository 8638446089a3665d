"""DAT (official code, spandrel)."""

from __future__ import annotations

from typing import Any

from ..ports.layouts import Layout
from .base import TOKENS, Family, Place, register_family

BLOCK = "layers.{stage}.blocks.{block}"


def _branch(name: str, child: str, channels: str, **options: Any) -> Place:
    """Return a place at a branch of the block, which gets height and width and whose output the block adds."""
    return Place(name=name, path=f"{BLOCK}.{child}", channels=channels, layout=Layout.NLC, **options)


DAT = register_family(
    Family(
        name="dat",
        title="DAT",
        signature=(
            (
                "layers.*.blocks.*.attn.channel_interaction",
                "layers.*.blocks.*.attn.spatial_interaction",
                "layers.*.blocks.*.ffn.sg",
                "layers.*.conv",
                "before_RG",
            ),
        ),
        places=(
            _branch("attention", "attn", "proj.weight"),
            _branch("parallel_attention", "attn", "proj.weight", source="input"),
            _branch("mlp", "ffn", "fc2.weight"),
            _branch("parallel", "ffn", "fc2.weight", source="input"),
            Place(name="stage", path="layers.{stage}.conv", channels="^blocks.0.norm1.weight", layout=Layout.NCHW),
        ),
        facts=lambda network: {"scale": network.upscale, "channels": network.conv_first.weight.shape[1]},
        without={
            TOKENS: "half of DAT's blocks attend over channels, the others join attention and a convolution in a module"
        },
        source="arXiv 2308.03364",
    )
)
