"""Sensitivity of parameters: Fisher information from gradients of single images, and the entries that have most."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import PlanError
from .learning import Calibrator


class FisherStart(Calibrator):
    """Start of sparse adapters at the entries with the largest Fisher information, chosen over all sites together.

    Attributes:
        squares: Σ (dL/dp)² over single images, by site, in the parameter's shape.
    """

    wants = frozenset({"gradients"})
    adapters: Mapping[str, Any]

    def __init__(self, adapters: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        self.squares: dict[str, Tensor] = {}

    def see_parameters(self, site: str, parameters: Mapping[str, Tensor]) -> None:
        """Start the sum of a site at zero."""
        (parameter,) = parameters.values()
        self.squares[site] = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))

    def see_gradients(self, site: str, gradients: Mapping[str, Tensor]) -> None:
        """Add the squares of one image's gradient; a parameter without a gradient plays no part in the loss."""
        for gradient in gradients.values():
            self.squares[site] += gradient.to(self.squares[site].dtype).square()

    def settle(self) -> Mapping[str, Any]:
        """Return the configs with the number of entries of each site."""
        sizes = {site: squares.numel() for site, squares in self.squares.items()}
        wanted = {s: sizes[s] * c.share if c.entries is None else c.entries for s, c in self.configs.items()}
        most = {site: max(1, int(config.cap * sizes[site])) for site, config in self.configs.items()}
        entries = entries_of(self.squares, round(math.fsum(wanted.values())), least=1, most=most)
        ones = sum(count == 1 for count in entries.values())
        self.notes.append(f"{sum(entries.values()):,} entries at {len(entries)} sites, {ones} of which have one")
        return {site: dataclasses.replace(c, entries=entries[site]) for site, c in self.configs.items()}

    def fill(self, site: str, adapter: Any) -> None:
        """Choose the entries of a site."""
        adapter.choose(self.squares[site])


def entries_of(
    squares: Mapping[str, Tensor], total: int, *, least: int = 0, most: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return how many of the `total` entries with the largest squared gradients are in each tensor.

    Args:
        squares: Sums of squared gradients, by site.
        total: Number of entries of all tensors together; more if every tensor gets its least, fewer if all have their
            most.
        least: Number of entries that every tensor gets before the others are chosen, its own largest.
        most: Largest number of entries of each tensor; None for no limit.

    Raises:
        PlanError: All gradients are zero, or some are not finite.
    """
    if not all(bool(torch.isfinite(sums).all()) for sums in squares.values()):
        raise PlanError("the gradients of the loss are not finite, or too large to square in float32")
    if not any(bool(sums.any()) for sums in squares.values()):
        raise PlanError("all gradients of the loss are zero, so the data do not tell which parameters matter")
    left = max(0, total - least * len(squares))
    candidates, owners = [], []
    for number, (site, sums) in enumerate(squares.items()):
        limit = sums.numel() if most is None else most[site]
        best = sums.flatten().topk(min(limit, least + left)).values[least:].cpu()
        candidates.append(best)
        owners.append(torch.full((len(best),), number))
    values = torch.cat(candidates)
    chosen = torch.cat(owners)[values.topk(min(left, len(values))).indices]
    counts = torch.bincount(chosen, minlength=len(squares)).tolist()
    return {site: least + count for site, count in zip(squares, counts, strict=True)}
