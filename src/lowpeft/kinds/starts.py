"""Starts of LoRA that are not random: from the singular vectors of a weight, and from the inputs of its layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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

    Raises:
        PlanError: The weight has NaN or infinity.
    """
    w = weight.double()
    if not torch.isfinite(w).all():
        raise PlanError(f"a weight is not finite, so start={start!r} cannot be computed from it")
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
    not call (it reads their weight), those that get only zeros, transposed convolutions and tables keep a random start.
    """

    adapters: Mapping[str, Any]

    def __init__(self, adapters: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        self.weights: dict[str, Tensor] = {}
        self.moments: dict[str, _Moments] = {}
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
        if site not in self.moments:
            self.moments[site] = _Moments(x)
        self.moments[site].add(x)

    def settle(self) -> Mapping[str, Any]:
        """Return the configs: for `eva`, with the ranks that the explained variances give."""
        if unusable := [site for site, moments in self.moments.items() if not moments.finite]:
            raise PlanError(f"the inputs of {unusable[0]} are not finite, or too large, so no start can be learned")
        self.moments = {site: moments for site, moments in self.moments.items() if moments.second().any()}
        missing = [site for site in self.configs if site not in self.moments]
        others = [site for site in missing if not self.adapters[site].columns_are_inputs]
        uncalled = [site for site in missing if site not in others]
        if others:
            self.notes.append(f"{len(others)} transposed convolutions or tables keep a random start, e.g. {others[0]}")
        if uncalled:
            self.notes.append(f"{len(uncalled)} layers got no inputs and keep a random start, e.g. {uncalled[0]}")
        if not self.moments:
            raise PlanError("no start can be learned from these data:", problems=self.notes)
        eva = [site for site in self.moments if self.configs[site].start == "eva"]
        for site in eva:
            self.spectra[site] = self._spectrum(site)
        ranks = self._ranks(eva)
        return {s: c.at_scale_of(replace(c, rank=ranks.get(s, c.rank))) for s, c in self.configs.items()}

    def _spectrum(self, site: str) -> tuple[Tensor, Tensor]:
        """Return the shares of variance, largest first, and their directions as rows."""
        values, vectors = torch.linalg.eigh(self.moments[site].central())
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
            if not torch.isfinite(weight).all():
                raise PlanError(f"the weight at {site} is not finite, so no start can be learned")
            adapter.set_start(*_corda(weight, self.moments[site].second(), adapter.rank, adapter.scale))


class _Moments:
    """Sums of rows x (n, columns) and of their products, relative to the mean of the first ones, against cancellation.

    The sums have the dtype of the rows, the moments are float64.
    """

    def __init__(self, x: Tensor) -> None:
        self.shift = x.mean(0)
        self.count = 0
        self.total, self.products = torch.zeros_like(self.shift), x.new_zeros(x.shape[1], x.shape[1])

    def add(self, x: Tensor) -> None:
        x = x - self.shift
        self.count += len(x)
        self.total += x.sum(0)
        self.products += x.T @ x

    @property
    def finite(self) -> bool:
        return bool(self.products.isfinite().all())

    def central(self) -> Tensor:
        """Return the covariance, (columns, columns)."""
        mean = self.total.double() / self.count
        return self.products.double() / self.count - mean[:, None] * mean

    def second(self) -> Tensor:
        """Return the mean of x xᵀ, (columns, columns)."""
        mean = self.shift.double() + self.total.double() / self.count
        return self.central() + mean[:, None] * mean


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
