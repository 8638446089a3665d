"""Small networks of no known family, each with one trait that matters when a network is tried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + two convolutions."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1), nn.Conv2d(dim, dim, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).tanh())


class Plain(nn.Module):
    """A head, four stages, a tail; values and sizes stay."""

    def __init__(self, stage: Callable[[int], nn.Module] = Residual, *, dim: int = 8, count: int = 4) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, dim, 3, 1, 1), nn.Conv2d(dim, 3, 3, 1, 1)
        self.stages = nn.ModuleList(stage(dim) for _ in range(count))

    def body(self, x: Any) -> Any:
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.body(self.head(x)))


class Doubling(Plain):
    """Gives images twice as large: for runs of training that ask nothing of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.PixelShuffle(2))


def doubling() -> nn.Module:
    """For `--network unfamiliar:doubling`, which makes the same weights each time."""
    return Doubling()


class Tokens(nn.Module):
    """A stage on (N,L,C) that is told no height and width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


class SizedTokens(Tokens):
    """The same, told the size."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(x)


class TokenNet(Plain):
    """Stages on tokens; `extra` class tokens before them, as in a ViT."""

    def __init__(self, stage: Callable[[int], nn.Module] = Tokens, *, extra: int = 0, mixes: float = 0.0) -> None:
        super().__init__(stage)
        self.extra, self.mixes = extra, mixes

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        n, c, h, w = x.shape
        tokens = F.pad(x.flatten(2).transpose(1, 2), (0, 0, self.extra, 0))
        for stage in self.stages:
            tokens = stage(tokens, (h, w)) if isinstance(stage, SizedTokens) else stage(tokens)
        tokens = tokens[:, self.extra :] + self.mixes * tokens.mean((0, 1), keepdim=True)
        return self.tail(tokens.transpose(1, 2).reshape(n, c, h, w))


class Block(nn.Module):
    """A transformer's block on (N,C,H,W): channel attention, then an MLP; `post` puts a norm behind each."""

    def __init__(self, dim: int, *, post: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.attn = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.Tanh(), nn.Conv2d(dim, dim, 1))
        self.mlp = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))
        self.scale = nn.Parameter(torch.full((dim, 1, 1), 0.5))
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))
        x = x + self.scale * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Level(nn.Sequential):
    """Blocks of one resolution."""


class UNet(nn.Module):
    """Two levels down, a middle, two up, with skips; the finest level has few parameters."""

    def __init__(self, dim: int = 8, block: Callable[[int], nn.Module] = Residual) -> None:
        super().__init__()
        dims = (dim, 2 * dim, 4 * dim)
        self.intro, self.ending = nn.Conv2d(3, dim, 3, 1, 1), nn.Conv2d(dim, 3, 3, 1, 1)
        self.encoder_level1, self.encoder_level2 = (Level(block(d), block(d)) for d in dims[:2])
        self.down1_2, self.down2_3 = (nn.Conv2d(d, 2 * d, 2, 2) for d in dims[:2])
        self.latent = Level(block(dims[2]), block(dims[2]))
        self.up3_2, self.up2_1 = (nn.ConvTranspose2d(d, d // 2, 2, 2) for d in reversed(dims[1:]))
        self.decoder_level2, self.decoder_level1 = (Level(block(d), block(d)) for d in reversed(dims[:2]))

    def forward(self, x: Tensor) -> Tensor:
        one = self.encoder_level1(self.intro(x))
        two = self.encoder_level2(self.down1_2(one))
        y = self.latent(self.down2_3(two))
        y = self.decoder_level2(self.up3_2(y) + two)
        return self.ending(self.decoder_level1(self.up2_1(y) + one))


class Nested(Plain):
    """Lists of lists: `stages.#` is never called itself."""

    def __init__(self) -> None:
        super().__init__(lambda dim: nn.ModuleList([Residual(dim), nn.Conv2d(dim, dim, 1)]))

    def body(self, x: Tensor) -> Tensor:
        for block, conv in self.stages:
            x = x + conv(block(x))
        return x


class Pair(nn.Module):
    """A stage that takes and gives two views."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.one = Residual(dim)

    def forward(self, views: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.one(views[0]), self.one(views[1])


class StereoNet(Plain):
    """Six channels in and out, stages of two views: the form of NAFSSR."""

    def __init__(self) -> None:
        super().__init__(Pair)

    def forward(self, x: Tensor) -> Tensor:
        views = self.body(tuple(self.head(v) for v in x.chunk(2, dim=1)))
        return torch.cat([self.tail(v) for v in views], dim=1)


class Unpadded(nn.Module):
    """Stages of convolutions without padding; the input is padded beforehand."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, dim, 3), nn.Conv2d(dim, 3, 3)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(dim, dim, 3), nn.Tanh()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(F.pad(x, [6] * 4, mode="reflect"))
        for stage in self.stages:
            x = stage(x)
        return self.tail(x)


class Timed(Plain):
    """Takes an image and a time step."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x * time.view(-1, 1, 1, 1))


class Listed(Plain):
    """Takes and gives a list, as the authors' EDT."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        return [super(Listed, self).forward(each) for each in x]


class Video(Plain):
    """Takes and gives N,T,C,H,W."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
