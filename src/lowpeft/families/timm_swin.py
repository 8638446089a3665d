"""timm's Swin Transformer v1 and v2: networks of features, not of images."""

from __future__ import annotations

from typing import Any

from ..layouts import Layout
from .base import Family, Place, register_family
from .swin import beside_mlp, mlp_contribution, post_norm, window_attention

BLOCK = "layers.{stage}.blocks.{block}"
STAGE = Place(
    name="stage", path="layers.{stage}", channels="blocks.0.norm1.weight", layout=Layout.NHWC
)  # the shortcut is inside the blocks


def _feature_facts(network: Any) -> dict[str, Any]:
    return {
        "scale": None,
        "channels": network.patch_embed.proj.weight.shape[1],
        "size_multiple": network.patch_embed.patch_size[0],
        "notes": ("scale: none, because the network gives features",),
    }


TIMM_SWIN = register_family(
    Family(
        name="timm_swin",
        title="Swin Transformer v1 (timm)",
        signature=(("layers.*.blocks.*.attn.relative_position_bias_table", "layers.*.downsample", "patch_embed.proj"),),
        places=(window_attention(BLOCK), mlp_contribution(BLOCK), beside_mlp(BLOCK), STAGE),
        facts=_feature_facts,
        source="arXiv 2103.14030; the timm package",
    )
)

TIMM_SWIN_V2 = register_family(
    Family(
        name="timm_swin_v2",
        title="Swin Transformer v2 (timm)",
        signature=(("layers.*.blocks.*.attn.cpb_mlp", "layers.*.downsample", "patch_embed.proj"),),
        places=(*post_norm(BLOCK, Layout.NHWC), beside_mlp(BLOCK), STAGE),
        facts=_feature_facts,
        source="arXiv 2111.09883; the timm package",
    )
)
