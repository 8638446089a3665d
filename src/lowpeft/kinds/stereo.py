"""The stereo adapter of ASteISR: the two views attend to each other along image rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import is_number
from ..errors import PlanError
from ..ports.layouts import Features, Matches
from .base import FeatureAdapter
from .matching import best_matches
from .stages import StageConfig


@dataclass(frozen=True, kw_only=True)
class StereoConfig(StageConfig):
    """Settings of stereo adapters after every n-th stage.

    Attributes:
        every: See `StageConfig`; 2 (the paper) adapts sites 1, 3, 5, ….
        logit_scale: Factor of the attention logits (the published code: 1.5; the paper's text describes a temperature
            that raises entropy, which would be a divisor).
    """

    kind: ClassVar[str] = "stereo"

    every: int = 2
    logit_scale: float = 1.5

    def check(self) -> None:
        """Raise if the step is below 1 or the scale is not positive."""
        super().check()
        if not is_number(self.logit_scale, above=0):
            raise PlanError(f"stereo adapter: logit_scale must be a positive number, not {self.logit_scale!r}")


class StereoAdapter(FeatureAdapter):
    """Cross-view attention along rows, with a learned per-channel gate that starts at zero.

    For features X_l, X_r of shape (B, H, W, C) and each image row:

        Q_v = W1_v · LN_v(X_v)      V_v = W2_v · X_v      A = Q_l Q_rᵀ / √C
        X_l' = X_l + β ⊙ softmax(s·A) V_r                 X_r' = X_r + γ ⊙ softmax(s·Aᵀ) V_l

    with separate weights and biases per view, LayerNorm over channels (eps 1e-6), s = `logit_scale`, and β = γ = 0 when
    new. `delta` is the second term.

    Trained parameters per site: 4·(C² + C) + 6·C.

    The whole attention map is never stored: `scaled_dot_product_attention` computes it block by block, with the image
    rows as its batch.

    Source: ASteISR (arXiv 2407.03598); details as in the published code, which follows SCAM of NAFSSR
    (arXiv 2204.08714).
    """

    kind = "stereo"
    needs_rows = True

    def __init__(self, channels: int, config: StereoConfig) -> None:
        super().__init__()
        self.scale = config.logit_scale / math.sqrt(channels)
        self.norm_left = nn.LayerNorm(channels, eps=1e-6)
        self.norm_right = nn.LayerNorm(channels, eps=1e-6)
        self.query_left = nn.Linear(channels, channels)
        self.query_right = nn.Linear(channels, channels)
        self.value_left = nn.Linear(channels, channels)
        self.value_right = nn.Linear(channels, channels)
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))

    def delta(self, features: Features) -> Tensor:
        """Return what each view gets from the other view; left and right of a pair are neighbours in the batch."""
        left, right = features.rows_by_view
        query_left, query_right = self._queries(left, right)
        to_left = _attend(query_left, query_right, self.value_right(right), self.scale) * self.beta
        to_right = _attend(query_right, query_left, self.value_left(left), self.scale) * self.gamma
        return features.from_rows_by_view((to_left, to_right))

    def matches(self, features: Features) -> Matches:
        """Return the disparity of each position's largest attention weight, and that weight."""
        queries = self._queries(*features.rows_by_view)
        column = torch.arange(queries[0].shape[2], device=queries[0].device)
        in_right, weight_left = best_matches(*queries, self.scale)
        in_left, weight_right = best_matches(*queries[::-1], self.scale)
        return Matches(
            torch.stack([column - in_right, in_left - column], dim=1).flatten(0, 1).to(weight_left.dtype),
            torch.stack([weight_left, weight_right], dim=1).flatten(0, 1),
        )

    def _queries(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_left(self.norm_left(left)), self.query_right(self.norm_right(right))


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)
