"""Transformer blocks with a spatial adapter, one window and one head after the other: slow, plain, from descriptions.

`w` maps the block's parameter names to their values, `a` the adapter's. A block takes and gives one image's feature map
(H,W,C). Windows of a shifted block are cut from the map rolled by `shift` rows and columns; two positions that the roll
made neighbours do not see each other.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .adapters import Weights, gelu, layer_norm, linear, softmax, spatial_delta

Position = tuple[int, int]


def part(w: Weights, name: str) -> Weights:
    """The weights below a module."""
    return {key.removeprefix(name + "."): value for key, value in w.items() if key.startswith(name + ".")}


def windows(size: Position, window: Position) -> Iterator[list[Position]]:
    """The positions of each window, row by row."""
    for top in range(0, size[0], window[0]):
        for left in range(0, size[1], window[1]):
            yield [(top + i, left + j) for i in range(window[0]) for j in range(window[1])]


def region(position: Position, size: Position, window: Position, shift: Position) -> tuple[int, ...]:
    """Which piece of the original image a position of the rolled map belongs to, within the last windows."""
    return tuple((p >= n - w) + (p >= n - s) for p, n, w, s in zip(position, size, window, shift, strict=True))


def apart(positions: list[Position], size: Position, window: Position, shift: Position) -> Tensor:
    """(L,L), true where two positions of a window must not see each other."""
    pieces = [region(p, size, window, shift) for p in positions]
    return torch.tensor([[query != key for key in pieces] for query in pieces])


def offset_index(query: Position, key: Position, window: int) -> int:
    """The row of a relative position table with (2 window - 1)^2 rows."""
    down, across = query[0] - key[0] + window - 1, query[1] - key[1] + window - 1
    return down * (2 * window - 1) + across


def cosine(q: Tensor, k: Tensor) -> Tensor:
    return (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).T


def continuous_table(w: Weights, window: int) -> Tensor:
    """Swin v2's bias: an MLP on logarithmic offsets, squeezed into 0..16."""
    rows = []
    for down in range(1 - window, window):
        for across in range(1 - window, window):
            scaled = [8 * d / (window - 1) for d in (down, across)]
            rows.append([math.copysign(math.log2(abs(s) + 1) / math.log2(8), s) for s in scaled])
    hidden = F.relu(linear(torch.tensor(rows, dtype=w["cpb_mlp.0.weight"].dtype), w, "cpb_mlp.0"))
    return 16 * torch.sigmoid(hidden @ w["cpb_mlp.2.weight"].T)


def window_attention(x: Tensor, w: Weights, *, window: int, shift: int, heads: int) -> Tensor:
    """Attention within windows of a map (H,W,C): Swin v2's (cosine) where its parameters are there, else Swin v1's."""
    size, channels = (x.shape[0], x.shape[1]), x.shape[2]
    second = "logit_scale" in w
    table = continuous_table(w, window) if second else w["relative_position_bias_table"]
    bias = torch.cat((w["q_bias"], torch.zeros_like(w["q_bias"]), w["v_bias"])) if second else w["qkv.bias"]
    rolled = torch.roll(x, (-shift, -shift), (0, 1))
    out = torch.zeros_like(x)
    for positions in windows(size, (window, window)):
        masked = apart(positions, size, (window, window), (shift, shift))
        tokens = torch.stack([rolled[p] for p in positions])
        qkv = tokens @ w["qkv.weight"].T + bias
        results = []
        for head in range(heads):
            width = channels // heads
            q, k, v = (qkv[:, i * channels + head * width :][:, :width] for i in range(3))
            if second:
                logits = cosine(q, k) * w["logit_scale"][head].clamp(max=math.log(100)).exp()
            else:
                logits = q @ k.T / math.sqrt(width)
            for i, query in enumerate(positions):
                for j, key in enumerate(positions):
                    logits[i, j] += table[offset_index(query, key, window), head]
            results.append(softmax(logits.masked_fill(masked, -math.inf)) @ v)
        for position, value in zip(positions, linear(torch.cat(results, -1), w, "proj"), strict=True):
            out[position] = value
    return torch.roll(out, (shift, shift), (0, 1))


def mlp(x: Tensor, w: Weights) -> Tensor:
    return linear(gelu(linear(x, w, "fc1")), w, "fc2")


def norm(x: Tensor, w: Weights, name: str, eps: float = 1e-5) -> Tensor:
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def channel_attention_block(x: Tensor, w: Weights) -> Tensor:
    """Two convolutions, and a gate per channel from the mean over the image."""
    image = x.permute(2, 0, 1).unsqueeze(0)
    image = gelu(F.conv2d(image, w["cab.0.weight"], w["cab.0.bias"], padding=1))
    image = F.conv2d(image, w["cab.2.weight"], w["cab.2.bias"], padding=1)[0]
    mean = image.flatten(1).mean(1)
    squeezed = F.relu(w["cab.3.attention.1.weight"].flatten(1) @ mean + w["cab.3.attention.1.bias"])
    gate = torch.sigmoid(w["cab.3.attention.3.weight"].flatten(1) @ squeezed + w["cab.3.attention.3.bias"])
    return (image * gate[:, None, None]).permute(1, 2, 0)


def hybrid(x: Tensor, w: Weights, a: Weights, *, window: int, shift: int, heads: int, conv_scale: float) -> Tensor:
    """HAT's block: the adapter sees window attention plus the scaled channel attention, before the residual add."""
    normed = norm(x, w, "norm1")
    both = window_attention(normed, part(w, "attn"), window=window, shift=shift, heads=heads)
    both = both + conv_scale * channel_attention_block(normed, part(w, "conv_block"))
    x = x + both + spatial_delta(both, a)
    return x + mlp(norm(x, w, "norm2"), part(w, "mlp"))


def pre_norm(x: Tensor, w: Weights, a: Weights, *, window: int, shift: int, heads: int) -> Tensor:
    """The block of Swin v1 and SwinIR: the adapter sees window attention."""
    attended = window_attention(norm(x, w, "norm1"), part(w, "attn"), window=window, shift=shift, heads=heads)
    x = x + attended + spatial_delta(attended, a)
    return x + mlp(norm(x, w, "norm2"), part(w, "mlp"))


def post_norm(x: Tensor, w: Weights, a: Weights, *, window: int, shift: int, heads: int) -> Tensor:
    """The block of Swin v2 and Swin2SR: the adapter sees the normalised attention, which is what the block adds."""
    attended = window_attention(x, part(w, "attn"), window=window, shift=shift, heads=heads)
    attended = norm(attended, w, "norm1")
    x = x + attended + spatial_delta(attended, a)
    return x + norm(mlp(x, part(w, "mlp")), w, "norm2")


def depthwise(x: Tensor, w: Weights, name: str) -> Tensor:
    """A depth-wise convolution of a map (H,W,C) that keeps its size; beyond the map there are zeros."""
    kernel = w[f"{name}.weight"]  # C,1,side,side
    (height, width, _), side = x.shape, kernel.shape[-1]
    padded = x.new_zeros(height + side - 1, width + side - 1, x.shape[2])
    padded[side // 2 :, side // 2 :][:height, :width] = x
    shifted = (padded[i:, j:][:height, :width] * kernel[:, 0, i, j] for i in range(side) for j in range(side))
    return sum(shifted) + w[f"{name}.bias"]


def enhanced_attention(
    q: Tensor, k: Tensor, v: Tensor, w: Weights, *, window: Position, shift: Position, heads: int
) -> Tensor:
    """EDT's attention in windows of (H,W,C), without position bias; a convolution of each window's values is added."""
    size, width = (q.shape[0], q.shape[1]), q.shape[2] // heads
    q, k, v = (torch.roll(t, (-shift[0], -shift[1]), (0, 1)) for t in (q, k, v))
    out = torch.zeros_like(v)
    for positions in windows(size, window):
        masked = apart(positions, size, window, shift)
        tokens = [torch.stack([t[p] for p in positions]) for t in (q, k, v)]
        results = []
        for head in range(heads):
            q_head, k_head, v_head = (t[:, head * width :][:, :width] for t in tokens)
            logits = q_head @ k_head.T / math.sqrt(width)
            results.append(softmax(logits.masked_fill(masked, -math.inf)) @ v_head)
        local = depthwise(tokens[2].view(*window, -1), w, "lepe").flatten(0, 1)
        for position, value in zip(positions, torch.cat(results, -1) + local, strict=True):
            out[position] = value
    return torch.roll(out, shift, (0, 1))


def enhanced(x: Tensor, w: Weights, a: Weights, *, window: Position, shifted: bool, heads: int) -> Tensor:
    """EDT's block: lying windows for the first half of the channels, standing ones for the second; `proj` joins them.

    The adapter sees what `proj` gives. The MLP has a convolution and a second GELU between its two layers.
    """
    half, parts = x.shape[2] // 2, []
    q, k, v = linear(norm(x, w, "norm1"), w, "qkv").chunk(3, -1)
    for i, shape in enumerate((window, window[::-1])):
        shift = (shape[0] // 2, shape[1] // 2) if shifted else (0, 0)
        mine = (t[..., i * half :][..., :half] for t in (q, k, v))
        parts.append(enhanced_attention(*mine, part(w, f"attns.{i}"), window=shape, shift=shift, heads=heads))
    attended = linear(torch.cat(parts, -1), w, "proj")
    x = x + attended + spatial_delta(attended, a)
    hidden = depthwise(gelu(linear(norm(x, w, "norm2"), w, "mlp.fc1")), w, "mlp.dwconv")
    return x + linear(gelu(hidden), w, "mlp.fc2")
