"""Prefix tuning: trained keys and values in the attention of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..ports.layouts import ExtraTokens, Features
from .prompts import PromptAdapter, PromptConfig


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(PromptConfig):
    """Settings of prefix tuning: the number of trained `tokens` (keys and values) of each block's attention."""

    kind: ClassVar[str] = "prefix"


class Prefix(PromptAdapter):
    """P keys K and P values V: out + gate · (softmax(q·[k; K]) [v; V] − softmax(q·k) v), before attention's projection.

    K and V are in the space of the base's projected keys and values, one set for all images and windows. They start
    normally distributed with standard deviation 1 (ours), the gate at zero.

    Trained parameters per site: 2·P·C + 1 for P tokens and C channels.

    Source: prefix tuning (arXiv 2101.00190). Its reparametrisation, an MLP that makes keys and values in training, is
    left out: the paper has it for stability, and the zero gate serves that here.
    """

    kind = "prefix"

    def __init__(self, channels: int, config: PrefixConfig) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(1, config.tokens, channels))
        self.values = nn.Parameter(torch.randn(1, config.tokens, channels))

    def tokens(self, features: Features) -> ExtraTokens:
        """Return the keys, the values and their gate, whatever the features."""
        return ExtraTokens(self.keys, self.values, self.gate)
