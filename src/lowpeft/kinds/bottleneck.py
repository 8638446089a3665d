"""Bottleneck on the channels of each position: the parts that several kinds share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import is_number
from ..frozen.rebuilding import note
from ..ports.layouts import Features
from .base import FeatureAdapter, FeatureConfig, at_least


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(FeatureConfig):
    """Base class of the configs of kinds that are as large as their number of hidden channels.

    Attributes:
        hidden: Number of hidden channels, e.g. those of a bottleneck. The papers take 64 for transformers of 768
            channels and more; restoration networks have 48 to 180.
    """

    hidden: int = 16

    def check(self) -> None:
        """Raise if `hidden` is below 1."""
        at_least(self, hidden=1)

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The hidden channels, from 1."""
        return "hidden", range(1, 1025)


class BottleneckAdapter(FeatureAdapter):
    """Delta `up(inner(down x))` on the channels of each position, which is zero when new; see `closed`."""

    def __init__(self, channels: int, config: Any) -> None:
        super().__init__()
        self.down = nn.Linear(channels, config.hidden)
        self.up = nn.Linear(config.hidden, channels)
        closed(self.down, self.up)

    @abstractmethod
    def inner(self, wide: Tensor) -> Tensor:
        """Return what the kind makes of the hidden channels: an activation."""

    def delta(self, features: Features) -> Tensor:
        """Return up(inner(down x)), applied along the channels."""
        return features.from_channels_last(self.up(self.inner(self.down(features.channels_last))))


def closed(down: nn.Linear, up: nn.Linear) -> None:
    """Set `down`'s bias, and all of `up`, to zero: the bottleneck gives zero, and `up` has a gradient."""
    for tensor in (down.bias, up.weight, up.bias):
        nn.init.zeros_(tensor)


def gelu(wide: Tensor) -> Tensor:
    """Return the exact GELU, x · Φ(x); an optimised network makes it again in backward, and keeps `wide` alone."""
    return note(F.gelu(wide), F.gelu, wide)


def dropout_problems(value: Any) -> list[str]:
    """Check a fraction that is dropped."""
    if is_number(value, above=-1) and 0 <= value < 1:
        return []
    return [f"dropout must be a number of at least 0 and below 1, not {value!r}"]
