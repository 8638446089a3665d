"""Norm tuning: training of the factors and offsets of normalisation layers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import LayersConfig
from .full import Full
from .roles import norm_parameters


@dataclass(frozen=True, kw_only=True)
class NormConfig(LayersConfig):
    """Settings of the training of norms. Without a target, all norms of the network are trained."""

    kind: ClassVar[str] = "norm"


class Norm(Full):
    """Adapted factors `γ + d` and offsets `β + d'` of a norm; d and d' have their shapes and are zero when new.

    Norms are torch's classes, and modules without submodules that have "norm" in their class name (LayerNorm2d,
    bias-free and RMS norms). Of these, all parameters that are vectors, (C,) or (1,C,1,1), are trained, under whatever
    names. Running statistics stay frozen, as everywhere in an adapted network.

    Trained parameters per layer: 2 · C of a norm, or C without an offset.

    Source: LayerNorm tuning (arXiv 2312.11420). peft trains a copy of the whole module, found by the user's names.
    """

    kind = "norm"

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return one group for each factor and offset of a norm."""
        return tuple((name,) for name in norm_parameters(module))
