"""AdaptFormer: a scaled bottleneck in parallel with the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from ..errors import PlanError
from ..ports.layouts import Features
from .bottleneck import BottleneckAdapter, BottleneckConfig, dropout_problems

Input = Literal["normed", "raw"]


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(BottleneckConfig):
    """Settings of scaled bottlenecks beside the MLPs.

    Attributes:
        scale: Factor of the delta, or its initial value.
        learn_scale: True if the factor is trained, one per site; the paper fixes it.
        dropout: Fraction of the hidden values that are dropped in training, 0 <= dropout < 1.
        input: What the bottleneck reads: `normed`, the MLP's input after its norm (the paper's equation), or `raw`, the
            residual stream before the norm (the authors' code). Not every family has the place for `raw`.
    """

    kind: ClassVar[str] = "adaptformer"

    scale: float = 0.1
    learn_scale: bool = True
    dropout: float = 0.1
    input: Input = "normed"

    def check(self) -> None:
        """Raise if `hidden` is below 1, a factor is out of range, or `input` is unknown."""
        super().check()
        problems = [
            *checks.number("scale", self.scale, above=0),
            *dropout_problems(self.dropout),
            *checks.one_of("input", self.input, get_args(Input)),
        ]
        if problems:
            raise PlanError("adaptformer adapter:", problems=problems)

    @property
    def places(self) -> tuple[str, ...]:
        """Place beside the MLP that reads what `input` says."""
        return ("parallel",) if self.input == "normed" else ("parallel_raw",)

    @property
    def without_place(self) -> str | None:
        """The other input, which every family has."""
        return 'Set input="normed"' if self.input == "raw" else None


class AdaptFormer(BottleneckAdapter):
    """Delta `scale · up(dropout(relu(down x)))`, added to the MLP's output.

    `down` maps C -> hidden and starts Kaiming-uniform, torch's default; `up` maps back. `up` and both biases start at
    zero, so the scale has a gradient from the second step on.

    Trained parameters per site: 2 · C · hidden + hidden + C, and 1 with `learn_scale`.

    Source: AdaptFormer (arXiv 2205.13535). The paper fixes the scale at 0.1, and its equation reads the normed input;
    the authors' code reads the residual stream, whose values can be large in restoration networks.
    """

    kind = "adaptformer"

    def __init__(self, channels: int, config: AdaptFormerConfig) -> None:
        super().__init__(channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = nn.Parameter(torch.tensor(float(config.scale))) if config.learn_scale else config.scale

    def inner(self, wide: Tensor) -> Tensor:
        """Return dropout(relu(wide))."""
        dropped: Tensor = self.dropout(F.relu(wide))
        return dropped

    def delta(self, features: Features) -> Tensor:
        """Return the bottleneck's delta, scaled."""
        return super().delta(features) * self.scale
