"""Starts of LoRA that are not random: from the singular vectors of a weight, and from the inputs of its layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PlanError
from .learning import Calibrator

if TYPE_CHECKING:
    from ..ports.attachment import Layer

STARTS_FROM_DATA = ("corda", "eva")
POSITIONS = 512
"""Most positions of one call of a layer that count; taken at equal steps."""
MOST_RANK = 2
"""EVA gives a layer at most this many times the rank of the config (the paper's ρ)."""


def from_weight(start: str, weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A0 (rank, columns) and B0 (rows, rank) so that scale · B0 A0 is a part of a weight (rows, columns).

    Sources: `pissa`, the largest singular vectors (arXiv 2404.02948); `olora`, the first rows and columns of the QR
    decomposition (2406.01775). Computed in float64.
    """
    w = weight.double()
    if start == "pissa":
        return _split(w, rank, scale)
    q, r = torch.linalg.qr(w)
    return r[:rank] / scale, q[:, :rank]


def _split(matrix: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the largest singular directions as A and B, each with the root of the singular values over the scale."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


class InputStart(Calibrator):
    """Starts from second moments of the inputs of each layer; convolutions see patches, without padding or dilation.

    `eva` (arXiv 2410.07170): A has the principal directions of the centred inputs; the ranks of all layers together
    stay the same and go to the directions that explain most of their layer's variance. `corda` (2406.05223, its mode
    for instruction previews): from the singular vectors of W C, with C the mean of x xᵀ. Layers that the network does
    not call (it reads their weight), transposed convolutions and tables keep a random start.
    """

    adapters: Mapping[str, Any]

    def __init__(self, adapters: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        self.weights: dict[str, Tensor] = {}
        self.moments: dict[str, tuple[int, Tensor, Tensor]] = {}
        self.spectra: dict[str, tuple[Tensor, Tensor]] = {}

    def see_parameters(self, site: str, parameters: Mapping[str, Tensor]) -> None:
        """Take the frozen weight of a site."""
        self.weights[site] = next(iter(parameters.values()))

    def see(self, site: str, inputs: Tensor, outputs: Tensor) -> None:
        """Add up the inputs of one call, and their products."""
        adapter = self.adapters[site]
        rows = input_rows(inputs, adapter.layer, self.weights[site]) if adapter.columns_are_inputs else None
        if rows is None or not len(rows):
            return
        x = rows[:: max(1, -(-len(rows) // POSITIONS))].to(adapter.b.dtype)
        count, total, products = self.moments.get(site, (0, torch.zeros(()).to(x), torch.zeros(()).to(x)))
        self.moments[site] = (count + len(x), total + x.sum(0), products + x.T @ x)

    def settle(self) -> Mapping[str, Any]:
        """Return the configs: for `eva`, with the ranks that the explained variances give."""
        missing = [site for site in self.configs if site not in self.moments]
        if len(missing) == len(self.configs):
            raise PlanError("none of the layers was called with inputs, so a start from data cannot be learned")
        if missing:
            self.notes.append(f"{len(missing)} layers got no inputs and keep a random start, e.g. {missing[0]}")
        eva = [site for site in self.moments if self.configs[site].start == "eva"]
        for site in eva:
            self.spectra[site] = self._spectrum(site)
        ranks = self._ranks(eva)
        return {site: _with_rank(config, ranks.get(site, config.rank)) for site, config in self.configs.items()}

    def _spectrum(self, site: str) -> tuple[Tensor, Tensor]:
        """Return the shares of variance, largest first, and their directions as rows."""
        count, total, products = self.moments[site]
        mean = total.double() / count
        values, vectors = torch.linalg.eigh(products.double() / count - mean[:, None] * mean)
        values = values.flip(0).clamp(min=0)
        return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny), vectors.flip(1).T

    def _ranks(self, sites: list[str]) -> dict[str, int]:
        """Share the sum of the ranks among the layers, by explained variance; every layer keeps rank 1 at least."""
        most = {s: min(MOST_RANK * self.configs[s].rank, *self.adapters[s].layer.matrix_shape) for s in sites}
        ranks = dict.fromkeys(sites, 1)
        shares = [(-float(v), s) for s in sites for v in self.spectra[s][0][1 : most[s]]]
        left = sum(self.configs[s].rank for s in sites) - len(sites)
        for _, site in sorted(shares)[:left]:
            ranks[site] += 1
        return ranks

    def fill(self, site: str, adapter: Any) -> None:
        """Write the start of a site."""
        if site in self.spectra:
            adapter.set_start(self.spectra[site][1][: adapter.rank], None)
        elif site in self.moments:
            weight = adapter.layer.rows(self.weights[site]).double()
            count, _, products = self.moments[site]
            adapter.set_start(*_corda(weight, products.double() / count, adapter.rank, adapter.scale))


def _corda(weight: Tensor, moment: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A0 and B0 of CorDA; the moment gets the smallest damping, doubled from 1 %, with which it inverts."""
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    damping = 0.01 * moment.diagonal().mean().clamp(min=torch.finfo(moment.dtype).tiny)
    for _ in range(64):
        damped = moment + damping * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < 0.05:
            break
        damping = damping * 2
    a, b = _split(weight @ damped, rank, scale)
    return a @ inverse, b


def _with_rank(config: Any, rank: int) -> Any:
    """Return a config with another rank and the same scale."""
    if rank == config.rank or config.alpha is None:
        return dataclasses.replace(config, rank=rank)
    ratio = rank / config.rank
    return dataclasses.replace(
        config, rank=rank, alpha=config.alpha * (math.sqrt(ratio) if config.rank_stabilised else ratio)
    )


def input_rows(inputs: Tensor, layer: Layer, weight: Tensor) -> Tensor | None:
    """Return what a layer's matrix is multiplied with, one row per position (and group), or None if that is not known.

    Inputs of linear layers are (…, in), of convolutions (N, in, …).
    """
    columns = layer.matrix_shape[1]
    if weight.dim() == 2:
        return inputs.reshape(-1, columns) if inputs.shape[-1] == columns else None
    kernel = weight.shape[2:]
    channels = weight.shape[1]
    if inputs.dim() != weight.dim() or inputs.shape[1] % channels or columns != channels * kernel.numel():
        return None
    if any(side < size for side, size in zip(inputs.shape[2:], kernel, strict=True)):
        return None
    patches = inputs.reshape(-1, channels, *inputs.shape[2:])
    for dim, size in enumerate(kernel, start=2):
        patches = patches.unfold(dim, size, 1)
    spatial = len(kernel)
    order = (0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial))
    rows: Tensor = patches.permute(order).reshape(-1, columns)
    return rows
