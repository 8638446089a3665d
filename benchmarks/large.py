"""Large networks with random weights, for measurements. HAT-L needs the extra `spandrel`."""

from __future__ import annotations

import torch
from torch import nn

from lowpeft.paper.reproduce.networks import HAT_L, hat


def hat_l() -> nn.Module:
    """HAT-L x4."""
    return hat(**HAT_L, upscale=4).eval()


class Wide(nn.Module):
    """EDSR's layout without its names: 102 blocks of two 3x3 convolutions of 256 channels, 120 M parameters."""

    def __init__(self) -> None:
        super().__init__()

        def block() -> nn.Module:
            return nn.Sequential(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.Conv2d(256, 256, 3, 1, 1))

        self.first, self.last = nn.Conv2d(3, 256, 3, 1, 1), nn.Conv2d(256, 3, 3, 1, 1)
        self.trunk = nn.ModuleList(Residual(block()) for _ in range(102))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        for stage in self.trunk:
            y = stage(y)
        return self.last(y)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)
