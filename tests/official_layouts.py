"""Tiny networks with the names and the structure of official code that no package brings.

Nothing here is that code. Each network has the modules that lowpeft goes by, under the official names, and combines
them in the official order; what is inside attention is as plain as it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N,C,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


def depthwise(channels: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


# --- Restormer -------------------------------------------------------------------------------------------------------


class _Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _TransposedAttention(nn.Module):
    """Attention between channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qkv_dwconv = depthwise(3 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.flatten(2) for t in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2) * self.temperature
        return self.project_out((scores.softmax(-1) @ v).view(x.shape))


class _GatedFeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 4 * channels, 1)
        self.dwconv = depthwise(4 * channels)
        self.project_out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class _RestormerBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.attn = _Norm(channels), _TransposedAttention(channels)
        self.norm2, self.ffn = _Norm(channels), _GatedFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class _Resize(nn.Module):
    """A convolution and a (un)shuffle of pixels."""

    def __init__(self, channels: int, out: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _level(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_RestormerBlock(channels) for _ in range(depth)))


def _down(channels: int) -> _Resize:
    return _Resize(channels, channels // 2, nn.PixelUnshuffle(2))


def _up(channels: int) -> _Resize:
    return _Resize(channels, 2 * channels, nn.PixelShuffle(2))


class Restormer(nn.Module):
    """Four levels down to an eighth of the sides and up again, and a refinement."""

    def __init__(self, *, dim: int = 4, depth: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, dim, 3, padding=1)
        self.encoder_level1, self.down1_2 = _level(dim, depth), _down(dim)
        self.encoder_level2, self.down2_3 = _level(2 * dim, depth), _down(2 * dim)
        self.encoder_level3, self.down3_4 = _level(4 * dim, depth), _down(4 * dim)
        self.latent, self.up4_3 = _level(8 * dim, depth), _up(8 * dim)
        self.reduce_chan_level3, self.decoder_level3 = nn.Conv2d(8 * dim, 4 * dim, 1), _level(4 * dim, depth)
        self.up3_2 = _up(4 * dim)
        self.reduce_chan_level2, self.decoder_level2 = nn.Conv2d(4 * dim, 2 * dim, 1), _level(2 * dim, depth)
        self.up2_1, self.decoder_level1 = _up(2 * dim), _level(2 * dim, depth)
        self.refinement = _level(2 * dim, depth)
        self.output = nn.Conv2d(2 * dim, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """N,C,H,W to the same; sides are multiples of 8."""
        one = self.encoder_level1(self.patch_embed.proj(image))
        two = self.encoder_level2(self.down1_2(one))
        three = self.encoder_level3(self.down2_3(two))
        x = self.up4_3(self.latent(self.down3_4(three)))
        x = self.up3_2(self.decoder_level3(self.reduce_chan_level3(torch.cat((x, three), 1))))
        x = self.up2_1(self.decoder_level2(self.reduce_chan_level2(torch.cat((x, two), 1))))
        return image + self.output(self.refinement(self.decoder_level1(torch.cat((x, one), 1))))


# --- HiT-SR ----------------------------------------------------------------------------------------------------------

Variant = Literal["srf", "sir", "sng"]


class _NeighbourWindows(nn.Module):
    """Adds to every window what the one below it holds, of pairs of windows (HiT-SNG)."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.merge, self.window = nn.Linear(channels, channels), window

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        pairs = x.view(n, height // (2 * self.window), 2, self.window, width, channels)
        return x + self.merge(pairs.flip(2)).view(x.shape)


class _Correlation(nn.Module):
    """Products of queries and values within windows, on (N,H,W,C)."""

    def __init__(self, channels: int, window: int, variant: Variant) -> None:
        super().__init__()
        self.qv, self.proj, self.window = nn.Linear(channels, 2 * channels), nn.Linear(channels, channels), window
        if variant == "sng":
            self.ngram_window_partition = _NeighbourWindows(2 * channels, window)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        w, qv = self.window, self.qv(x)
        if "ngram_window_partition" in self._modules:
            qv = self.ngram_window_partition(qv)
        windows = qv.view(n, height // w, w, width // w, w, 2 * channels).transpose(2, 3)
        q, v = windows.reshape(-1, w * w, 2 * channels).chunk(2, dim=-1)
        out = q @ (q.transpose(1, 2) @ v) / (w * w)
        out = out.view(n, height // w, width // w, w, w, channels).transpose(2, 3).reshape(x.shape)
        return self.proj(out)


class _Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _ConvMlp(_Mlp):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.dwconv = depthwise(2 * channels)

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        hidden = F.gelu(self.fc1(x))
        rows = hidden.transpose(1, 2).reshape(x.shape[0], -1, *x_size)
        return self.fc2(hidden + F.gelu(self.dwconv(rows)).flatten(2).transpose(1, 2))


class _HierarchicalBlock(nn.Module):
    def __init__(self, channels: int, window: int, variant: Variant) -> None:
        super().__init__()
        self.window_size, self.variant = (window, window), variant
        self.norm1, self.correlation = nn.LayerNorm(channels), _Correlation(channels, window, variant)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _ConvMlp(channels) if variant == "srf" else _Mlp(channels)

    def check_image_size(self, x: Tensor, win_size: tuple[int, int]) -> Tensor:
        """(N,H,W,C) with zeros below and on the right, up to whole windows."""
        return F.pad(x, (0, 0, 0, -x.shape[2] % win_size[1], 0, -x.shape[1] % win_size[0]))

    def forward(self, x: Tensor, x_size: tuple[int, int], win_size: tuple[int, int]) -> Tensor:
        (height, width), factor = x_size, 2 if self.variant == "sng" else 1
        rows = x.view(x.shape[0], height, width, x.shape[2])
        padded = self.check_image_size(rows, (factor * win_size[0], factor * win_size[1]))
        rows = self.correlation(padded)[:, :height, :width].contiguous()
        x = x + self.drop_path(self.norm1(rows.view(x.shape)))
        out = self.mlp(x, x_size) if self.variant == "srf" else self.mlp(x)
        return x + self.drop_path(self.norm2(out))


class _HierarchicalLayer(nn.Module):
    def __init__(self, channels: int, windows: tuple[int, ...], variant: Variant) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_HierarchicalBlock(channels, window, variant) for window in windows)

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        for block in self.blocks:
            x = block(x, x_size, block.window_size)
        return x


class _HierarchicalGroup(nn.Module):
    def __init__(self, channels: int, windows: tuple[int, ...], variant: Variant) -> None:
        super().__init__()
        self.residual_group = _HierarchicalLayer(channels, windows, variant)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        rows = self.residual_group(x, x_size).transpose(1, 2).reshape(x.shape[0], -1, *x_size)
        return self.conv(rows).flatten(2).transpose(1, 2) + x


class HiT(nn.Module):
    """HiT-SRF, HiT-SIR or HiT-SNG for x2: windows that grow from block to block."""

    def __init__(self, variant: Variant, *, dim: int = 8, groups: int = 4, windows: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        self.upscale = 2
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.layers = nn.ModuleList(_HierarchicalGroup(dim, windows, variant) for _ in range(groups))
        self.upsample = nn.Sequential(nn.Conv2d(dim, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """N,3,H,W to N,3,2H,2W."""
        first, size = self.conv_first(x), (x.shape[2], x.shape[3])
        tokens = first.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, size)
        return self.upsample(tokens.transpose(1, 2).reshape(first.shape) + first)


# --- NAFSSR, CVHSSR --------------------------------------------------------------------------------------------------


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        return one * other


def _pooled(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))


class _GatedBlock(nn.Module):
    """What the blocks of the two networks share: norms, gates and learned scales."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1, self.conv2 = nn.Conv2d(channels, 2 * channels, 1), depthwise(2 * channels)
        self.conv3, self.sg = nn.Conv2d(channels, channels, 1), _Gate()
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.dropout1, self.dropout2 = nn.Identity(), nn.Identity()
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def attention(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def feed_forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.dropout1(self.attention(self.norm1(x))) * self.beta
        return y + self.dropout2(self.feed_forward(self.norm2(y))) * self.gamma


class _NafBlock(_GatedBlock):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.sca, self.conv5 = _pooled(channels), nn.Conv2d(channels, channels, 1)

    def attention(self, x: Tensor) -> Tensor:
        x = self.sg(self.conv2(self.conv1(x)))
        return self.conv3(x * self.sca(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.conv5(self.sg(self.conv4(x)))


class _ChimBlock(_GatedBlock):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.sca1, self.sca2 = depthwise(channels, 5), _pooled(channels)
        self.conv5, self.conv6 = depthwise(2 * channels), nn.Conv2d(channels, channels, 1)

    def attention(self, x: Tensor) -> Tensor:
        x = self.sg(self.conv2(self.conv1(x)))
        return self.conv3(self.sca2(x) * x + self.sca1(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, value = self.conv5(self.conv4(x)).chunk(2, dim=1)
        return self.conv6(F.gelu(gate) * value)


class _Fusion(nn.Module):
    """Each view takes from the same rows of the other."""

    def __init__(self, channels: int, *, last: bool) -> None:
        super().__init__()
        self.l_proj1, self.r_proj1 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        if last:
            self.l_proj3, self.r_proj3 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.last = last

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("nchl,nchr->nhlr", self.l_proj1(left), self.r_proj1(right))
        to_left = torch.einsum("nhlr,nchr->nchl", scores.softmax(-1), right)
        to_right = torch.einsum("nhlr,nchl->nchr", scores.softmax(-2), left)
        if self.last:
            to_left, to_right = self.l_proj3(to_left), self.r_proj3(to_right)
        return left + to_left * self.beta, right + to_right * self.beta


class _BothViews(nn.Module):
    def __init__(self, block: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.blk, self.fusion = block, fusion

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return self.fusion(*(self.blk(view) for view in views))


class _Holder(nn.Module):
    """Where the official networks drop whole blocks in training."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return self.module(*views)


class _StereoNetwork(nn.Module):
    def __init__(self, block: Callable[[int], nn.Module], *, last: bool, dim: int, depth: int) -> None:
        super().__init__()
        self.dual, self.up_scale = True, 2
        self.intro = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.Sequential(*(_Holder(_BothViews(block(dim), _Fusion(dim, last=last))) for _ in range(depth)))
        self.up = nn.Sequential(nn.Conv2d(dim, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, pair: Tensor) -> Tensor:
        """N,6,H,W, left and right, to N,6,2H,2W."""
        views: tuple[Tensor, ...] = tuple(map(self.intro, pair.chunk(2, dim=1)))
        for block in self.body:
            views = block(*views)
        return torch.cat([self.up(view) for view in views], dim=1) + F.interpolate(pair, scale_factor=2.0)


def nafssr(*, dim: int = 8, depth: int = 4) -> nn.Module:
    """NAFSSR for x2."""
    return _StereoNetwork(_NafBlock, last=False, dim=dim, depth=depth)


def cvhssr(*, dim: int = 8, depth: int = 4) -> nn.Module:
    """CVHSSR for x2."""
    return _StereoNetwork(_ChimBlock, last=True, dim=dim, depth=depth)
