"""Convolutional networks: NAFNet's U-shape, and the residual groups of RCAN and EDSR."""

from __future__ import annotations

from ..layouts import Layout
from .base import Family, Place, PlaceName, register_family


def _nchw(name: PlaceName, path: str, channels: str) -> Place:
    return Place(name=name, path=path, channels=channels, layout=Layout.NCHW)


# A NAFBlock scales both of its contributions by learned vectors (beta, gamma); the adapters sit before the scaling.
NAFNET = register_family(
    Family(
        name="nafnet",
        title="NAFNet",
        signature=(("middle_blks.*.sca", "middle_blks.*.beta", "intro", "ending"),),
        places=(
            _nchw("attention", "encoders.{stage}.{block}.conv3", "weight"),
            _nchw("attention", "middle_blks.{block}.conv3", "weight"),
            _nchw("attention", "decoders.{stage}.{block}.conv3", "weight"),
            _nchw("mlp", "encoders.{stage}.{block}.conv5", "weight"),
            _nchw("mlp", "middle_blks.{block}.conv5", "weight"),
            _nchw("mlp", "decoders.{stage}.{block}.conv5", "weight"),
            _nchw("stage", "encoders.{stage}", "0.conv3.weight"),
            _nchw("stage", "middle_blks", "0.conv3.weight"),
            _nchw("stage", "decoders.{stage}", "0.conv3.weight"),
        ),
        source="arXiv 2204.04676",
    )
)

RCAN = register_family(
    Family(
        name="rcan",
        title="RCAN",
        signature=(
            ("body.*.body.*.body.*.conv_du", "head", "tail"),
            ("body.*.residual_group.*.rcab", "body.*.conv", "conv_first"),
        ),
        places=(
            _nchw("attention", "body.{stage}.body.{block}.body", "0.weight"),
            _nchw("attention", "body.{stage}.residual_group.{block}.rcab", "0.weight"),
            _nchw("stage", "body.{stage}.body", "0.body.0.weight"),
            _nchw("stage", "body.{stage}.conv", "weight"),
        ),
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
            _nchw("attention", "body.{stage}.body", "0.weight"),
            _nchw("attention", "body.{stage}.conv2", "weight"),
            _nchw("stage", "body.{stage}.body", "0.weight"),
            _nchw("stage", "body.{stage}.conv2", "weight"),
        ),
        source="arXiv 1707.02921; the authors' and BasicSR's names",
    )
)
