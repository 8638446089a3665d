"""Full training of chosen layers, kept as a difference: the kind behind a recipe's `train_also`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import AdapterConfig, WeightAdapter


@dataclass(frozen=True, kw_only=True)
class FullConfig(AdapterConfig):
    """Every weight and bias of the target layers is trained, as a difference to the frozen one."""

    kind: ClassVar[str] = "full"


class Full(WeightAdapter):
    """`W + D` with D of W's shape, zero when new.

    Keeping the difference, and not the new weight, is what lets `restore`, `disabled` and `set_strength` work as for
    every other kind: the base is never written.
    """

    kind = "full"

    def __init__(self, weight: Tensor, config: FullConfig) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros(weight.shape))

    @classmethod
    def tensors(cls, module: nn.Module) -> tuple[str, ...]:
        """Every floating-point parameter that the module itself holds."""
        return tuple(n for n, p in module.named_parameters(recurse=False) if p.is_floating_point())

    def delta_weight(self) -> Tensor:
        """The difference itself."""
        return self.difference
