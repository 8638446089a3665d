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


def windows(size: Position, window: int) -> Iterator[list[Position]]:
    """The positions of each window, row by row."""
    for top in range(0, size[0], window):
        for left in range(0, size[1], window):
            yield [(top + i, left + j) for i in range(window) for j in range(window)]


def region(position: Position, size: Position, window: int, shift: int) -> tuple[int, int]:
    """Which piece of the original image a position of the rolled map belongs to, within the last windows."""
    return tuple((p >= n - window) + (p >= n - shift) for p, n in zip(position, size, strict=True))


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
    for positions in windows(size, window):
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
                    if region(query, size, window, shift) != region(key, size, window, shift):
                        logits[i, j] = -math.inf
            results.append(softmax(logits) @ v)
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
