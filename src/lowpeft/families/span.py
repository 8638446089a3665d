"""SPAN, whose convolutions write their fused weights whenever they run in eval mode."""

from __future__ import annotations

from typing import Any

from ..ports.layouts import Layout
from .base import TOKENS, Family, Place, register_family

BLOCK, CHANNELS = "block_{stage}", "c1_r.eval_conv.weight"
"""Path of a block, and path of the parameter that gives its channels.

A block returns its output, a convolution's output and an attention map, all of one shape; the first is passed on. It
is one branch, which stands for attention and MLP alike.
"""


def _place(name: str, **options: Any) -> Place:
    return Place(name=name, path=BLOCK, channels=CHANNELS, layout=Layout.NCHW, item=0, **options)


SPAN = register_family(
    Family(
        name="span",
        title="SPAN",
        signature=(("block_*.c1_r.eval_conv", "block_*.c3_r.eval_conv", "conv_cat", "conv_2"),),
        places=(
            *(_place(name) for name in ("attention", "mlp", "stage")),
            *(_place(name, source="input") for name in ("parallel_attention", "parallel")),
        ),
        writes_itself=True,
        without={TOKENS: "SPAN has no attention over tokens"},
        source="arXiv 2311.12770",
    )
)
