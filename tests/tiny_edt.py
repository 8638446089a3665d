"""A tiny network with the structure of EDT: its module names, call order and feature layouts, not its numbers.

Tests that attach adapters to EDT need the places (`residual_group`, `proj`, ...), and those do not depend on width or
on training. Layout: head and tail work on N,C,H,W; groups and blocks take tokens N,L,C with L = H*W and the size
(H, W); inside a block `qkv`, `proj` and `mlp` work on N,H,W,C.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)
MASKED = -100.0


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut N,H,W,C into windows: N*nW, h*w, C, row by row."""
    n, height, width, channels = x.shape
    h, w = window
    x = x.reshape(n, height // h, h, width // w, w, channels).transpose(2, 3)
    return x.reshape(-1, h * w, channels)


def from_windows(x: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undo `to_windows`: N*nW, h*w, C to N,H,W,C."""
    (h, w), (height, width) = window, size
    x = x.reshape(-1, height // h, width // w, h, w, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, height, width, x.shape[-1])


def shift_mask(size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Mask nW,L,L for windows shifted by half: pixels that were not neighbours before the shift stay apart."""
    region = torch.zeros(1, *size, 1)
    for axis, side in enumerate(window, start=1):
        lengths = (size[axis - 1] - side, side - side // 2, side // 2)
        labels = torch.cat([torch.full((length,), float(i)) for i, length in enumerate(lengths)])
        region = 3 * region + labels.view([-1 if dim == axis else 1 for dim in range(4)])
    windows = to_windows(region, window).squeeze(-1)
    return (windows.unsqueeze(1) != windows.unsqueeze(2)) * MASKED


class HalfAttention(nn.Module):
    """Window attention on half of the channels, with a depth-wise position term (LePE) on the values of each window."""

    def __init__(self, dim: int, window: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.lepe = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """N,H,W,3C to N,H,W,C; `mask` is nW,L,L and is added to the logits."""
        n, height, width, _ = qkv.shape
        windows = to_windows(qkv, self.window)
        count, length, _ = windows.shape
        q, k, v = windows.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = (logits.view(n, -1, *logits.shape[1:]) + mask.unsqueeze(1)).flatten(0, 1)
        out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        values = v.transpose(-2, -1).reshape(count, -1, *self.window)
        out = out + self.lepe(values).flatten(2).transpose(1, 2)
        return from_windows(out, self.window, (height, width))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 5, 1, 2, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """N,H,W,C to N,H,W,C."""
        x = F.gelu(self.fc1(x))
        x = F.gelu(self.dwconv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.fc2(x)


class Block(nn.Module):
    """Pre-norm block; odd blocks shift the windows by half."""

    attn_mask_h: Tensor | None
    attn_mask_v: Tensor | None

    def __init__(self, dim: int, window: tuple[int, int], heads: int, *, shifted: bool, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.windows = (window, window[::-1])
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attns = nn.ModuleList(HalfAttention(dim // 2, w, heads) for w in self.windows)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 2 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # As in released checkpoints, the masks of one image size are part of the state dict.
        self.register_buffer("attn_mask_h", shift_mask(size, self.windows[0]) if shifted else None)
        self.register_buffer("attn_mask_v", shift_mask(size, self.windows[1]) if shifted else None)

    def masks(self, x_size: tuple[int, int], like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not self.shifted or x_size == self.size:
            return self.attn_mask_h, self.attn_mask_v
        horizontal, vertical = (shift_mask(x_size, w).to(like) for w in self.windows)
        return horizontal, vertical

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Tokens N,L,C to N,L,C."""
        height, width = x_size
        x = x.view(x.shape[0], height, width, -1)
        n, _, _, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, height, width, 3, 2, dim // 2)
        halves = []
        for i, (attn, window, mask) in enumerate(zip(self.attns, self.windows, self.masks(x_size, x), strict=True)):
            half = qkv[..., i, :].flatten(3)
            step = (window[0] // 2, window[1] // 2) if self.shifted else (0, 0)
            half = torch.roll(half, (-step[0], -step[1]), (1, 2))
            halves.append(torch.roll(attn(half, mask), step, (1, 2)))
        x = x + self.proj(torch.cat(halves, -1))
        x = x + self.mlp(self.norm2(x))
        return x.flatten(1, 2)


class Group(nn.Module):
    def __init__(self, dim: int, window: tuple[int, int], heads: int, *, depth: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, window, heads, shifted=i % 2 == 1, size=size) for i in range(depth))

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Tokens N,L,C to N,L,C."""
        for block in self.blocks:
            x = block(x, x_size)
        return x


class ResidualGroup(nn.Module):
    """`residual_group` plus the shortcut; EDT has no convolution here."""

    def __init__(self, dim: int, window: tuple[int, int], heads: int, *, depth: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.residual_group = Group(dim, window, heads, depth=depth, size=size)

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Tokens N,L,C to N,L,C."""
        return self.residual_group(x, x_size) + x


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to tokens N,L,C."""
        return self.norm(x.flatten(2).transpose(1, 2))


class Body(nn.Module):
    def __init__(
        self,
        dim: int,
        window: tuple[int, int],
        heads: int,
        *,
        depths: tuple[int, ...],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.layers = nn.ModuleList(ResidualGroup(dim, window, heads, depth=d, size=size) for d in depths)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W to N,C,H,W."""
        x_size = (x.shape[2], x.shape[3])
        tokens = self.patch_embed(x)
        for layer in self.layers:
            tokens = layer(tokens, x_size)
        features = self.norm(tokens).transpose(1, 2).reshape(x.shape)
        return self.conv_after_body(features) + x


class ConvBlock(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        middle = min(dim_in, dim_out)
        self.conv_1 = nn.Conv2d(dim_in, middle, 3, 1, 1)
        self.conv_2 = nn.Conv2d(middle, dim_out, 3, 1, 1)
        self.shortcut = nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N,C_in,H,W to N,C_out,H,W."""
        out = F.leaky_relu(self.conv_1(x), 0.2)
        return F.leaky_relu(self.conv_2(out), 0.2) + self.shortcut(x)


class SkipBlock(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, 1, 1)
        self.block = ConvBlock(2 * dim_out, dim_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """N,C_in,H,W and N,C_out,H,W to N,C_out,H,W."""
        return self.block(torch.cat((self.conv(x), skip), 1))


class TinyEDT(nn.Module):
    """EDT's structure for x4: N,3,H,W in 0..1 to N,3,4H,4W; H and W are multiples of both window sides."""

    def __init__(
        self,
        *,
        features: int = 4,
        dim: int = 16,
        heads: int = 2,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        window: tuple[int, int] = (6, 24),
        size: tuple[int, int] = (24, 24),
    ) -> None:
        super().__init__()
        self.head_sr_x4 = nn.Sequential(
            nn.Conv2d(3, features, 3, 1, 1),
            ConvBlock(features, 2 * features),
            ConvBlock(2 * features, 4 * features),
            nn.Conv2d(4 * features, dim, 3, 1, 1),
        )
        self.body = Body(dim, window, heads, depths=depths, size=size)
        wide = 2 * features
        self.tail_sr_x4 = nn.Sequential(
            SkipBlock(dim, 4 * features),
            SkipBlock(4 * features, wide),
            nn.Sequential(
                nn.Conv2d(wide, 4 * wide, 3, 1, 1),
                nn.PixelShuffle(2),
                nn.Conv2d(wide, 4 * wide, 3, 1, 1),
                nn.PixelShuffle(2),
            ),
            nn.Conv2d(wide, 3, 3, 1, 1),
        )
        self.mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)  # a plain attribute upstream, so not in the state dict

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean.to(x)
        x = x - mean
        base = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        skip_1 = self.head_sr_x4[1](self.head_sr_x4[0](x))
        skip_2 = self.head_sr_x4[2](skip_1)
        out = self.body(self.head_sr_x4[3](skip_2))
        out = self.tail_sr_x4[0](out, skip_2)
        out = self.tail_sr_x4[1](out, skip_1)
        return self.tail_sr_x4[3](self.tail_sr_x4[2](out)) + base + mean
