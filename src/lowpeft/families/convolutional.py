"""RCAN and EDSR (the authors' and BasicSR's names)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..ports.layouts import Layout
from .base import TOKENS, Family, Place, register_family
from .swin import pixel_shuffle_scale


def _nchw(name: str, path: str, channels: str, source: Literal["output", "input"] = "output") -> Place:
    return Place(name=name, path=path, channels=channels, layout=Layout.NCHW, source=source)


def _branch(path: str, channels: str, *, block: str | None = None, block_channels: str | None = None) -> list[Place]:
    """Return the places of a residual block's only branch, which stands for attention and MLP alike.

    Args:
        path: Path of the module that gives the branch's output.
        channels: Path of the parameter that gives its channels.
        block: Path of the module that reads the block's input, and gives its output; None for `path`.
        block_channels: Path, from there, of the parameter that gives the channels; None for `channels`.
    """
    beside = {"path": block or path, "channels": block_channels or channels, "source": "input"}
    outputs = [_nchw(name, path, channels) for name in ("attention", "mlp")]
    return [*outputs, *(_nchw(name, **beside) for name in ("parallel_attention", "parallel"))]  # type: ignore[arg-type]


def _upscaler_facts(network: Any) -> dict[str, Any]:
    """Return the facts. A mean colour above 1 means values 0..255, unless the network scales values itself."""
    first = next(m for m in network.head.modules() if isinstance(m, nn.Conv2d))
    facts: dict[str, Any] = {
        "scale": pixel_shuffle_scale(network.tail),
        "channels": first.weight.shape[1],
        "size_multiple": 1,
    }
    mean = getattr(network.sub_mean, "bias", None)
    if mean is not None and not hasattr(network, "rgb_range") and float(mean.detach().abs().max()) > 1:
        facts["value_range"] = (0.0, 255.0)
    return facts


RCAN = register_family(
    Family(
        name="rcan",
        title="RCAN",
        signature=(
            ("body.*.body.*.body.*.conv_du", "head", "tail"),
            ("body.*.residual_group.*.rcab", "body.*.conv", "conv_first"),
        ),
        places=(
            *_branch("body.{stage}.body.{block}.body", "0.weight"),
            *_branch("body.{stage}.residual_group.{block}.rcab", "0.weight"),
            _nchw("stage", "body.{stage}.body", "0.body.0.weight"),
            _nchw("stage", "body.{stage}.conv", "weight"),
        ),
        facts=_upscaler_facts,
        without={TOKENS: "RCAN's attention is a gate for each channel, without tokens"},
        source="arXiv 1807.02758; the authors' and BasicSR's names",
    )
)

EDSR = register_family(
    Family(
        name="edsr",
        title="EDSR",
        signature=(
            ("body.*.body.0.weight", "head", "tail", "!body.*.body.*.body"),
            ("body.*.conv1.weight", "body.*.conv2.weight", "conv_first", "conv_after_body", "!body.*.residual_group"),
        ),
        places=(
            *_branch("body.{stage}.body", "0.weight"),
            *_branch("body.{stage}.conv2", "weight", block="body.{stage}", block_channels="conv2.weight"),
            _nchw("stage", "body.{stage}.body", "0.weight"),
            _nchw("stage", "body.{stage}.conv2", "weight"),
        ),
        facts=_upscaler_facts,
        without={TOKENS: "EDSR has no attention"},
        source="arXiv 1707.02921; the authors' and BasicSR's names",
    )
)
