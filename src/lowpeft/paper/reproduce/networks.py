"""Networks with random weights: HAT-L in its published size, and tiny ones of the families that papers compare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import LowpeftError
from ..experiments import Row

HAT_L: dict[str, Any] = {
    "window_size": 16,
    "conv_scale": 0.01,
    "overlap_ratio": 0.5,
    "mlp_ratio": 2,
    "img_range": 1.0,
    "depths": (6,) * 12,
    "num_heads": (6,) * 12,
    "embed_dim": 180,
    "compress_ratio": 3,
    "squeeze_factor": 30,
}
"""Options of HAT-L; source: XPixelGroup/HAT, options/test/HAT-L_SRx4_ImageNet-pretrain.yml."""

GROUPS = 12
"""Number of groups of a tiny HAT, that of HAT-L, so that recipes with different numbers of stereo adapters differ."""


def published_network(row: Row) -> nn.Module:
    """Build the network of the row's checkpoint in its published size.

    Raises:
        LowpeftError: The published size is not known here.
    """
    if row.weights not in _PUBLISHED:
        raise LowpeftError(
            f"the sizes of {row.weights} are not known; use --smoke, or a row with one of {', '.join(_PUBLISHED)}"
        )
    return _built(_PUBLISHED[row.weights])


def tiny_network(row: Row) -> nn.Module:
    """Build a tiny network of the row's family and scale.

    Raises:
        LowpeftError: There is no tiny network for the row's family or architecture.
    """
    if row.network not in _TINY:
        raise LowpeftError(f"row {row.name!r}: no tiny {row.network} network is known, only {', '.join(_TINY)}")
    return _built(partial(_TINY[row.network], row.scale))


def hat(**options: Any) -> nn.Module:
    """Build a HAT; needs spandrel."""
    from spandrel.architectures.HAT import HAT

    network: nn.Module = HAT(**options)
    return network


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def _tiny_hat(scale: int) -> nn.Module:
    return hat(
        img_size=8,
        window_size=4,
        embed_dim=12,
        depths=[1] * GROUPS,
        num_heads=[2] * GROUPS,
        mlp_ratio=2.0,
        compress_ratio=3,
        squeeze_factor=4,
        overlap_ratio=0.5,
        num_feat=16,
        upscale=scale,
        upsampler="pixelshuffle",
    )


def _tiny_edt(scale: int) -> nn.Module:
    from ...backbones.networks import EDT, EDTConfig

    return EDT(EDTConfig(tasks=(f"sr_x{scale}",), features=4, dim=60, depths=(2, 2), heads=6))


def _tiny_ipt(scale: int) -> nn.Module:
    from spandrel.architectures.IPT import IPT

    network: nn.Module = IPT(n_feats=4, num_heads=12, num_layers=2, scale=[scale])
    return network


_PUBLISHED = {f"HAT-L_SRx{scale}_ImageNet-pretrain.pth": partial(hat, **HAT_L, upscale=scale) for scale in (2, 3, 4)}
_TINY = {"edt": _tiny_edt, "hat": _tiny_hat, "ipt": _tiny_ipt}
