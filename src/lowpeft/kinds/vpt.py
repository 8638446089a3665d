"""VPT: trained prompts in the attention of every block (visual prompt tuning, deep)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..ports.layouts import ExtraTokens, Features
from .prompts import PromptAdapter, PromptConfig


@dataclass(frozen=True, kw_only=True)
class VPTConfig(PromptConfig):
    """Settings of visual prompt tuning: the number of prompts (`tokens`) of each block's attention."""

    kind: ClassVar[str] = "vpt"

    tokens: int = 5


class VPT(PromptAdapter):
    """P prompts E in the space of the block's input; each window attends to them as well, with keys LN(E)·W_k.

    out + gate · (softmax(q·[k; LN(E) W_k]) [v; LN(E) W_v] − softmax(q·k) v), before attention's projection. LN, W_k and
    W_v are the block's own, with their adapters; blocks that normalise after attention have no LN. E starts uniform in
    ±√(6 / (3 + C)), which is the paper's ±√(6 / (3·p² + C)) for patches of p = 1 pixel; the gate at zero.

    Trained parameters per site: P·C + 1 for P prompts and C channels.

    Source: VPT-deep (arXiv 2203.12119). It replaces the prompts before each block, so what a block makes of them is
    lost, and all that they do is this. The authors' code for Swin has no gate, so a new network differs from its base.
    VPT-shallow is left out: its prompts travel through all blocks beside the image's tokens, and the convolutions
    between the blocks of restoration networks have no place for them; the code's average over windows mixes images.
    """

    kind = "vpt"

    def __init__(self, channels: int, config: VPTConfig) -> None:
        super().__init__()
        bound = math.sqrt(6 / (3 + channels))
        self.prompts = nn.Parameter(torch.empty(1, config.tokens, channels).uniform_(-bound, bound))

    def tokens(self, features: Features) -> ExtraTokens:
        """Return the prompts, which the block projects, and their gate, whatever the features."""
        return ExtraTokens(self.prompts, self.prompts, self.gate, projected=False)
