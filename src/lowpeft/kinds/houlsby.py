"""Houlsby's adapters: two bottlenecks in every block, on the outputs of attention and of the MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .bottleneck import BottleneckAdapter, BottleneckConfig, gelu

STD = 1e-2


@dataclass(frozen=True, kw_only=True)
class HoulsbyConfig(BottleneckConfig):
    """Settings of the bottlenecks on both branches of every block."""

    kind: ClassVar[str] = "houlsby"

    @property
    def places(self) -> tuple[str, ...]:
        """Outputs of both branches, before their residual adds."""
        return ("attention", "mlp")


class Houlsby(BottleneckAdapter):
    """Bottleneck with an inner skip, `x + up(gelu(down x))`; `delta` is the second term.

    `down` maps C -> hidden, `up` maps back. `down` starts normal with the paper's deviation, 0.01, cut off at twice of
    it. `up` and both biases start at zero.

    Trained parameters per site: 2 · C · hidden + hidden + C.

    Source: Houlsby et al. (arXiv 1902.00751). There `up` starts like `down`, so a new network is near its base; here
    it is the base. The authors' code has the approximation of GELU by tanh, and a deviation of 0.001 by default. The
    paper trains the layer norms too: add the kind `norm` for that. Its transformers normalise after the residual add,
    restoration networks before the branch; the bottleneck is between the branch and the residual add in both.
    """

    kind = "houlsby"

    def __init__(self, channels: int, config: HoulsbyConfig) -> None:
        super().__init__(channels, config)
        nn.init.trunc_normal_(self.down.weight, std=STD, a=-2 * STD, b=2 * STD)

    def inner(self, wide: Tensor) -> Tensor:
        """Return gelu(wide)."""
        return gelu(wide)
