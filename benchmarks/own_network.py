"""A small denoiser that lowpeft has never seen: the own network of `benchmarks/denoiser.py`, given by `--network`."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Depthwise and pointwise convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.grow = nn.Conv2d(channels, 2 * channels, 1)
        self.shrink = nn.Conv2d(2 * channels, channels, 1)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(self.activation(self.grow(self.depthwise(self.norm(x)))))


class Denoiser(nn.Module):
    """Blocks at half the resolution; the output is the input plus a correction."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 2, stride=2)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.tail = nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.blocks(self.head(x)))


def denoiser(channels: int = 48, blocks: int = 6) -> nn.Module:
    """A new network with random weights."""
    return Denoiser(channels, blocks)
