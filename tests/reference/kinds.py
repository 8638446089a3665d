"""Kinds of adapters on one layer, written from their formulas alone: one output channel after the other.

`w` maps a parameter's name to its value. A weight (out, in, …) is taken row by row; a transposed one
(in, out/groups, …) is turned first, group by group.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def rows(weight: Tensor, *, transposed: bool = False, groups: int = 1) -> list[Tensor]:
    """The weights that make each output channel, each as a vector."""
    if not transposed:
        return [row.flatten() for row in weight]
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    found = []
    for group in range(groups):
        part = weight[group * inputs : (group + 1) * inputs]
        found += [part[:, output].flatten() for output in range(outputs)]
    return found


def back(vectors: list[Tensor], weight: Tensor, *, transposed: bool = False, groups: int = 1) -> Tensor:
    """The inverse of `rows`."""
    new = torch.empty_like(weight)
    if not transposed:
        for output, vector in enumerate(vectors):
            new[output] = vector.view(weight[output].shape)
        return new
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    for number, vector in enumerate(vectors):
        group, output = divmod(number, outputs)
        place = new[group * inputs : (group + 1) * inputs, output]
        place.copy_(vector.view(place.shape))
    return new


def dora(weight: Tensor, w: Weights, scale: float, **layer: int) -> Tensor:
    """m · V / ‖V‖ for each output, V = W + scale · BA, m = (1 + δ) ‖W‖; V itself where W is zero."""
    new = []
    for number, row in enumerate(rows(weight, **layer)):
        direction = row + scale * (w["b"][number] @ w["a"])
        length = (1 + w["magnitude"][number]) * row.square().sum().sqrt()
        new.append(length * direction / direction.square().sum().sqrt() if row.any() else direction)
    return back(new, weight, **layer)


def vera(weight: Tensor, w: Weights, a: Tensor, b: Tensor, **layer: int) -> Tensor:
    """W + diag(b) B diag(d) A with the slices of the shared matrices."""
    new = []
    for number, row in enumerate(rows(weight, **layer)):
        new.append(row + sum(w["b"][number] * b[number, k] * w["d"][k] * a[k, : len(row)] for k in range(len(w["d"]))))
    return back(new, weight, **layer)


def ssf(output: Tensor, w: Weights) -> Tensor:
    """γ ⊙ y + β on the channels of (N,C,…), with γ = 1 + scale."""
    new = torch.empty_like(output)
    for channel in range(output.shape[1]):
        new[:, channel] = (1 + w["scale"][channel]) * output[:, channel]
        if "shift" in w:
            new[:, channel] += w["shift"][channel]
    return new


def convpass(x: Tensor, w: Weights, scale: float) -> Tensor:
    """The bypass on (N,H,W,C): down, 3x3 convolution, up, with φ(t) = t σ(1.702 t) after the first two."""

    def phi(t: Tensor) -> Tensor:
        return t / (1 + (-1.702 * t).exp())

    hidden = phi(x @ w["down.weight"].T + w["down.bias"])
    padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
    height, width = x.shape[1:3]
    mixed = w["conv.bias"].expand(hidden.shape).clone()
    for dy in range(3):
        for dx in range(3):
            mixed += padded[:, dy : dy + height, dx : dx + width] @ w["conv.weight"][:, :, dy, dx].T
    return scale * (phi(mixed) @ w["up.weight"].T + w["up.bias"])
