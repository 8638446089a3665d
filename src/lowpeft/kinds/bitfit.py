"""BitFit: training of the biases alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import LayersConfig
from .full import Full
from .roles import bias_parameters


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(LayersConfig):
    """Settings of the training of biases. Without a target, all biases of the network are trained."""

    kind: ClassVar[str] = "bitfit"


class BitFit(Full):
    """Adapted bias `b + d`; d has the shape of b and is zero when new.

    Trained parameters per layer: rows, or none without a bias.

    Biases are found by their role: `bias` of linear layers, convolutions, transposed convolutions and norms,
    `in_proj_bias` of nn.MultiheadAttention, and 1-D parameters of other modules that are named `bias` or end in
    `_bias`. Position tables, and `bias_k` and `bias_v` of nn.MultiheadAttention (an extra key and value), are none. A
    layer without a bias gets none.

    Source: BitFit (arXiv 2106.10199). The authors' code takes every parameter with "bias" in its name, so position
    tables too; peft takes names that end in ".bias", so no `in_proj_bias` (where it trains biases beside its methods).
    """

    kind = "bitfit"

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return one group for each bias of the module itself."""
        return tuple((name,) for name in bias_parameters(module))
