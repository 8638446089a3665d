"""SSF: a factor and an offset per output channel of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ports.attachment import Layer
from .matrices import MatrixAdapter, MatrixConfig, output_groups, outputs_of, scaled_rows, weights_of
from .roles import is_norm


@dataclass(frozen=True, kw_only=True)
class SSFConfig(MatrixConfig):
    """Settings of factors and offsets on the output channels of Linear, convolution and normalisation layers."""

    kind: ClassVar[str] = "ssf"


class SSF(MatrixAdapter):
    """Adapted output `y · (1 + scale) + shift` of a layer's output y; scale and shift are zero when new.

    It is folded into the layer: the weight changes by `scale · W` (per output row), the bias by `scale · b + shift`.
    This is exact for every padding, because it acts on the layer's output. A layer without a bias gets the factor only:
    an offset would need a parameter that the checkpoint does not have. nn.MultiheadAttention with separate projections
    has one adapter for its three weights and its bias. Norms are those of `roles.is_norm` with a 1-D weight.

    Trained parameters per layer: 2 · rows, or rows without a bias.

    Source: SSF (arXiv 2210.08823). The published code initialises with N(1, 0.02) and N(0, 0.02), so a new network
    there differs from its base; here it equals the base.
    """

    kind = "ssf"
    scales_outputs = True

    def __init__(self, layer: Layer, config: SSFConfig) -> None:
        super().__init__(layer, config)
        outputs = sum(outputs_of(self.layer))
        self.scale = nn.Parameter(torch.zeros(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs)) if weights_of(layer) != layer.names else None

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return the weights, together with the bias if the layer has one, as one group."""
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if is_norm(module) and weight is not None and weight.dim() == 1:
            return (("weight", "bias"),) if bias is not None else (("weight",),)
        return output_groups(module)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return scale · W for the weights and scale · b + shift for the bias."""
        return scaled_rows(self.layer, base, self.scale, self.shift)
