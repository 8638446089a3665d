"""LoRA: a low-rank change of a layer's weight; with rsLoRA, LoRA+, LoRA-FA and starts from the weight or from data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ..checks import is_number
from ..errors import PlanError
from ..ports.attachment import Layer
from .learning import TrainingPart
from .matrices import LowRankConfig, MatrixAdapter
from .starts import STARTS_FROM_DATA, InputStart, from_weight

Start = Literal["random", "pissa", "olora", "corda", "eva"]


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(LowRankConfig):
    """Settings of low-rank adapters on the weights of layers.

    Attributes:
        rank_stabilised: True to multiply by alpha / √rank in place of alpha / rank (rsLoRA).
        freeze_a: True to train B alone (LoRA-FA). Linear layers and convolutions then keep `rank` channels of their
            input for backward, not the whole input.
        b_rate: Learning rate of B over that of A (LoRA+; its paper recommends 16).
        start: Start of A and B. `random`: A random, B zero. `pissa`, `olora`: from the singular vectors, or the QR
            decomposition, of the weight. `corda`, `eva`: from the layer's inputs, by `lowpeft.calibrate`.
    """

    kind: ClassVar[str] = "lora"

    rank_stabilised: bool = False
    freeze_a: bool = False
    b_rate: float = 1.0
    start: Start = "random"

    def check(self) -> None:
        """Raise if a value is out of range, or if A would be frozen at a start that is an offset."""
        super().check()
        if self.start not in get_args(Start):
            raise PlanError(
                f"{self.kind} adapter: start must be one of {', '.join(get_args(Start))}, not {self.start!r}"
            )
        if not is_number(self.b_rate, above=0):
            raise PlanError(f"{self.kind} adapter: b_rate must be a positive number, not {self.b_rate!r}")
        if self.freeze_a and (self.start not in ("random", "eva") or self.b_rate != 1):
            raise PlanError(
                f"{self.kind} adapter: freeze_a goes with start random or eva, and b_rate=1: A is not trained"
            )

    def resized(self, value: float) -> Self:
        """Return the config at another rank: with the same scale or, rank-stabilised, with the same alpha."""
        return replace(self, rank=int(value)) if self.rank_stabilised else super().resized(value)

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        if self.rank_stabilised and self.alpha is not None:
            return self.alpha / math.sqrt(self.rank)
        return super().scale

    @property
    def needs_data(self) -> bool:
        """True for the starts `corda` and `eva`."""
        return self.start in STARTS_FROM_DATA


class LoRAPlus(TrainingPart):
    """Learning rates of LoRA+ (arXiv 2402.12354): that of B is `b_rate` times that of A."""

    def rates(self) -> Mapping[str, float]:
        """Return the factor of each B."""
        return {f"{at}.b": adapter.b_rate for at, adapter in self.adapters.items() if isinstance(adapter, LoRA)}


class LoRA(MatrixAdapter):
    """Adapted weight `W + s · B A`, with B A reshaped to W's shape, and s = alpha / rank or alpha / √rank.

    W is flattened to a matrix: its first dimension gives the rows, all others the columns; of a table, the last
    dimension gives the columns. `a` is (rank, columns) and starts Kaiming-uniform as in a new Linear; `b` is
    (rows, rank) and starts at zero. With a start that is not zero, `a0` and `b0` are kept as frozen tensors, `a` and
    `b` are the trained offsets from them, and the change is

        s · (B A − B0 A0) = s · (b (A0 + a) + B0 a)

    which is exactly zero when new: the base is never written. The layer still reads `weight`, so stride, dilation,
    groups, padding modes, subclasses and functional use of the weight need no code here, and the merged layer computes
    the same as the adapted one.

    Trained parameters per layer: rank · (rows + columns), or rank · rows with A frozen.

    Sources: LoRA (arXiv 2106.09685), rsLoRA (2312.03732), LoRA-FA (2308.03303), LoRA+ (2402.12354); `starts` for the
    starts.
    """

    kind = "lora"
    tables = True

    a: Tensor
    a0: Tensor
    b0: Tensor

    def __init__(self, layer: Layer, config: LoRAConfig) -> None:
        super().__init__(replace(layer, transposed=False, groups=1), config)
        rows, columns = self.sides(config.rank)
        self.scale, self.start_from, self.b_rate = config.scale, config.start, config.b_rate
        self.columns_are_inputs = not layer.table and not layer.transposed
        a = torch.empty(config.rank, columns)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        if config.freeze_a:
            self.register_buffer("a", a)
        else:
            self.a = nn.Parameter(a)
        self.b = nn.Parameter(torch.zeros(rows, config.rank))
        if config.start in ("pissa", "olora", "corda"):
            self.register_buffer("a0", a.clone())
            self.register_buffer("b0", torch.zeros(rows, config.rank))
            nn.init.zeros_(self.a)
        if config.needs_data:
            self.calibrator_class = InputStart
        if config.b_rate != 1:
            self.training_part_class = LoRAPlus

    @property
    def is_offset(self) -> bool:
        """True if `a` and `b` are offsets from a start that is not zero."""
        return "a0" in self._buffers

    def start(self, base: Mapping[str, Tensor]) -> None:
        """Set A0 and B0 from the frozen weight, for the starts `pissa` and `olora`."""
        if self.start_from in ("pissa", "olora"):
            self.set_start(*from_weight(self.start_from, self.layer.rows(base[self.layer.main]), self.rank, self.scale))

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return len(self.a)

    def set_start(self, a: Tensor, b: Tensor | None) -> None:
        """Set the start: A0 and B0 of an offset, or A alone."""
        if b is None:
            self.a.data.copy_(a)
        else:
            self.a0.copy_(a)
            self.b0.copy_(b)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return s · B A, or s · (b (A0 + a) + B0 a), in the weight's shape."""
        product = self.b @ (self.a0 + self.a) + self.b0 @ self.a if self.is_offset else self.b @ self.a
        return {name: self.layer.from_rows(product * self.scale, name) for name in base}

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return A and s · B, or [A0 + a; a] and s · [b, B0]; None for tables, transposed weights and parts of rows."""
        if not self.columns_are_inputs or self.layer.chosen:
            return None
        if not self.is_offset:
            return self.a, self.b * self.scale
        return torch.cat([self.a0 + self.a, self.a]), torch.cat([self.b, self.b0], dim=1) * self.scale
