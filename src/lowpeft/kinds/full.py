"""Full training of chosen layers, kept as a difference: the kind behind a recipe's `train_also`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import AdapterConfig, WeightAdapter
from .site import Layer


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

    def __init__(self, layer: Layer, config: FullConfig) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros(layer.shape(layer.main)))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Each floating-point parameter that the module itself holds, by itself."""
        return tuple((n,) for n, p in module.named_parameters(recurse=False) if p.is_floating_point())

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The difference itself."""
        return dict.fromkeys(base, self.difference)
