"""AdaLoRA and CoLoRA, written from their formulas alone: number by number, without tensors of several layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reference.kinds import back, rows


def adalora(weight: Tensor, w: Mapping[str, Tensor], scale: float, **layer: int) -> Tensor:
    """W + scale · B diag(E) A without the ranks that are not kept, one output channel after the other."""
    new = []
    for number, row in enumerate(rows(weight, **layer)):
        for rank, kept in enumerate(w["kept"]):
            if kept:
                row = row + scale * w["b"][number, rank] * w["e"][rank] * w["a"][rank]
        new.append(row)
    return back(new, weight, **layer)


def budget(t: int, T: int, t_i: int, t_f: int, b_0: int, b_T: int) -> int:
    """The budget after step t of T: all ranks, then a cubic fall, then the target."""
    if t <= t_i:
        return b_0
    if t > T - t_f:
        return b_T
    return int(b_T + (b_0 - b_T) * (1 - (t - t_i) / (T - t_f - t_i)) ** 3)


def regulariser(pairs: Sequence[tuple[Tensor, Tensor]], weight: float) -> Tensor:
    """weight · mean of ‖A Aᵀ − 1‖ and ‖Bᵀ B − 1‖ over the layers, entry by entry."""
    norms = []
    for a, b in pairs:
        for vectors in (list(a), list(b.T)):
            total = torch.zeros((), dtype=a.dtype)
            for i, one in enumerate(vectors):
                for j, other in enumerate(vectors):
                    total = total + ((one * other).sum() - (1.0 if i == j else 0.0)) ** 2
            norms.append(total.sqrt())
    return weight * sum(norms) / len(norms)


class Allocation:
    """Scores and masks of layers {site: {"a", "e", "b": parameter}}; `step` is called after the optimiser's step."""

    def __init__(self, layers: Mapping[str, Any], target: int, T: int, t_i: int, t_f: int, beta: float) -> None:
        self.layers, self.target, self.T, self.t_i, self.t_f, self.beta = layers, target, T, t_i, t_f, beta
        self.mean = {(s, n): torch.zeros_like(p) for s, layer in layers.items() for n, p in layer.items()}
        self.spread = {key: torch.zeros_like(mean) for key, mean in self.mean.items()}
        self.dropped: list[tuple[str, int]] = []

    def step(self, t: int) -> None:
        b = self.beta
        if t < self.T - self.t_f:
            for (site, name), mean in self.mean.items():
                p = self.layers[site][name].detach()
                gradient = self.layers[site][name].grad
                seen = (p * (0 if gradient is None else gradient)).abs()
                self.mean[site, name] = b * mean + (1 - b) * seen
                new = self.mean[site, name]
                self.spread[site, name] = b * self.spread[site, name] + (1 - b) * (seen - new).abs()
        if self.t_i < t <= self.T - self.t_f:
            all_ranks = [(s, i) for s, layer in self.layers.items() for i in range(len(layer["e"]))]
            left = budget(t, self.T, self.t_i, self.t_f, len(all_ranks), self.target)
            self.dropped = sorted(all_ranks, key=lambda at: -self.score(*at))[left:]
        for site, rank in self.dropped:
            if t > self.t_i:
                self.layers[site]["e"].data[rank] = 0

    def score(self, site: str, i: int) -> float:
        e = {n: self.mean[site, n] * self.spread[site, n] for n in ("a", "e", "b")}
        columns, outputs = e["a"].shape[1], e["b"].shape[0]
        from_a = sum(e["a"][i, j].item() for j in range(columns)) / columns
        from_b = sum(e["b"][j, i].item() for j in range(outputs)) / outputs
        return e["e"][i].item() + from_a + from_b


def rank_of(share: float, beta: float, d_in: int, d_out: int) -> int:
    """The rank of a layer with this share of the largest contribution."""
    delta = share * beta
    delta = 1.0 if delta > 1 else delta
    return max(1, round(delta * d_in * d_out / (d_in + d_out)))


def ranks(contributions: Sequence[float], sides: Sequence[tuple[int, int]], uniform: int) -> list[int]:
    """The ranks with the total nearest to that of a uniform rank: every β at which any rank changes is tried."""
    largest = max(contributions)
    shares = [c / largest for c in contributions]
    betas = [1e-12]
    for share, (d_in, d_out) in zip(shares, sides, strict=True):
        full = d_in * d_out / (d_in + d_out)
        if share:
            betas += [(k + 0.5) / (full * share) * (1 + 1e-9) for k in range(1, round(full) + 1)]
    wanted = sum(uniform * (d_in + d_out) for d_in, d_out in sides)
    found = []
    for beta in sorted(betas):
        chosen = [rank_of(s, beta, *both) for s, both in zip(shares, sides, strict=True)]
        total = sum(r * sum(both) for r, both in zip(chosen, sides, strict=True))
        found.append((abs(total - wanted), beta, chosen))
    return min(found)[2]
