"""Convpass: a small bottleneck convolution in parallel with the attention and the MLP of every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import is_number
from ..errors import PlanError, did_you_mean
from ..ports.layouts import Features
from .base import FeatureAdapter, FeatureConfig, at_least

KernelInit = Literal["xavier", "identity"]
Beside = Literal["both", "attention", "mlp"]

KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class ConvpassConfig(FeatureConfig):
    """Settings of convolutional bypasses in every block.

    Attributes:
        hidden: Channels of the bottleneck.
        scale: Factor of the delta; the paper chooses it for each data set, from 0.01 to 100.
        dropout: Fraction of the bottleneck's values that are dropped in training, 0 <= dropout < 1.
        kernel_init: Initial convolution kernel: `xavier`, or `identity` (the identity at the kernel's centre, zero
            elsewhere); the paper chooses it for each data set.
        beside: Branches of a block that get a bypass: `both`, or only `attention` or `mlp`. The bypass reads the
            branch's input, after its norm.
    """

    kind: ClassVar[str] = "convpass"

    hidden: int = 8
    scale: float = 1.0
    dropout: float = 0.1
    kernel_init: KernelInit = "xavier"
    beside: Beside = "both"

    def check(self) -> None:
        """Raise if `hidden` is below 1, a factor is out of range, or a name is unknown."""
        at_least(self, hidden=1)
        problems = []
        if not is_number(self.scale, above=0):
            problems.append(f"scale must be a positive number, not {self.scale!r}")
        if not (self.dropout == 0 or is_number(self.dropout, above=0)) or self.dropout >= 1:
            problems.append(f"dropout must be a number of at least 0 and below 1, not {self.dropout!r}")
        for name, known in (("kernel_init", get_args(KernelInit)), ("beside", get_args(Beside))):
            value = getattr(self, name)
            if value not in known:
                problems.append(f"{name} {value!r} is not one of {', '.join(known)}{did_you_mean(str(value), known)}")
        if problems:
            raise PlanError("convpass adapter:", problems=problems)

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The hidden channels, from 1."""
        return "hidden", range(1, 1025)

    @property
    def places(self) -> tuple[str, ...]:
        """Places in parallel with attention, the MLP, or both, as `beside` says."""
        places = {"attention": ("parallel_attention",), "mlp": ("parallel",)}
        return places.get(self.beside, ("parallel_attention", "parallel"))


class Convpass(FeatureAdapter):
    """Bypass `scale · up(dropout(φ(conv(φ(down x)))))` with φ(t) = t · σ(1.702 t), on image rows and columns.

    `down` maps C -> hidden and starts Xavier-uniform. `conv` is a 3x3 convolution of the hidden channels with zero
    padding. `up` maps back to C and starts at zero, so that a new adapter adds nothing. All biases start at zero.
    2·C·h + C + 2·h + 9·h² parameters for h hidden channels. It works on the whole feature map, even if attention works
    in windows.

    Source: Convpass (arXiv 2207.07039).
    """

    kind = "convpass"
    needs_rows = True
    row_local = False

    def __init__(self, channels: int, config: ConvpassConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.down = nn.Linear(channels, config.hidden)
        self.conv = nn.Conv2d(config.hidden, config.hidden, KERNEL, padding=KERNEL // 2)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.hidden, channels)
        nn.init.xavier_uniform_(self.down.weight)
        with torch.no_grad():
            if config.kernel_init == "identity":
                self.conv.weight.zero_()
                self.conv.weight[:, :, KERNEL // 2, KERNEL // 2] = torch.eye(config.hidden)
            else:
                nn.init.xavier_uniform_(self.conv.weight)
            for tensor in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
                if tensor is not None:
                    tensor.zero_()

    def delta(self, features: Features) -> Tensor:
        """Return the bypass of the features."""
        hidden = _quick_gelu(self.down(features.rows)).movedim(-1, 1)
        hidden = _quick_gelu(self.conv(hidden)).movedim(1, -1)
        return features.from_rows(self.up(self.dropout(hidden)) * self.scale)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * F.sigmoid(1.702 * x)
