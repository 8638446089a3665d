"""The spatial adapter of ASteISR: a bottleneck on the channels of each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from ..errors import PlanError, did_you_mean
from ..ports.layouts import Features
from .base import FeatureAdapter, FeatureConfig, at_least
from .bottleneck import closed, gelu

Placement = Literal["attention", "mlp", "both", "parallel", "parallel_both"]

_SEVERAL = {"both": ("attention", "mlp"), "parallel_both": ("parallel_attention", "parallel")}


@dataclass(frozen=True, kw_only=True)
class SpatialConfig(FeatureConfig):
    """Settings of spatial adapters in every block.

    Attributes:
        reduction: Divisor of the channels: the bottleneck has C // reduction channels (the paper: 4).
        placement: Position in the block. `attention`: on the output of the attention branch, before its residual add
            (the paper). `mlp`: on the output of the MLP branch. `both`: on both outputs. `parallel`: in parallel with
            the MLP, on its input. `parallel_both`: in parallel with attention and in parallel with the MLP.
    """

    kind: ClassVar[str] = "spatial"

    reduction: int = 4
    placement: Placement = "attention"

    def check(self) -> None:
        """Raise if the reduction is below 1 or the placement is unknown."""
        at_least(self, reduction=1)
        if self.placement not in get_args(Placement):
            known = get_args(Placement)
            raise PlanError(
                f"spatial adapter: placement {self.placement!r} is not one of {', '.join(known)}"
                + did_you_mean(str(self.placement), known)
            )

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The reduction, from 64."""
        return "reduction", range(64, 0, -1)

    @property
    def places(self) -> tuple[str, ...]:
        """Places that `placement` stands for."""
        return _SEVERAL.get(self.placement, (self.placement,))


class SpatialAdapter(FeatureAdapter):
    """Bottleneck `x + fc2(gelu(fc1(x)))` on the channels of each position; `delta` is the second term.

    `fc1` maps C -> C // reduction and starts truncated-normal (std 0.02) with zero bias. `fc2` maps back to C and
    starts at zero.

    Trained parameters per site: 2 · C · hidden + hidden + C with hidden = C // reduction; 16,425 at C = 180.

    Source: ASteISR (arXiv 2407.03598); initialisation as in the published code.
    """

    kind = "spatial"

    def __init__(self, channels: int, config: SpatialConfig) -> None:
        super().__init__()
        hidden = channels // config.reduction
        if hidden < 1:
            raise PlanError(f"spatial adapter: reduction {config.reduction} leaves no channel of {channels}")
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.trunc_normal_(self.fc1.weight, std=0.02)
        closed(self.fc1, self.fc2)

    def delta(self, features: Features) -> Tensor:
        """Return fc2(gelu(fc1(x))), applied along the channels."""
        return features.from_channels_last(self.fc2(gelu(self.fc1(features.channels_last))))
