"""What prefix tuning and VPT share: settings of tokens that attention sees as extra keys and values, and their gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .base import FeatureConfig, TokenAdapter, at_least


@dataclass(frozen=True, kw_only=True)
class PromptConfig(FeatureConfig):
    """Base class of the settings of trained tokens in every block.

    Attributes:
        tokens: Number of trained tokens of each block's attention; all images and windows get the same.
    """

    tokens: int = 8

    def check(self) -> None:
        """Raise if `tokens` is below 1."""
        at_least(self, tokens=1)

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The number of tokens, from 1."""
        return "tokens", range(1, 1025)

    @property
    def places(self) -> tuple[str, ...]:
        """Place `tokens`, which families have whose attention is a softmax over tokens."""
        return ("tokens",)


class PromptAdapter(TokenAdapter):
    """Base class of trained tokens with a gate: one number per site, exactly zero when new.

    Attention's output becomes `out + gate · (with the tokens − without)`. With a gate of zero only the gate has a
    gradient, so the tokens follow one step later. At a gate of one, attention is that of the paper.

    Source of the gate: LLaMA-Adapter (arXiv 2303.16199), which starts at zero too; there it scales the attention to the
    tokens, with a softmax of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
