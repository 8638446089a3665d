"""Pfeiffer's adapters: one bottleneck in every block, on the output of the MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .bottleneck import BottleneckAdapter, BottleneckConfig

STD = 0.02


@dataclass(frozen=True, kw_only=True)
class PfeifferConfig(BottleneckConfig):
    """Settings of one bottleneck in every block."""

    kind: ClassVar[str] = "pfeiffer"

    @property
    def places(self) -> tuple[str, ...]:
        """Output of the MLP, before its residual add."""
        return ("mlp",)


class Pfeiffer(BottleneckAdapter):
    """Bottleneck with an inner skip, `x + up(relu(down x))`; `delta` is the second term.

    `down` maps C -> hidden, `up` maps back. `down` starts normal with a deviation of 0.02, `up` and both biases start
    at zero.

    Trained parameters per site: 2 · C · hidden + hidden + C.

    Source: AdapterFusion (arXiv 2005.00247), whose search found this place best; its fusion of adapters is not part of
    this kind. There the norm follows the residual add, and the order was searched too: with the MLP's output m the
    block gives norm(x + m + delta(norm(x + m))), in AdapterHub's code. A restoration block, which normalises before the
    branch, has no norm there to read from: the delta is that of m.
    """

    kind = "pfeiffer"

    def __init__(self, channels: int, config: PfeifferConfig) -> None:
        super().__init__(channels, config)
        nn.init.normal_(self.down.weight, std=STD)

    def inner(self, wide: Tensor) -> Tensor:
        """Return relu(wide)."""
        return F.relu(wide)
