"""VeRA: two trained vectors per layer, combined with frozen random matrices that all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import is_number
from ..errors import PlanError
from ..ports.attachment import Layer
from .base import RootPart, at_least
from .matrices import MatrixAdapter, MatrixConfig

MOST_RANK = 65536


@dataclass(frozen=True, kw_only=True)
class VeRAConfig(MatrixConfig):
    """Settings of vector-based random matrix adapters.

    Attributes:
        rank: Rank of the shared matrices. It may be larger than the rank of a weight.
        start: Initial value of every entry of the inner vector d, above 0.
        seed: Seed of the shared matrices. They are saved with the adapter, so loading does not depend on it.
    """

    kind: ClassVar[str] = "vera"

    rank: int = 256
    start: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Raise if the rank or the seed is out of range, or the start is not positive."""
        super().check()
        at_least(self, rank=1, seed=0)
        if self.rank > MOST_RANK or self.seed >= 2**63:
            raise PlanError(f"vera adapter: rank must be at most {MOST_RANK} and seed below 2**63, not {self.settings}")
        if not is_number(self.start, above=0):
            raise PlanError(f"vera adapter: start must be a positive number, not {self.start!r}")

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The rank, from 1."""
        return "rank", range(1, MOST_RANK + 1)


class VeRAMatrices(RootPart):
    """Frozen matrices that all layers share: A (rank, most columns) and B (most rows, rank).

    Entries are uniform in ±√(6 / fan), where fan is the number of columns of the matrix (Kaiming).
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
        """Return the most rows and the most columns of any layer."""
        shapes = [site.select(config.rows).matrix_shape for site in sites if isinstance(site, Layer)]
        return max(rows for rows, _ in shapes), max(columns for _, columns in shapes)


class VeRA(MatrixAdapter):
    """Adapted weight `W + diag(b) · B · diag(d) · A`, with the shared A and B cut to W's columns and rows.

    `b` is (rows,) and starts at zero; `d` is (rank,) and starts at `start`. W is reshaped to a matrix with
    one row per output, so every sort of convolution is adapted like a linear layer; the paper has linear layers only.

    Trained parameters per layer: rows + rank.

    Source: VeRA (arXiv 2310.11454).
    """

    kind = "vera"
    root_part_class = VeRAMatrices

    def __init__(self, layer: Layer, config: VeRAConfig) -> None:
        super().__init__(layer, config)
        self.b = nn.Parameter(torch.zeros(self.layer.matrix_shape[0]))
        self.d = nn.Parameter(torch.full((config.rank,), config.start))

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return diag(b) · B · diag(d) · A in the weight's shape."""
        rows, columns = self.layer.matrix_shape
        shared: VeRAMatrices = self.root_part
        product = shared.b[:rows] @ (self.d[:, None] * shared.a[:, :columns])
        name = self.layer.main
        return {name: self.layer.from_rows(self.b[:, None] * product, name)}
