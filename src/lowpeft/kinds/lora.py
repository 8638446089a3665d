"""LoRA: a low-rank change of a layer's weight, for Linear, all convolutions and nn.MultiheadAttention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..checks import is_number
from ..errors import PlanError
from ..ports.attachment import Layer
from .base import LAYERS, AdapterConfig, WeightAdapter, at_least


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    """Settings of low-rank adapters on the weights of layers.

    Attributes:
        rank: Rank of the change. A rank larger than a target weight allows raises; it is never reduced silently.
            Without a target, smaller weights are left out.
        alpha: Scale of the change, which is multiplied by alpha / rank. None means alpha = rank (factor 1).
    """

    kind: ClassVar[str] = "lora"

    rank: int = 4
    alpha: float | None = None

    def check(self) -> None:
        """Raise if the rank is below 1 or alpha is not positive."""
        check_low_rank(self)

    @property
    def places(self) -> tuple[str, ...]:
        """Place `layers`: every weight that is large enough for the rank."""
        return (LAYERS,)


class LoRA(WeightAdapter):
    """Adapted weight `W + (alpha / rank) · B A`, with B A reshaped to W's shape; the layer's own forward uses it.

    W is flattened to a matrix: its first dimension gives the rows, all others the columns. `a` is (rank, columns) and
    starts Kaiming-uniform as in a new Linear; `b` is (rows, rank) and starts at zero. The layer still reads `weight`,
    so stride, dilation, groups, padding modes, subclasses and functional use of the weight need no code here, and the
    merged layer computes the same as the adapted one.

    Source: LoRA (arXiv 2106.09685).
    """

    kind = "lora"

    def __init__(self, layer: Layer, config: LoRAConfig) -> None:
        super().__init__()
        self.shape = layer.shape(layer.main)
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        check_rank(self.kind, config.rank, (rows, columns), self.shape)
        self.scale = (config.alpha if config.alpha is not None else config.rank) / config.rank
        self.a = nn.Parameter(torch.empty(config.rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, config.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return the weight of a Linear or convolution, or the input projections of nn.MultiheadAttention."""
        return matrix_groups(module)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return (alpha / rank) · B A in the weight's shape."""
        change = (self.b @ self.a).mul(self.scale).view(self.shape)
        return dict.fromkeys(base, change)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return A and (alpha / rank) · B, for linear layers."""
        return (self.a, self.b * self.scale) if len(self.shape) == 2 else None


def check_low_rank(config: AdapterConfig) -> None:
    """Raise if the rank is below 1 or alpha is not positive.

    Raises:
        PlanError: A field is out of range; the message names it.
    """
    at_least(config, rank=1)
    alpha = getattr(config, "alpha")  # noqa: B009  (a field of every low-rank kind)
    if alpha is not None and not is_number(alpha, above=0):
        raise PlanError(f"{config.kind} adapter: alpha must be a positive number, not {alpha!r}")


def check_rank(kind: str, rank: int, matrix: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Raise if the rank is larger than a weight allows.

    Raises:
        PlanError: The rank is too large; the message gives the largest possible one.
    """
    if rank > min(matrix):
        raise PlanError(
            f"{kind} adapter: rank {rank} is above {min(matrix)}, the largest for a weight of shape {shape}; lower the "
            "rank or exclude the layer with a '!' pattern"
        )


def matrix_groups(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the weights that can get a low-rank change: of a Linear, a convolution or an nn.MultiheadAttention."""
    if isinstance(module, (nn.Linear, _ConvNd)):
        return (("weight",),)
    if isinstance(
        module, nn.MultiheadAttention
    ):  # one fused projection, or three if keys or values have a different width
        fused = module.in_proj_weight is not None
        return (("in_proj_weight",),) if fused else (("q_proj_weight",), ("k_proj_weight",), ("v_proj_weight",))
    return ()
