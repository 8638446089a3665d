"""DoRA: a low-rank change of a weight's directions, and a trained magnitude per output channel."""

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
class DoRAConfig(LowRankConfig):
    """Settings of weight-decomposed low-rank adapters.

    Attributes:
        detach_norm: True to treat the norm of the changed weight as a constant in backward, as the authors' code and
            peft do.
    """

    kind: ClassVar[str] = "dora"

    detach_norm: bool = True


class DoRA(MatrixAdapter):
    """Adapted weight `W' = m · V / ‖V‖` with V = W + (alpha / rank) · B A and m = (1 + δ) · ‖W‖, norms per output row.

    `a` is (rank, columns) and starts Kaiming-uniform. `b` is (rows, rank) and `magnitude`, which is δ, is (rows,); both
    start at zero. The magnitude is stored as an offset, so both norms of a new adapter are computed alike, and the
    change

        (g − 1) · W + g · (alpha / rank) · B A        g = (1 + δ) · ‖W‖ / ‖V‖

    is exactly zero on every device. An output row of zeros has no direction; there g = 1, which is plain LoRA.

    Trained parameters per layer: rank · (rows + columns) + rows.

    Source: DoRA (arXiv 2402.09353).
    """

    kind = "dora"

    def __init__(self, layer: Layer, config: DoRAConfig) -> None:
        super().__init__(layer, config)
        rows, columns = self.sides(config.rank)
        self.scale = config.scale
        self.detach_norm = config.detach_norm
        self.a = nn.Parameter(torch.empty(config.rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, config.rank))
        self.magnitude = nn.Parameter(torch.zeros(rows))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return (g − 1) · W + g · (alpha / rank) · B A in the weight's shape."""
        name = self.layer.main
        rows = self.layer.rows(base[name]).to(self.b.dtype)
        product = (self.b @ self.a).mul(self.scale)
        norm = (rows + product).norm(dim=1)
        norm = norm.detach() if self.detach_norm else norm
        original = rows.norm(dim=1)
        has_direction = (original > 0) & (norm > 0)
        factor = (1 + self.magnitude) * original / torch.where(has_direction, norm, torch.ones_like(norm))
        factor = torch.where(has_direction, factor, torch.ones_like(factor))[:, None]
        return {name: self.layer.from_rows((factor - 1) * rows + factor * product, name)}
