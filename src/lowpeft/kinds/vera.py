"""VeRA: two vectors for each layer, around random matrices that all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import PlanError
from .base import AdapterConfig, RootPart, WeightAdapter, at_least, is_number
from .lora import matrix_groups
from .site import Layer


@dataclass(frozen=True, kw_only=True)
class VeRAConfig(AdapterConfig):
    """Vector-based random matrix adapters.

    Attributes:
        rank: Rank of the shared matrices. It may be larger than that of a weight.
        start: Every entry of the inner vector d of a new adapter.
        seed: Seed of the shared matrices. They are saved with the adapter, so loading does not depend on it.
    """

    kind: ClassVar[str] = "vera"

    rank: int = 256
    start: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Refuse a rank below 1, a start that is not positive, a negative seed."""
        at_least(self, rank=1, seed=0)
        if not is_number(self.start, above=0):
            raise PlanError(f"vera adapter: start must be a positive number, not {self.start!r}")


class VeRAMatrices(RootPart):
    """The frozen matrices that all layers share: A (rank, most columns), B (most rows, rank).

    Entries are uniform within ±√(6 / fan), where the fan is the number of columns of the matrix (Kaiming).
    """

    kind = "vera"

    a: Tensor
    b: Tensor

    def __init__(self, shape: tuple[int, ...], config: VeRAConfig) -> None:
        super().__init__()
        rows, columns = shape
        generator = torch.Generator().manual_seed(config.seed)
        for name, sides in (("a", (config.rank, columns)), ("b", (rows, config.rank))):
            bound = math.sqrt(6 / sides[1])
            matrix = torch.empty(sides, device="cpu").uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, matrix)

    @classmethod
    def shape_for(cls, config: VeRAConfig, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """The most rows and the most columns of any layer."""
        shapes = [site.matrix_shape for site in sites if isinstance(site, Layer)]
        return max(rows for rows, _ in shapes), max(columns for _, columns in shapes)


class VeRA(WeightAdapter):
    """`W + diag(b) · B · diag(d) · A` with slices of the shared A and B as large as W.

    `b` is (rows,), zero, and `d` (rank,), `start`; rows + rank parameters for a layer. W is seen as a matrix with a row
    for each output, so convolutions of every sort are adapted like linear layers; the paper has linear layers only.

    Source: VeRA (arXiv 2310.11454).
    """

    kind = "vera"
    root_part_class = VeRAMatrices

    def __init__(self, layer: Layer, config: VeRAConfig) -> None:
        super().__init__()
        self.layer = layer
        self.b = nn.Parameter(torch.zeros(layer.matrix_shape[0]))
        self.d = nn.Parameter(torch.full((config.rank,), config.start))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """The weight of a Linear or convolution, the fused input projection of nn.MultiheadAttention."""
        return matrix_groups(module)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """diag(b) · B · diag(d) · A in the weight's shape."""
        rows, columns = self.layer.matrix_shape
        shared: VeRAMatrices = self.root_part
        product = shared.b[:rows] @ (self.d[:, None] * shared.a[:, :columns])
        name = self.layer.main
        return {name: self.layer.from_rows(self.b[:, None] * product, name)}
