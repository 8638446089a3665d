"""LoKr: the Kronecker product of two small matrices as the change of a layer's weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import is_whole
from ..errors import PlanError
from ..ports.attachment import Layer
from .matrices import LowRankConfig, MatrixAdapter


@dataclass(frozen=True, kw_only=True)
class LoKrConfig(LowRankConfig):
    """Settings of Kronecker-product adapters on the weights of layers.

    Attributes:
        rank: Rank of the second factor. Where the factor has no more entries than its low-rank form, or half of its
            larger side is not above the rank, it is trained whole. So every rank fits every layer.
        factor: How each side of the weight is split in two parts: into `factor` and the rest, if it divides the side;
            if not, into the divisor up to `factor` and the rest that have the least sum. The smaller part belongs to
            the first factor. -1 means no limit: the most equal parts.
    """

    kind: ClassVar[str] = "lokr"

    factor: int = -1

    def check(self) -> None:
        """Raise if the rank, alpha or the factor is out of range."""
        super().check()
        if self.factor != -1 and not is_whole(self.factor, least=1):
            raise PlanError(
                f"lokr adapter: factor must be a whole number of at least 1, or -1 for equal parts, not {self.factor!r}"
            )


def parts(size: int, factor: int) -> tuple[int, int]:
    """Return two numbers whose product is `size`, the smaller first, as `LoKrConfig.factor` says.

    Example: 180 gives (12, 15) with factor -1, (4, 45) with 4, and (6, 30) with 8.
    """
    most = size if factor == -1 else factor
    divisors = [d for d in range(1, min(most, size) + 1) if size % d == 0]
    one = factor if factor in divisors else min(divisors, key=lambda d: d + size // d)
    return min(one, size // one), max(one, size // one)


class LoKr(MatrixAdapter):
    """Adapted weight `W + s · w1 ⊗ w2`, with s = alpha / rank and ⊗ the Kronecker product.

    W is taken as (out, in, k), with one row per output channel, the input channels of a group, and k entries of the
    kernel. With out = l · p and in = m · q (see `parts`), `w1` is (l, m), `w2` is (p, q · k), and

        change[i · p + a, j · q + b, y] = s · w1[i, j] · w2[a, b, y]

    `w1` starts Kaiming-uniform as in a new Linear. `w2` is trained whole if rank ≥ max(p, q) / 2, or if its product
    form would have as many parameters; it then starts at zero. Otherwise it is `w2_a` · `w2_b`, with `w2_a`
    (p, rank), Kaiming-uniform, and `w2_b` (rank, q · k), which starts at zero. The change is exactly zero when new.

    Trained parameters per layer: l · m + p · q · k, or l · m + rank · (p + q · k).

    Source: LoKr of LyCORIS (arXiv 2309.14859). There `w1` may have a low rank too, s is 1 where both factors are whole,
    and max(p, q) alone decides about `w2`, so a higher rank may have fewer parameters.
    """

    kind = "lokr"
    tables = True

    def __init__(self, layer: Layer, config: LoKrConfig) -> None:
        super().__init__(layer, config)
        rows, columns = self.layer.matrix_shape
        kernel = 1 if layer.table else math.prod(layer.shape(layer.main)[2:])
        (outer, p), (m, q) = parts(rows, config.factor), parts(columns // kernel, config.factor)
        width = q * kernel
        self.scale = config.scale
        self.whole = 2 * config.rank >= max(p, q) or config.rank * (p + width) >= p * width
        self.w1 = nn.Parameter(torch.empty(outer, m))
        nn.init.kaiming_uniform_(self.w1, a=math.sqrt(5))
        if self.whole:
            self.w2 = nn.Parameter(torch.zeros(p, width))
        else:
            self.w2_a = nn.Parameter(torch.empty(p, config.rank))
            self.w2_b = nn.Parameter(torch.zeros(config.rank, width))
            nn.init.kaiming_uniform_(self.w2_a, a=math.sqrt(5))

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return s · w1 ⊗ w2 in the weight's shape."""
        second = self.w2 if self.whole else self.w2_a @ self.w2_b
        # The kernel is the fastest axis of the columns of both w2 and W, so this is the Kronecker product of matrices.
        product = (self.w1[:, None, :, None] * second[:, None, :]).flatten(2).flatten(0, 1)
        return {name: self.layer.from_rows(product * self.scale, name) for name in base}
