"""Bottlenecks of transformer adapters, one position and one hidden channel after the other, from their formulas alone.

`w` maps a parameter's name to its value; x is (..., C). What a bottleneck adds is up(φ(down x)).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def gelu(t: float) -> float:
    return 0.5 * t * (1 + math.erf(t / math.sqrt(2)))


def relu(t: float) -> float:
    return max(t, 0.0)


def added(x: Tensor, w: Weights, phi: Callable[[float], float]) -> Tensor:
    """What the bottleneck adds to each position."""
    positions = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(positions)
    for n, position in enumerate(positions):
        total = w["up.bias"].clone()
        for h in range(len(w["down.bias"])):
            wide = sum(float(a) * float(b) for a, b in zip(w["down.weight"][h], position, strict=True))
            total += w["up.weight"][:, h] * phi(wide + float(w["down.bias"][h]))
        out[n] = total
    return out.reshape(x.shape)


def houlsby(x: Tensor, w: Weights) -> Tensor:
    """GELU in the middle."""
    return added(x, w, gelu)


def pfeiffer(x: Tensor, w: Weights) -> Tensor:
    """ReLU in the middle."""
    return added(x, w, relu)


def adaptformer(x: Tensor, w: Weights, scale: float) -> Tensor:
    """ReLU in the middle, and a factor at the end; no dropout, as in evaluation."""
    return scale * added(x, w, relu)
