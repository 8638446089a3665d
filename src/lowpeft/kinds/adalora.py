"""AdaLoRA: a low-rank change with singular values, whose ranks move between layers while it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import is_whole, number
from ..errors import PlanError
from ..ports.attachment import Layer
from .base import at_least
from .matrices import LowRankConfig, MatrixAdapter
from .rank_budget import RankBudget


@dataclass(frozen=True, kw_only=True)
class AdaLoRAConfig(LowRankConfig):
    """Settings of low-rank adapters that share a budget of ranks.

    Attributes:
        rank: Average rank of a layer after training.
        initial_rank: Rank of every layer before training, at least `rank`; alpha is divided by it. None means 1.5 times
            `rank`, rounded up.
        warmup: First steps, in which all ranks stay: a share of all steps, or a number of 1 or more steps.
        final: Last steps, in which the ranks stay as the last mask left them; likewise. The defaults are ours.
        interval: Number of steps from one mask to the next.
        betas: Decay of the moving averages of importance and of its uncertainty.
        orthogonal: Weight of the regulariser that makes the rows of A and the columns of B orthonormal.
    """

    kind: ClassVar[str] = "adalora"

    initial_rank: int | None = None
    warmup: float = 0.1
    final: float = 0.3
    interval: int = 1
    betas: tuple[float, float] = (0.85, 0.85)
    orthogonal: float = 0.1

    def check(self) -> None:
        """Raise if a value is out of range, or the phases leave no steps in between."""
        super().check()
        at_least(self, interval=1, **({} if self.initial_rank is None else {"initial_rank": self.rank}))
        problems = number("orthogonal", self.orthogonal, least=0)
        for name in ("warmup", "final"):
            if not (_is_share(value := getattr(self, name)) or is_whole(value, least=1)):
                problems.append(f"{name} must be a share below 1 or a number of steps, not {value!r}")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2 or not all(map(_is_share, self.betas)):
            problems.append(f"betas must be two numbers from 0 to below 1, not {self.betas!r}")
        if not problems and max(self.warmup, self.final) < 1 <= self.warmup + self.final:
            problems.append(f"warmup={self.warmup} and final={self.final} together must be below 1")
        if problems:
            raise PlanError(f"adalora adapter: {problems[0]}")

    @property
    def start_rank(self) -> int:
        """Rank of every layer before training."""
        return (3 * self.rank + 1) // 2 if self.initial_rank is None else self.initial_rank

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return 1.0 if self.alpha is None else self.alpha / self.start_rank

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The rank, whose initial rank is counted; `initial_rank` where it is set, from `rank`."""
        return ("initial_rank", range(self.rank, self.MOST + 1)) if self.initial_rank else super().sizes


class AdaLoRA(MatrixAdapter):
    """Adapted weight `W + s · B · diag(E) · A`, with s = alpha / initial rank, also when ranks were dropped.

    `a` is (rank, columns), `b` is (rows, rank), both normal with standard deviation 0.02; `e` is (rank,) and starts at
    zero. `RankBudget` drops ranks in training. They stay in the file, with zeros for E and False in `kept`; if E is
    averaged over steps, they add nothing all the same.

    Trained parameters per layer: rank · (rows + columns + 1), with the initial rank.

    Source: AdaLoRA (arXiv 2303.10512). Its code divides by the rank + 1e-5.
    """

    kind = "adalora"
    training_part_class = RankBudget
    e: Tensor
    kept: Tensor

    def __init__(self, layer: Layer, config: AdaLoRAConfig) -> None:
        super().__init__(layer, config)
        self.config, rank = config, config.start_rank
        rows, columns = self.sides(rank)
        self.whole_rows = not self.layer.chosen and not layer.transposed
        self.a = nn.Parameter(nn.init.normal_(torch.empty(rank, columns), std=0.02))
        self.e = nn.Parameter(torch.zeros(rank))
        self.b = nn.Parameter(nn.init.normal_(torch.empty(rows, rank), std=0.02))
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return s · B · diag(E) · A, without the dropped ranks, in the weight's shape."""
        return {self.layer.main: self.layer.from_rows(self._outer() @ self.a, self.layer.main)}

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return A and s · B · diag(E); None for transposed weights and parts of rows."""
        return (self.a, self._outer()) if self.whole_rows else None

    def _outer(self) -> Tensor:
        return self.b * (self.e * self.kept * self.config.scale)


def _is_share(value: object) -> bool:
    return not number("", value, least=0) and value < 1  # type: ignore[operator]
