"""The two adapters of ASteISR, one image row and one position after the other: slow, plain, from their formulas alone.

`w` maps a parameter's name to its value. Spatial: x + fc2(gelu(fc1(x))) on the channels of a position. Stereo, on each
image row of a left and a right feature map: Q_v = W1_v LN_v(X_v), V_v = W2_v X_v, A = Q_l Q_r^T / sqrt(C),
X_l + beta * softmax(s A) V_r and X_r + gamma * softmax(s A^T) V_l.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the last dimension; the variance is the biased one."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def softmax(logits: Tensor) -> Tensor:
    """Over the last dimension."""
    powers = (logits - logits.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def spatial_delta(x: Tensor, w: Weights) -> Tensor:
    """What the spatial adapter adds to (..., C)."""
    return linear(gelu(linear(x, w, "fc1")), w, "fc2")


def stereo(left: Tensor, right: Tensor, w: Weights, scale: float) -> tuple[Tensor, Tensor]:
    """Both views of one pair, (C,H,W) each; `scale` multiplies the logits."""
    channels, height, _ = left.shape
    new_left, new_right = left.clone(), right.clone()
    for row in range(height):
        x_left, x_right = left[:, row].T, right[:, row].T  # one row of positions: W,C
        normed_left = layer_norm(x_left, w["norm_left.weight"], w["norm_left.bias"], 1e-6)
        normed_right = layer_norm(x_right, w["norm_right.weight"], w["norm_right.bias"], 1e-6)
        query_left = linear(normed_left, w, "query_left")
        query_right = linear(normed_right, w, "query_right")
        logits = query_left @ query_right.T / math.sqrt(channels)
        to_left = softmax(scale * logits) @ linear(x_right, w, "value_right")
        to_right = softmax(scale * logits.T) @ linear(x_left, w, "value_left")
        new_left[:, row] = (x_left + w["beta"] * to_left).T
        new_right[:, row] = (x_right + w["gamma"] * to_right).T
    return new_left, new_right
