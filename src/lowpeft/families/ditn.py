"""DITN (official code, spandrel)."""

from __future__ import annotations

from typing import Any

from ..ports.layouts import Layout
from .base import TOKENS, Family, Place, register_family
from .swin import pixel_shuffle_scale

BLOCK = "UFONE.{stage}.SALs.{stage}"
"""Path of a spatial-aware layer, whose attention is SDA.

The layers before it, ITLs, have no places: they get patches of 8x8 pixels separately, and nothing tells which patches
belong to one image.
"""


def _branch(name: str, child: str, channels: str, **options: Any) -> Place:
    return Place(name=name, path=f"{BLOCK}.{child}", channels=channels, layout=Layout.NCHW, **options)


DITN = register_family(
    Family(
        name="ditn",
        title="DITN",
        signature=(("UFONE.*.SALs.*.SDA.DConvs", "UFONE.*.SALs.*.ffn.project_out", "UFONE.*.ITLs.*.attn", "sft"),),
        places=(
            _branch("attention", "SDA", "proj_last.0.weight"),
            _branch("parallel_attention", "SDA", "proj_last.0.weight", source="input"),
            _branch("mlp", "ffn", "project_out.weight"),
            _branch("parallel", "ffn", "project_out.weight", source="input"),
            Place(name="stage", path=BLOCK, channels="conv1.weight", layout=Layout.NCHW),
        ),
        facts=lambda network: {
            "scale": pixel_shuffle_scale(network.upsample),
            "channels": network.sft.weight.shape[1],
        },
        without={TOKENS: "DITN attends over channels, so extra tokens have no meaning"},
        source="arXiv 2308.02794; the released network has one UFONE, so that its layers are the stages",
    )
)
