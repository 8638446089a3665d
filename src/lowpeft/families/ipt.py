"""IPT: a plain transformer on the 16x16 grid of 3x3-pixel tokens of a 48x48 crop."""

from __future__ import annotations

from ..layouts import Layout
from .base import Family, Place, register_family

ENCODER, DECODER = "body.encoder.layers.{stage}", "body.decoder.layers.{stage}"

IPT = register_family(
    Family(
        name="ipt",
        title="IPT",
        signature=(
            ("body.linear_encoding", "body.encoder.layers.*.self_attn", "body.decoder.layers.*.multihead_attn"),
        ),
        places=(
            Place(
                name="attention",
                path=f"{ENCODER}.self_attn",
                channels="out_proj.weight",
                layout=Layout.LNC,
                item=0,
                square=True,
            ),
            Place(
                name="attention",
                path=f"{DECODER}.self_attn",
                channels="out_proj.weight",
                layout=Layout.LNC,
                item=0,
                square=True,
            ),
            Place(name="mlp", path=f"{ENCODER}.linear2", channels="weight", layout=Layout.LNC, square=True),
            Place(name="mlp", path=f"{DECODER}.linear2", channels="weight", layout=Layout.LNC, square=True),
            Place(name="stage", path=ENCODER, channels="linear2.weight", layout=Layout.LNC, square=True),
        ),
        rgb_range=True,
        source="arXiv 2012.00364",
    )
)
