"""SSF: a factor and an offset for each output channel of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import AdapterConfig, WeightAdapter
from .lora import matrix_groups
from .site import Layer


@dataclass(frozen=True, kw_only=True)
class SSFConfig(AdapterConfig):
    """A factor and an offset on the output channels of Linear, convolution and normalisation layers."""

    kind: ClassVar[str] = "ssf"


class SSF(WeightAdapter):
    """`y · (1 + scale) + shift` for the output y of a layer, folded into its weight and bias; zero when new.

    Weight and bias change by `scale · W` (each output's row) and `scale · b + shift`. That is exact for every padding,
    because it acts after the layer. A layer without a bias gets the factor only: an offset would need a parameter that
    its checkpoint does not have. `out` parameters, 2 · out with a bias.

    Source: SSF (arXiv 2210.08823). Its published code starts at N(1, 0.02) and N(0, 0.02), so not at the base; this one
    starts at the base.
    """

    kind = "ssf"

    def __init__(self, layer: Layer, config: SSFConfig) -> None:
        super().__init__()
        self.layer = layer
        outputs = layer.matrix_shape[0]
        self.scale = nn.Parameter(torch.zeros(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs)) if len(layer.names) > 1 else None

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Weight and bias, where there is one, of a layer with one factor for each output."""
        names = matrix_groups(module)[0] if matrix_groups(module) else ("weight",) if _is_norm(module) else ()
        if not names:
            return ()
        bias = "in_proj_bias" if names == ("in_proj_weight",) else "bias"
        return ((*names, bias),) if module._parameters.get(bias) is not None else (names,)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Scale · W and scale · b + shift."""
        weight, *bias = self.layer.names
        rows = self.layer.rows(base[weight])
        changes = {weight: self.layer.from_rows(self.scale[:, None] * rows, weight)}
        if bias and self.shift is not None:
            changes[bias[0]] = self.scale * base[bias[0]] + self.shift
        return changes


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises and then scales each channel: told by its name and its parameters."""
    weight = module._parameters.get("weight")
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1
