"""Roles of parameters: which modules are norms, which parameters are biases or scale and shift of a norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..ports.base import SLOT

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LAYERS_WITH_NORMED_WEIGHTS = (nn.Linear, _ConvNd, nn.Embedding, nn.MultiheadAttention)
"""Such a layer is no norm, whatever the name of its class (a convolution with spectral norm)."""


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm: one of torch's, or without submodules and with "norm" in its class name."""
    if isinstance(module, NORMS):
        return True
    if isinstance(module, LAYERS_WITH_NORMED_WEIGHTS) or "norm" not in type(module).__name__.lower():
        return False
    return all(name == SLOT for name in module._modules)


def is_vector(shape: Sequence[int]) -> bool:
    """Return whether at most one side is longer than 1, as in (C,) and (1, C, 1, 1); a single number is none."""
    return len(shape) > 0 and sum(side > 1 for side in shape) <= 1


def norm_parameters(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of a norm that are vectors: its factors and offsets, under any name."""
    if is_norm(module):
        yield from (name for name, p in _own(module) if is_vector(p.shape))


def bias_parameters(module: nn.Module) -> Iterator[str]:
    """Yield the names of the biases of a module itself: 1-D parameters named `bias` or `…_bias`.

    Those are the biases of linear layers, convolutions and attention (`in_proj_bias`, Swin2SR's `q_bias`, `v_bias`). In
    a norm they may have any shape. Tables (`relative_position_bias_table`) are none, and neither are `bias_k` and
    `bias_v` of nn.MultiheadAttention, which are an extra key and value.
    """
    for name, parameter in _own(module):
        if (name == "bias" or name.endswith("_bias")) and (parameter.dim() == 1 or is_norm(module)):
            yield name


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the floating-point parameters of the module itself, not of its submodules."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_floating_point():
            yield name, parameter
