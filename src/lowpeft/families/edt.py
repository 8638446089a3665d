"""EDT, by its structure and the authors' names."""

from __future__ import annotations

from ..layouts import Layout
from .base import Family, Place, register_family
from .swin import beside_mlp, mlp_contribution

GROUP = "body.layers.{stage}.residual_group"
BLOCK = GROUP + ".blocks.{block}"

EDT = register_family(
    Family(
        name="edt",
        title="EDT",
        signature=(
            ("body.layers.*.residual_group.blocks.*.attns.*.lepe", "body.layers.*.residual_group.blocks.*.proj"),
        ),
        places=(
            Place(name="attention", path=f"{BLOCK}.proj", channels="weight", layout=Layout.NHWC),
            mlp_contribution(BLOCK),
            beside_mlp(BLOCK),
            # EDT's groups have no convolution: the shortcut is added to residual_group's tokens.
            Place(name="stage", path=GROUP, channels="blocks.0.norm1.weight", layout=Layout.NLC),
        ),
        facts=lambda network: {
            "scale": max(map(network.scale, network.config.tasks)),
            "channels": 3,
            "size_multiple": network.size_multiple,
            "tasks": network.config.tasks if len(network.config.tasks) > 1 else (),
        },
        source="arXiv 2112.10175",
    )
)
