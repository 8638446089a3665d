"""A ladder side network, position by position, from its formula alone; `w` maps a parameter's name to its value.

s_i = f_i(m s_(i-1) + (1 - m) down_i h_i) with m = 1 / (1 + exp(-10 gate_i)), f(t) = t + fc2 gelu(fc1(conv t)), and the
image shuffle(out(norm s_L)).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .adapters import gelu, layer_norm


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 with zeros around (H,W,C) features; a weight (C,1,3,3) is applied to each channel on its own."""
    height, width, _ = x.shape
    padded = torch.zeros(height + 2, width + 2, x.shape[2], dtype=x.dtype)
    padded[1:-1, 1:-1] = x
    result = bias.expand(height, width, -1).clone()
    for row in range(3):
        for column in range(3):
            part, kernel = padded[row : row + height, column : column + width], weight[:, :, row, column]
            result += part * kernel[:, 0] if weight.shape[1] == 1 else part @ kernel.T
    return result


def pointwise(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]


def ladder_image(stages: Sequence[Tensor], rungs: Sequence[Mapping[str, Tensor]], w: Mapping[str, Tensor]) -> Tensor:
    """The image (H·s, W·s, C) that a ladder adds, from the stages' features (H,W,C), all of one size."""
    state = w["start"].expand(*stages[0].shape[:2], -1)
    for h, rung in zip(stages, rungs, strict=True):
        share = 1 / (1 + torch.exp(-10 * rung["gate"]))
        mixed = share * state + (1 - share) * pointwise(h, rung, "down")
        inner = gelu(pointwise(convolution(mixed, rung["conv.weight"], rung["conv.bias"]), rung, "fc1"))
        state = mixed + pointwise(inner, rung, "fc2")
    wide = convolution(layer_norm(state, w["norm.weight"], w["norm.bias"], 1e-5), w["out.weight"], w["out.bias"])
    height, width, channels = wide.shape
    scale = next(s for s in range(1, 9) if channels == 3 * s * s)
    image = torch.empty(height * scale, width * scale, 3, dtype=wide.dtype)
    for channel in range(3):
        for row in range(scale):
            for column in range(scale):
                image[row::scale, column::scale, channel] = wide[..., channel * scale**2 + row * scale + column]
    return image
