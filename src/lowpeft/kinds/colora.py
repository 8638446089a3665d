"""CoLoRA: LoRA whose rank in each layer follows the layer's contribution, which is learned from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from torch import Tensor

from ..checks import is_number
from ..errors import PlanError
from .learning import Calibrator
from .lora import LoRA, LoRAConfig
from .starts import STARTS_FROM_DATA


@dataclass(frozen=True, kw_only=True)
class CoLoRAConfig(LoRAConfig):
    """Settings of low-rank adapters whose ranks follow the contributions of their layers.

    Attributes:
        rank: Rank of every layer before `lowpeft.calibrate`. Afterwards the number of parameters of all layers together
            is the nearest that the rule gives to that of this rank.
        beta: Factor of the rule, above 0. None means the one that keeps the number of parameters; with a number, `rank`
            does not set it.
    """

    kind: ClassVar[str] = "colora"

    beta: float | None = None

    def check(self) -> None:
        """Raise if a value is out of range, or A and B would start from data too."""
        super().check()
        if self.beta is not None and not is_number(self.beta, above=0):
            raise PlanError(f"colora adapter: beta must be a positive number, not {self.beta!r}")
        if self.start in STARTS_FROM_DATA:
            raise PlanError(f"colora adapter: start={self.start!r} has a calibration of its own; take lora for it")


class Contributions(Calibrator):
    """Ranks from contributions: c = Σ (∂L/∂w)² over the weights w of a layer, summed over single images.

    With β, and columns d_in and rows d_out of each layer:

        δ = min(1, β c / largest c)     rank = max(1, round(δ d_in d_out / (d_in + d_out)))

    so δ is the share of a layer's weights that the layer may train. β is solved so that all layers together have as
    many parameters as at uniform rank, as nearly as the rule can. The scale stays that of the uniform rank. Both the
    contribution and the rule are ours: see `CoLoRA`.
    """

    wants = frozenset({"gradients"})
    adapters: Mapping[str, Any]

    def __init__(self, adapters: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        self.fisher = dict.fromkeys(configs, 0.0)

    def see_gradients(self, site: str, gradients: Mapping[str, Tensor]) -> None:
        """Add up the squares of one image's gradients, in the chosen rows."""
        for gradient in gradients.values():
            self.fisher[site] += self.adapters[site].layer.rows(gradient).double().square().sum().item()

    def settle(self) -> Mapping[str, Any]:
        """Return the configs with the ranks of the rule."""
        largest = max(self.fisher.values())
        if not largest or not all(math.isfinite(fisher) for fisher in self.fisher.values()):
            raise PlanError("the gradients of all layers are zero, or some are not finite: ranks cannot follow them")
        shares = {site: fisher / largest for site, fisher in self.fisher.items()}
        sizes = {site: sum(p.numel() for p in a.parameters()) // a.rank for site, a in self.adapters.items()}
        solved = [site for site, config in self.configs.items() if config.beta is None]
        wanted = sum(sizes[site] * self.configs[site].rank for site in solved)
        beta = nearest(lambda b: sum(sizes[s] * self._rank(s, b * shares[s]) for s in solved), wanted, shares.values())
        ranks = {s: self._rank(s, (beta if c.beta is None else c.beta) * shares[s]) for s, c in self.configs.items()}
        found = f", with beta={beta:.3g}" if solved else ""
        self.notes.append(f"ranks from {min(ranks.values())} to {max(ranks.values())}{found}")
        return {s: c.at_scale_of(replace(c, rank=ranks[s])) for s, c in self.configs.items()}

    def _rank(self, site: str, delta: float) -> int:
        rows, columns = cast(tuple[int, int], self.adapters[site].layer.matrix_shape)
        return max(1, round(min(1.0, delta) * rows * columns / (rows + columns)))

    def fill(self, site: str, adapter: Any) -> None:
        """Leave the start that the new adapter has."""


def nearest(total: Callable[[float], int], wanted: int, shares: Iterable[float]) -> float:
    """Return the β with the total nearest to the wanted one (the lower of two); totals do not fall with β."""
    low, high = 0.0, 1 / min(share for share in shares if share > 1e-30)
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if total(middle) <= wanted else (low, middle)
    return min(low, high, key=lambda beta: abs(total(beta) - wanted))


class CoLoRA(LoRA):
    """`LoRA`, with a rank of its own in each layer, from `lowpeft.calibrate`; uniform LoRA without it.

    All fields of LoRA apply, but a start from data.

    Trained parameters per layer: rank · (rows + columns).

    Source: CoLoRA (arXiv 2408.01099). Its method was read on its project page alone: a ratio δ per layer from filter
    attribution (FAIG), and a rank from δ. FAIG needs a network that was fully tuned for the task, and the map from δ to
    the rank was not read. So `Contributions` uses squared gradients of the frozen network, and a rule of our own.
    """

    kind = "colora"
    calibrator_class = Contributions
