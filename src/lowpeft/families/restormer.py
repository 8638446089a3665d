"""Restormer (official code, BasicSR forks)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..ports.layouts import Layout
from .base import TOKENS, Family, Place, register_family

LEVELS = (
    "encoder_level{stage}",
    "latent",
    "decoder_level3",
    "decoder_level2",
    "decoder_level1",
    "refinement",
)
"""Paths of the levels in the order in which they run, from the finest resolution down and up again."""


def _branches(name: str, child: str, **options: Any) -> tuple[Place, ...]:
    """Return places at a branch of every block; the block adds the branch's output."""
    return tuple(
        Place(
            name=name,
            path=f"{level}.{{block}}.{child}",
            channels="project_out.weight",
            layout=Layout.NCHW,
            **options,
        )
        for level in LEVELS
    )


def _facts(network: Any) -> dict[str, Any]:
    return {
        "scale": 1,
        "channels": network.patch_embed.proj.weight.shape[1],
        "size_multiple": math.prod(m.downscale_factor for m in network.modules() if isinstance(m, nn.PixelUnshuffle)),
    }


RESTORMER = register_family(
    Family(
        name="restormer",
        title="Restormer",
        signature=(
            (
                "encoder_level1.*.attn.qkv_dwconv",
                "latent.*.attn.qkv_dwconv",
                "decoder_level1.*.ffn.dwconv",
                "refinement.*.ffn.dwconv",
                "patch_embed.proj",
            ),
        ),
        places=(
            *_branches("attention", "attn"),
            *_branches("parallel_attention", "attn", source="input"),
            *_branches("mlp", "ffn"),
            *_branches("parallel", "ffn", source="input"),
            *(
                Place(name="stage", path=level, channels="0.attn.project_out.weight", layout=Layout.NCHW)
                for level in LEVELS
            ),
        ),
        facts=_facts,
        without={TOKENS: "Restormer attends over channels, so extra tokens have no meaning"},
        source="arXiv 2111.09881",
    )
)
