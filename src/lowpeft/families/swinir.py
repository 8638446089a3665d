"""SwinIR and Swin2SR (official code, BasicSR forks, spandrel, transformers)."""

from __future__ import annotations

from ..layouts import Layout
from .base import Family, Place, register_family
from .swin import BLOCK, GROUP_CONV, beside_mlp, image_facts, mlp_contribution, post_norm, window_attention

HF_BLOCK = "encoder.stages.{stage}.layers.{block}"

SWINIR = register_family(
    Family(
        name="swinir",
        title="SwinIR",
        signature=(
            (
                "layers.*.residual_group.blocks.*.attn.relative_position_bias_table",
                "layers.*.residual_group.blocks.*.norm1",
                "layers.*.residual_group.blocks.*.mlp.fc2",
                "layers.*.conv",
                "!layers.*.residual_group.blocks.*.conv_block",
                "!layers.*.residual_group.overlap_attn",
            ),
        ),
        places=(window_attention(BLOCK), mlp_contribution(BLOCK), beside_mlp(BLOCK), GROUP_CONV),
        facts=image_facts,
        source="arXiv 2108.10257",
    )
)

SWIN2SR = register_family(
    Family(
        name="swin2sr",
        title="Swin2SR",
        signature=(("layers.*.residual_group.blocks.*.attn.cpb_mlp", "layers.*.conv"),),
        places=(*post_norm(BLOCK), beside_mlp(BLOCK), GROUP_CONV),
        facts=image_facts,
        source="arXiv 2209.11345",
    )
)

SWIN2SR_TRANSFORMERS = register_family(
    Family(
        name="swin2sr_transformers",
        title="Swin2SR (transformers)",
        signature=(("encoder.stages.*.layers.*.layernorm_before", "encoder.stages.*.conv"),),
        places=(
            Place(name="attention", path=f"{HF_BLOCK}.layernorm_before", channels="weight", layout=Layout.NLC),
            Place(name="mlp", path=f"{HF_BLOCK}.layernorm_after", channels="weight", layout=Layout.NLC),
            Place(
                name="stage",
                path="encoder.stages.{stage}.conv",
                channels="^layers.0.layernorm_before.weight",
                layout=Layout.NCHW,
            ),
        ),
        output="reconstruction",
        facts=lambda network: {
            "scale": network.config.upscale,
            "channels": network.config.num_channels,
            "size_multiple": network.config.window_size,
        },
        source="the transformers package, model type swin2sr",
    )
)
