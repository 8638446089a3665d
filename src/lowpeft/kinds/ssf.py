"""SSF: a factor and an offset per output channel of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ports.attachment import Layer
from .matrices import MatrixAdapter, MatrixConfig, matrix_groups


@dataclass(frozen=True, kw_only=True)
class SSFConfig(MatrixConfig):
    """Settings of factors and offsets on the output channels of Linear, convolution and normalisation layers."""

    kind: ClassVar[str] = "ssf"


class SSF(MatrixAdapter):
    """Adapted output `y · (1 + scale) + shift` of a layer's output y; scale and shift are zero when new.

    It is folded into the layer: the weight changes by `scale · W` (per output row), the bias by `scale · b + shift`.
    This is exact for every padding, because it acts on the layer's output. A layer without a bias gets the factor only:
    an offset would need a parameter that the checkpoint does not have.

    Trained parameters per layer: 2 · rows, or rows without a bias.

    Source: SSF (arXiv 2210.08823). The published code initialises with N(1, 0.02) and N(0, 0.02), so a new network
    there differs from its base; here it equals the base.
    """

    kind = "ssf"

    def __init__(self, layer: Layer, config: SSFConfig) -> None:
        super().__init__(layer, config)
        outputs = self.layer.matrix_shape[0]
        self.scale = nn.Parameter(torch.zeros(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs)) if len(layer.names) > 1 else None

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return the weight, together with the bias if the layer has one, as one group."""
        names = matrix_groups(module)[0] if matrix_groups(module) else ("weight",) if _is_norm(module) else ()
        if not names:
            return ()
        bias = "in_proj_bias" if names == ("in_proj_weight",) else "bias"
        return ((*names, bias),) if module._parameters.get(bias) is not None else (names,)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return scale · W for the weight and scale · b + shift for the bias."""
        weight, *bias = self.layer.names
        rows = self.layer.rows(base[weight])
        changes = {weight: self.layer.from_rows(self.scale[:, None] * rows, weight)}
        if bias and self.shift is not None:
            change = self.scale[:, None] * self.layer.rows(base[bias[0]]) + self.shift[:, None]
            changes[bias[0]] = self.layer.from_rows(change, bias[0])
        return changes


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm with one factor per channel: "norm" in its class name, and a 1-D weight."""
    weight = module._parameters.get("weight")
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1
