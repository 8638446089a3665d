"""IPT: a plain transformer on the 16x16 grid of 3x3-pixel tokens of a 48x48 crop."""

from __future__ import annotations

from ..layouts import Layout
from .base import Family, Place, register_family

ENCODER, DECODER = "body.encoder.layers.{stage}", "body.decoder.layers.{stage}"


def _tokens(name: str, path: str, channels: str, item: int | None = None) -> Place:
    return Place(name=name, path=path, channels=channels, layout=Layout.LNC, item=item, square=True)


IPT = register_family(
    Family(
        name="ipt",
        title="IPT",
        signature=(
            ("body.linear_encoding", "body.encoder.layers.*.self_attn", "body.decoder.layers.*.multihead_attn"),
        ),
        places=(
            _tokens("attention", f"{ENCODER}.self_attn", "out_proj.weight", item=0),
            _tokens("attention", f"{DECODER}.self_attn", "out_proj.weight", item=0),
            _tokens("mlp", f"{ENCODER}.linear2", "weight"),
            _tokens("mlp", f"{DECODER}.linear2", "weight"),
            _tokens("stage", ENCODER, "linear2.weight"),
        ),
        facts=lambda network: {
            "scale": network.scale[network.scale_idx],
            "value_range": (0.0, float(network.rgb_range)),
            "channels": 3,
            "fixed_px": network.patch_size,
        },
        source="arXiv 2012.00364",
    )
)
