"""LoHa: the entry-wise (Hadamard) product of two low-rank matrices as the change of a layer's weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ports.attachment import Layer
from .matrices import LowRankConfig, MatrixAdapter


@dataclass(frozen=True, kw_only=True)
class LoHaConfig(LowRankConfig):
    """Settings of Hadamard-product adapters on the weights of layers. `rank` is that of each of the two products."""

    kind: ClassVar[str] = "loha"


class LoHa(MatrixAdapter):
    """Adapted weight `W + s · (A1 B1) ∘ (A2 B2)`, with s = alpha / rank and ∘ the product entry by entry.

    W is taken as a matrix with one row per output channel. `a1`, `a2` are (rows, rank), `b1`, `b2` (rank, columns).
    `b2` starts at zero, the others Kaiming-uniform as in a new Linear, so the change is exactly zero when new. Its rank
    is up to rank².

    Trained parameters per layer: 2 · rank · (rows + columns), those of LoRA at twice the rank.

    Sources: FedPara (arXiv 2108.06098), LoHa of LyCORIS (2309.14859). LyCORIS starts `a2` at zero in place of `b2`, and
    has a second form for convolutions, with a core tensor; a convolution is adapted like a linear layer here.

    Raises:
        PlanError: The rank is larger than the smaller side of W.
    """

    kind = "loha"
    tables = True

    def __init__(self, layer: Layer, config: LoHaConfig) -> None:
        super().__init__(layer, config)
        rows, columns = self.sides(config.rank)
        self.scale = config.scale
        self.a1, self.a2 = (nn.Parameter(torch.empty(rows, config.rank)) for _ in range(2))
        self.b1 = nn.Parameter(torch.empty(config.rank, columns))
        self.b2 = nn.Parameter(torch.zeros(config.rank, columns))
        for factor in (self.a1, self.b1, self.a2):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return s · (A1 B1) ∘ (A2 B2) in the weight's shape."""
        product = (self.a1 @ self.b1) * (self.a2 @ self.b2)
        return {name: self.layer.from_rows(product * self.scale, name) for name in base}
