"""FacT on one layer, written from its formula alone: one entry of the change after the other."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reference.kinds import back, rows

Weights = Mapping[str, Tensor]


def core(w: Weights, number: int, g: Tensor | None) -> Tensor:
    """Σ of one slice: its own matrix, or the transpose of Σₜ p[i, t] · G[:, :, t]."""
    if g is None:
        return w["sigma"][number]
    total = torch.zeros_like(g[:, :, 0])
    for t in range(g.shape[2]):
        total += w["p"][number, t] * g[:, :, t]
    return total.T


def fact(weight: Tensor, w: Weights, scale: float, u: Tensor, v: Tensor, g: Tensor | None, **layer: int) -> Tensor:
    """W + scale · V Σᵢ U in each square slice of each position of the kernel."""
    vectors, width = rows(weight, **layer), len(v)
    kernel = weight[0, 0].numel()
    beside = len(vectors[0]) // kernel // width
    squares = [v @ core(w, i, g) @ u for i in range(len(vectors) // width * beside * kernel)]
    new = []
    for output, row in enumerate(vectors):
        change = torch.empty_like(row)
        for place in range(len(row)):
            channel, position = divmod(place, kernel)
            (m, i), (n, j) = divmod(output, width), divmod(channel, width)
            change[place] = scale * squares[(m * beside + n) * kernel + position][i, j]
        new.append(row + change)
    return back(new, weight, **layer)
