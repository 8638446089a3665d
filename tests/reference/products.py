"""LoHa, LoKr and OFT on one layer, written from their formulas alone: one output channel after the other."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reference.kinds import back, rows

Weights = Mapping[str, Tensor]


def loha(weight: Tensor, w: Weights, scale: float, **layer: int) -> Tensor:
    """W + scale · (A1 B1) ∘ (A2 B2)."""
    new = []
    for number, row in enumerate(rows(weight, **layer)):
        first, second = (
            sum(w[f"a{which}"][number, k] * w[f"b{which}"][k] for k in range(len(w["b1"]))) for which in "12"
        )
        new.append(row + scale * first * second)
    return back(new, weight, **layer)


def lokr(weight: Tensor, w: Weights, scale: float, **layer: int) -> Tensor:
    """W + scale · w1[i, j] · w2[a, b, y] at output i·p + a, input j·q + b and kernel entry y."""
    kernel = weight[0, 0].numel()
    second = w["w2"] if "w2" in w else torch.einsum("ar,rb->ab", w["w2_a"], w["w2_b"])
    p, q = len(second), second.shape[1] // kernel
    new = []
    for number, row in enumerate(rows(weight, **layer)):
        i, a = divmod(number, p)
        change = torch.empty_like(row)
        for place in range(len(row)):
            channel, y = divmod(place, kernel)
            j, b = divmod(channel, q)
            change[place] = scale * w["w1"][i, j] * second[a, b * kernel + y]
        new.append(row + change)
    return back(new, weight, **layer)


def skew(entries: Tensor, block: int) -> Tensor:
    """The skew matrix with these entries above its diagonal, row by row."""
    q, given = torch.zeros(block, block, dtype=entries.dtype), iter(entries)
    for i in range(block):
        for j in range(i + 1, block):
            q[i, j] = next(given)
            q[j, i] = -q[i, j]
    return q


def rotation(entries: Tensor, block: int) -> Tensor:
    """(I − Q)(I + Q)⁻¹."""
    q, identity = skew(entries, block), torch.eye(block, dtype=entries.dtype)
    return (identity - q) @ torch.linalg.inv(identity + q)


def oft(weight: Tensor, w: Weights, block: int, **layer: int) -> Tensor:
    """R m for each block m of a row of W."""
    new = []
    for row in rows(weight, **layer):
        turned = row.clone()
        for number in range(len(row) // block):
            here = slice(number * block, (number + 1) * block)
            turned[here] = rotation(w["q"][number % len(w["q"])], block) @ row[here]
        new.append(turned)
    return back(new, weight, **layer)
