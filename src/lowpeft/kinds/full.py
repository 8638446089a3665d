"""Full training of chosen layers, stored as a difference from the base; the kind behind the override `train_also`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ports.attachment import Layer
from .base import AdapterConfig, WeightAdapter


@dataclass(frozen=True, kw_only=True)
class FullConfig(AdapterConfig):
    """Settings of full training: each target parameter gets a trained difference from its frozen value."""

    kind: ClassVar[str] = "full"


class Full(WeightAdapter):
    """Adapted parameter `W + D` with D of W's shape, zero when new.

    The adapter stores the difference, not the new weight, so the base is never written. Therefore `restore`,
    `disabled` and `set_strength` work as for every other kind.

    Trained parameters per layer: as many as its target has.
    """

    kind = "full"

    def __init__(self, layer: Layer, config: AdapterConfig) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros(layer.shape(layer.main)))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return one group for each floating-point parameter of the module itself (not of its submodules)."""
        return tuple((n,) for n, p in module.named_parameters(recurse=False) if p.is_floating_point())

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the difference."""
        return dict.fromkeys(base, self.difference)
