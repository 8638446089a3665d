"""FISH: sparse training of the entries of parameters that matter most for the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import checks
from ..errors import PlanError
from ..ports.attachment import Layer
from .base import LayersConfig, WeightAdapter, at_least
from .full import Full
from .sensitivity import FisherStart

SHARES = tuple(float(f"{10 ** (step / 50 - 5):.3g}") for step in range(251))
"""Shares from 1e-5 to 1, each 4.7 % above the one before."""


@dataclass(frozen=True, kw_only=True)
class FishConfig(LayersConfig):
    """Settings of sparse training.

    Attributes:
        share: Share of the parameters of all sites that is trained, above 0.
        cap: Largest share of one parameter tensor that calibration may choose, at least `share` and at most 1.
        entries: Number of trained entries at each site, in place of `share`; calibration sets it.
    """

    kind: ClassVar[str] = "fish"

    share: float = 0.005
    cap: float = 1.0
    entries: int | None = None

    def check(self) -> None:
        """Raise if a value is out of range."""
        for name, most in (("cap", 1.0), ("share", self.cap)):
            value = getattr(self, name)
            if not checks.is_number(value, above=0) or value > most:
                raise PlanError(f"fish adapter: {name} must be a number above 0 and at most {most!r}, not {value!r}")
        if self.entries is not None:
            at_least(self, entries=1)

    @property
    def sizes(self) -> tuple[str, Sequence[float]] | None:
        """The share, from 1e-5 to `cap`; None if the number of entries is set."""
        return None if self.entries is not None else ("share", [share for share in SHARES if share <= self.cap])


class Fish(WeightAdapter):
    """Adapted parameter `p + scatter(index, values)`: some entries are trained, all others stay as they are.

    `index` holds the places of the entries in the flattened parameter, and is a frozen tensor in the adapter's file;
    `values` are the trained differences, zero when new. A new adapter has the largest entries of each parameter.
    `lowpeft.calibrate` gives it those with the largest Fisher information Σ (dL/dp)², summed over single images, chosen
    among all sites together: the number of entries of all sites is share · N (the sum of `entries`, where these are
    set), and a site has at least one, at most cap · its size. Every floating-point parameter fits: weights, biases,
    norms, tables.

    Trained parameters per layer: share · size, at least one.

    Source: FISH mask (arXiv 2111.09839). There the head of a classifier is always trained, and no site has a least or
    most number of entries.
    """

    kind = "fish"
    calibrator_class = FisherStart
    index: Tensor

    def __init__(self, layer: Layer, config: FishConfig) -> None:
        super().__init__()
        self.shape = layer.shape(layer.main)
        size = math.prod(self.shape)
        entries = max(1, round(config.share * size)) if config.entries is None else config.entries
        if entries > size:
            raise PlanError(f"fish adapter: entries {entries} is above {size}, the size of a parameter {self.shape}")
        self.values = nn.Parameter(torch.zeros(entries))
        dtype = torch.int32 if size < 2**31 else torch.int64
        self.register_buffer("index", torch.arange(entries, dtype=dtype))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return one group for each floating-point parameter of the module itself."""
        return Full.groups(module)

    def start(self, base: Mapping[str, Tensor]) -> None:
        """Choose the largest entries."""
        self.choose(next(iter(base.values())).abs())

    def choose(self, scores: Tensor) -> None:
        """Choose the entries with the largest scores; `scores` has the parameter's shape."""
        chosen = scores.detach().flatten().topk(len(self.values)).indices
        self.index.copy_(chosen.sort().values)

    def problem(self) -> str | None:
        """Return what is wrong with loaded indices: outside the parameter, or repeated."""
        index, size = self.index.sort().values, math.prod(self.shape)
        if index[0] < 0 or index[-1] >= size:
            return f"has indices outside 0…{size - 1}"
        return "has repeated indices" if (index.diff() == 0).any() else None

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the values at their places, zero elsewhere."""
        zeros = self.values.new_zeros(math.prod(self.shape))
        return {name: zeros.scatter(0, self.index.long(), self.values).view(self.shape) for name in base}
