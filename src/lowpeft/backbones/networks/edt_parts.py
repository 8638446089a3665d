"""Parts of EDT: transformer body, convolutional heads and tails."""

from __future__ import annotations

from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ...ports.layouts import Size
from .edt_config import EDTConfig

MASKED = -100.0
"""Value that the authors add to the attention logits of masked pairs of pixels."""

Masks = tuple[Tensor, Tensor]


# --- Body
def shift_mask(size: Size, window: Size, *, like: Tensor) -> Tensor:
    """Return the mask that blocks attention between pixels that became neighbours only by a shift of half a window.

    Args:
        size: Height and width of the features; multiples of the window's.
        window: Height and width of a window.
        like: Tensor with the device and dtype of the mask.

    Returns:
        Mask (windows, L, L) to add to the logits, with L pixels per window; values are 0 or `MASKED`.
    """
    labels = []
    for side, step in zip(size, window, strict=True):
        positions = torch.arange(side, device=like.device)
        labels.append((positions >= side - step).int() + (positions >= side - step // 2).int())
    regions = 3 * labels[0][:, None] + labels[1][None, :]
    windows = rearrange(regions, "(y h) (x w) -> (y x) (h w)", h=window[0], w=window[1])
    apart = windows[:, :, None] != windows[:, None, :]
    return torch.zeros(apart.shape, device=like.device, dtype=like.dtype).masked_fill_(apart, MASKED)


class WindowAttention(nn.Module):
    """Attention within windows of one shape, with a depth-wise convolution of the values as position term (LePE).

    The convolution is applied to each window separately. There is no position bias.
    """

    def __init__(self, dim: int, window: Size, heads: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """Map queries, keys and values (3,N,H,W,C) to (N,H,W,C); `mask` is from `shift_mask`."""
        (h, w), count = self.window, qkv.shape[1]
        y, x = qkv.shape[2] // h, qkv.shape[3] // w
        q, k, v = rearrange(
            qkv, "t n (y h) (x w) (heads c) -> t (n y x) heads (h w) c", h=h, w=w, heads=self.heads
        ).unbind()
        if mask is not None:
            mask = mask[None, :, None].expand(count, -1, -1, -1, -1).flatten(0, 1)
        # CUDA's memory-efficient kernel refuses 15 channels a head and the like; zeros change no result.
        width = q.shape[-1]
        queries, keys, values = (F.pad(t, (0, -width % 8)) for t in (q, k, v))
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=width**-0.5)[..., :width]
        position = self.lepe(rearrange(v, "b heads (h w) c -> b (heads c) h w", h=h))
        out = rearrange(out, "b heads (h w) c -> b (heads c) h w", h=h) + position
        joined: Tensor = rearrange(out, "(n y x) c h w -> n (y h) (x w) c", y=y, x=x)
        return joined


class Mlp(nn.Module):
    """Two linear layers with a depth-wise 5x5 convolution between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N,H,W,C) to (N,H,W,C)."""
        x = F.gelu(self.fc1(x)).permute(0, 3, 1, 2)
        return self.fc2(F.gelu(self.dwconv(x)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention in wide windows on one half of the channels and tall windows on the other, then MLP; both pre-norm."""

    attn_mask_h: Tensor | None
    attn_mask_v: Tensor | None

    def __init__(self, config: EDTConfig, *, shifted: bool) -> None:
        super().__init__()
        dim, half = config.dim, config.dim // 2
        self.windows = (config.window, config.window[::-1])
        self.shifted = shifted
        size = (config.image_px, config.image_px)
        masks = [shift_mask(size, w, like=torch.empty(0)) if shifted else None for w in self.windows]
        self.register_buffer("attn_mask_h", masks[0])
        self.register_buffer("attn_mask_v", masks[1])
        self.norm1 = nn.LayerNorm(dim)
        self.attns = nn.ModuleList(WindowAttention(half, window, config.heads) for window in self.windows)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, config.mlp_ratio * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load the state dict with this block's masks where masks are missing or for another image size."""
        own = {prefix + "attn_mask_h": self.attn_mask_h, prefix + "attn_mask_v": self.attn_mask_v}
        for key, mask in own.items():
            if mask is not None and (key not in state_dict or state_dict[key].shape != mask.shape):
                state_dict[key] = mask
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def attend(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """Apply attention to (N,H,W,C); without `masks`, a shifted block uses its buffers, for sides `image_px`."""
        qkv = rearrange(self.qkv(x), "n h w (t half c) -> half t n h w c", t=3, half=2)
        own = (self.attn_mask_h, self.attn_mask_v)
        parts = []
        for i, attend in enumerate(self.attns):
            if not self.shifted:
                parts.append(attend(qkv[i], None))
                continue
            down, right = self.windows[i][0] // 2, self.windows[i][1] // 2
            rolled = torch.roll(qkv[i], (-down, -right), (2, 3))
            part = attend(rolled, own[i] if masks is None else masks[i])
            parts.append(torch.roll(part, (down, right), (1, 2)))
        return self.proj(torch.cat(parts, -1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, x_size: Size, masks: Masks | None = None) -> Tensor:
        """Map tokens (N,L,C) of height and width `x_size` to (N,L,C); `masks` as for `attend`."""
        x = x.view(x.shape[0], *x_size, -1)  # `len(x)` would fix the batch size of an exported network
        x = x + self.attend(self.norm1(x), masks)
        x = x + self.mlp(self.norm2(x))
        return x.flatten(1, 2)


class Group(nn.Module):
    """Blocks of which 1, 3, 5, … have shifted windows."""

    def __init__(self, config: EDTConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, shifted=i % 2 == 1) for i in range(depth))

    def forward(self, x: Tensor, x_size: Size, masks: Masks | None = None) -> Tensor:
        """Map tokens (N,L,C) to (N,L,C)."""
        for block in self.blocks:
            x = block(x, x_size, masks)
        return x


class ResidualGroup(nn.Module):
    """A group with a shortcut, without a convolution between them."""

    def __init__(self, config: EDTConfig, depth: int) -> None:
        super().__init__()
        self.residual_group = Group(config, depth)

    def forward(self, x: Tensor, x_size: Size, masks: Masks | None = None) -> Tensor:
        """Map tokens (N,L,C) to (N,L,C)."""
        return x + self.residual_group(x, x_size, masks)  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Layer that makes a normalised token of each pixel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N,C,H,W) to tokens (N,L,C)."""
        return self.norm(x.flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


class Body(nn.Module):
    """Transformer body, shared by all tasks."""

    def __init__(self, config: EDTConfig) -> None:
        super().__init__()
        self.windows = (config.window, config.window[::-1])
        self.size = (config.image_px, config.image_px)
        self.patch_embed = PatchEmbed(config.dim)
        self.layers = nn.ModuleList(ResidualGroup(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(config.dim)
        self.conv_after_body = nn.Conv2d(config.dim, config.dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N,C,H,W) to (N,C,H,W); sides must be multiples of the windows'."""
        x_size = (x.shape[2], x.shape[3])
        masks = None
        if x_size != self.size:
            masks = (shift_mask(x_size, self.windows[0], like=x), shift_mask(x_size, self.windows[1], like=x))
        tokens = self.patch_embed(x)
        for layer in self.layers:
            tokens = layer(tokens, x_size, masks)
        deep = self.norm(tokens).transpose(1, 2).reshape(x.shape)
        return x + self.conv_after_body(deep)  # type: ignore[no-any-return]


# --- Heads and tails
class ConvBlock(nn.Module):
    """Two convolutions with a 1x1 shortcut; with `down`, also a convolution that halves the sides."""

    def __init__(self, dim_in: int, dim_out: int, *, down: bool = False) -> None:
        super().__init__()
        narrow = min(dim_in, dim_out)
        self.conv_1 = nn.Conv2d(dim_in, narrow, 3, padding=1)
        self.conv_2 = nn.Conv2d(narrow, dim_out, 3, padding=1)
        self.shortcut = nn.Conv2d(dim_in, dim_out, 1)
        self.conv_down = nn.Conv2d(dim_out, dim_out, 4, stride=2, padding=1, bias=False) if down else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N,C,H,W) to (N,C',H,W)."""
        out = F.leaky_relu(self.conv_1(x), 0.2)
        return F.leaky_relu(self.conv_2(out), 0.2) + self.shortcut(x)  # type: ignore[no-any-return]

    def halve(self, x: Tensor) -> Tensor:
        """Map (N,C',H,W) to (N,C',H/2,W/2) in a block with `down`; otherwise return `x`."""
        return x if self.conv_down is None else self.conv_down(x)


class Head(nn.Sequential):
    """Head from image to features: a convolution, two levels (`ConvBlock`) and a convolution."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (N,3,H,W) to (N,C,H',W') and two skips; each level of denoising and deraining halves the sides."""
        first, *levels, last = self
        x, skips = first(x), []
        for level in levels:
            x = level(x)
            skips.append(x)
            x = cast(ConvBlock, level).halve(x)
        return last(x), skips


class Level(nn.Module):
    """Level of the tail, which joins the head's features of the same level."""

    def __init__(self, dim_in: int, dim_out: int, *, up: bool) -> None:
        super().__init__()
        if up:
            self.up = nn.ConvTranspose2d(dim_in, dim_out, 2, stride=2)
        else:
            self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.upwards = up
        self.block = ConvBlock(2 * dim_out, dim_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (N,C,H,W) and the skip (N,C',H',W') to (N,C',H',W')."""
        x = self.up(x) if self.upwards else self.conv(x)
        return self.block(torch.cat((x, skip), 1))  # type: ignore[no-any-return]


class Upsampler(nn.Sequential):
    """Sub-pixel convolutions: one step to `dim_out` channels, or steps of x2 (or one of x3) with `dim` channels."""

    def __init__(self, dim: int, scale: int, dim_out: int | None = None) -> None:
        steps = [scale] if dim_out or scale == 3 else [2] * (scale.bit_length() - 1)
        layers: list[nn.Module] = []
        for step in steps:
            layers += [nn.Conv2d(dim, (dim_out or dim) * step**2, 3, padding=1), nn.PixelShuffle(step)]
        super().__init__(*layers)


class Tail(nn.Sequential):
    """Tail from features to image."""

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:  # type: ignore[override]
        """Map (N,C,H,W) and the head's skips to (N,3,H',W')."""
        deep, shallow, *rest = self
        x = shallow(deep(x, skips[1]), skips[0])
        for layer in rest:
            x = layer(x)
        return x


def make_head(task: str, features: int, dim: int) -> Head:
    """Build the head of a task."""
    down = not task.startswith("sr_")
    return Head(
        nn.Conv2d(3, features, 3, padding=1),
        ConvBlock(features, 2 * features, down=down),
        ConvBlock(2 * features, 4 * features, down=down),
        nn.Conv2d(4 * features, dim, 3, padding=1),
    )


def make_tail(task: str, features: int, dim: int, *, direct: bool) -> Tail:
    """Build the tail of a task."""
    sr = task.startswith("sr_")
    wide = 2 * features
    levels = (Level(dim, 4 * features, up=not sr), Level(4 * features, wide, up=not sr))
    if not sr:
        return Tail(*levels, nn.Conv2d(wide, 3, 3, padding=1))
    scale = int(task[-1])
    if direct:
        return Tail(*levels, Upsampler(wide, scale, 3))
    return Tail(*levels, Upsampler(wide, scale), nn.Conv2d(wide, 3, 3, padding=1))
