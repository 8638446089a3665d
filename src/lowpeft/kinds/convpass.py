"""Convpass: a small bottleneck convolution in parallel with the attention and the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from ..errors import PlanError
from ..ports.layouts import Features
from .base import FeatureAdapter
from .bottleneck import BottleneckConfig, closed, dropout_problems

KernelInit = Literal["xavier", "identity"]
Beside = Literal["both", "attention", "mlp"]

KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class ConvpassConfig(BottleneckConfig):
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
        super().check()
        problems = [
            *checks.number("scale", self.scale, above=0),
            *dropout_problems(self.dropout),
            *checks.one_of("kernel_init", self.kernel_init, get_args(KernelInit)),
            *checks.one_of("beside", self.beside, get_args(Beside)),
        ]
        if problems:
            raise PlanError("convpass adapter:", problems=problems)

    @property
    def places(self) -> tuple[str, ...]:
        """Places in parallel with attention, the MLP, or both, as `beside` says."""
        places = {"attention": ("parallel_attention",), "mlp": ("parallel",)}
        return places.get(self.beside, ("parallel_attention", "parallel"))


class Convpass(FeatureAdapter):
    """Bypass `scale · up(dropout(φ(conv(φ(down x)))))` with φ(t) = t · σ(1.702 t), on image rows and columns.

    `down` maps C -> hidden and starts Xavier-uniform. `conv` is a 3x3 convolution of the hidden channels with zero
    padding. `up` maps back to C and starts at zero, so that a new adapter adds nothing. All biases start at zero.
    It works on the whole feature map, even if attention works in windows.

    Trained parameters per site: 2 · C · hidden + C + 2 · hidden + 9 · hidden².

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
        if config.kernel_init == "identity":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        closed(self.down, self.up)

    def delta(self, features: Features) -> Tensor:
        """Return the bypass of the features."""
        hidden = _quick_gelu(self.down(features.rows)).movedim(3, 1)
        hidden = _quick_gelu(self.conv(hidden)).movedim(1, -1)
        return features.from_rows(self.up(self.dropout(hidden)) * self.scale)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * F.sigmoid(1.702 * x)
