"""IA3: one trained factor per output, or per input, of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from .. import checks
from ..errors import PlanError
from ..ports.attachment import Layer
from .matrices import MatrixAdapter, MatrixConfig, output_groups, outputs_of, scaled_rows, weights_of

Side = Literal["output", "input"]


@dataclass(frozen=True, kw_only=True)
class IA3Config(MatrixConfig):
    """Settings of factors on the outputs or inputs of layers.

    Attributes:
        side: `output`: a factor per output channel, on the rows of the weight and on the bias. `input`: a factor per
            input channel, on the columns of the weight.
    """

    kind: ClassVar[str] = "ia3"

    side: Side = "output"

    def check(self) -> None:
        """Raise if `side` is neither output nor input."""
        super().check()
        if problems := checks.one_of("side", self.side, get_args(Side)):
            raise PlanError(f"ia3 adapter: {problems[0]}")


class IA3(MatrixAdapter):
    """Adapted weight `l ∘ W` with l = 1 + `scale`, the offset of the factors, which is zero when new.

    On the output side l multiplies the rows of W and the bias, which is to multiply the layer's output; the change is
    `scale ∘ W` and `scale ∘ b`. On the input side it multiplies the columns of W, which is to multiply the layer's
    input; the bias stays. A convolution has one factor per channel for all kernel positions, and with groups the rows
    of group g take the factors of its input channels. nn.MultiheadAttention with separate projections has one adapter
    for its three weights: 3 · E, or E + kdim + vdim parameters.

    Trained parameters per layer: rows, or input channels with `side="input"`.

    Source: IA3 (arXiv 2205.05638), whose places are keys and values (here `rows="k,v"`) and the inputs of the second
    layer of each MLP (here `side="input"` with a target). There l itself is stored, here its offset from 1.
    """

    kind = "ia3"
    scales_outputs = True

    def __init__(self, layer: Layer, config: IA3Config) -> None:
        super().__init__(layer, config)
        self.on_inputs = config.side == "input"
        self.sizes = self._inputs() if self.on_inputs else outputs_of(self.layer)
        self.scale = nn.Parameter(torch.zeros(sum(self.sizes)))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return weight and bias of a Linear or convolution, or the projections of nn.MultiheadAttention."""
        return output_groups(module)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return scale ∘ W, on rows or columns, and scale ∘ b or zero for the bias."""
        if not self.on_inputs:
            return scaled_rows(self.layer, base, self.scale)
        changes = {name: torch.zeros_like(tensor, dtype=self.scale.dtype) for name, tensor in base.items()}
        for name, scale in zip(weights_of(self.layer), torch.split(self.scale, self.sizes), strict=True):
            product = self._by_columns(scale, base[name].shape) * base[name]
            changes[name] = self.layer.from_rows(self.layer.rows(product), name)
        return changes

    def _inputs(self) -> list[int]:
        """Return the number of input channels of each weight."""
        shapes = [self.layer.shape(name) for name in weights_of(self.layer)]
        return [shape[0] if self.layer.transposed else shape[1] * self.layer.groups for shape in shapes]

    def _by_columns(self, scale: Tensor, shape: torch.Size) -> Tensor:
        """Return one number per input channel, (in,), so that it multiplies a weight."""
        kernel = [1] * (len(shape) - 2)
        if self.layer.transposed:  # (in, out/groups, …)
            return scale.view(-1, 1, *kernel)
        by_group = scale.view(self.layer.groups, shape[1])  # a weight is (out, in/groups, …)
        return by_group.repeat_interleave(shape[0] // self.layer.groups, dim=0).view(*shape[:2], *kernel)
