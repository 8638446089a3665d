"""SwinIR and Swin2SR (official code, BasicSR forks, spandrel, transformers)."""

from __future__ import annotations

from ..layouts import Layout
from .base import Family, Place, register_family

BLOCK = "layers.{stage}.residual_group.blocks.{block}"
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
        # The adapter works on each position by itself, so window attention's output serves before windows are merged.
        places=(
            Place(name="attention", path=f"{BLOCK}.attn", channels="proj.weight", layout=Layout.NLC),
            Place(name="mlp", path=f"{BLOCK}.mlp", channels="fc2.weight", layout=Layout.NLC),
            Place(name="parallel", path=f"{BLOCK}.mlp", channels="fc2.weight", layout=Layout.NLC, source="input"),
            Place(
                name="stage",
                path="layers.{stage}.conv",
                channels="^residual_group.blocks.0.norm1.weight",
                layout=Layout.NCHW,
            ),
        ),
        source="arXiv 2108.10257",
    )
)

# Post-norm networks: what a block adds to its residual stream is the norm's output.
SWIN2SR = register_family(
    Family(
        name="swin2sr",
        title="Swin2SR",
        signature=(("layers.*.residual_group.blocks.*.attn.cpb_mlp", "layers.*.conv"),),
        places=(
            Place(name="attention", path=f"{BLOCK}.norm1", channels="weight", layout=Layout.NLC),
            Place(name="mlp", path=f"{BLOCK}.norm2", channels="weight", layout=Layout.NLC),
            Place(name="parallel", path=f"{BLOCK}.mlp", channels="fc2.weight", layout=Layout.NLC, source="input"),
            Place(
                name="stage",
                path="layers.{stage}.conv",
                channels="^residual_group.blocks.0.norm1.weight",
                layout=Layout.NCHW,
            ),
        ),
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
        source="the transformers package, model type swin2sr",
    )
)
