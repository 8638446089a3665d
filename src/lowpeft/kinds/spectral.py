"""Spectral adapters: a filter of frequency bands on a few mixed channels, in parallel with the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ports.layouts import Features
from .base import FeatureAdapter, at_least
from .bottleneck import BottleneckConfig
from .fourier import by_frequency


@dataclass(frozen=True, kw_only=True)
class SpectralConfig(BottleneckConfig):
    """Settings of spectral adapters in every block.

    Attributes:
        hidden: Number of channels that are filtered.
        bands: Numbers of a channel's filter: its factors at this many frequencies, from 0 to the highest one.
    """

    kind: ClassVar[str] = "spectral"

    hidden: int = 8
    bands: int = 8

    def check(self) -> None:
        """Raise if `hidden` is below 1, or `bands` below 2."""
        super().check()
        at_least(self, bands=2)

    @property
    def places(self) -> tuple[str, ...]:
        """Place in parallel with the MLP."""
        return ("parallel",)


class Spectral(FeatureAdapter):
    """`gate · up(F⁻¹(f · F(down x)))` with the Fourier transform F of the whole map.

    `down` maps C -> hidden and `up` back, without biases. f is real and depends on the distance of a frequency from 0
    alone: each hidden channel has a factor at each of `bands` distances, equally far from one another, and between
    them f is linear. It is therefore the same for images of all sizes, moves nothing, and treats all directions alike.
    (A complex f would not be radial: a real map's spectrum at -k is the conjugate of that at k.) f starts at 1. `gate`
    has one number for each channel and starts at zero, so that a new adapter adds nothing.

    Trained parameters per site: 2·C·h + C + bands·h with h = hidden.

    Source: our own form. The idea of low-rank projections around a gated filter in the Fourier domain is that of FraIR
    (OpenReview n9m13pabbk), of which only the abstract was read; FraIR transforms tokens along one dimension.
    """

    kind = "spectral"
    needs_rows = True
    row_local = False
    whole_image = True

    def __init__(self, channels: int, config: SpectralConfig) -> None:
        super().__init__()
        self.down = nn.Linear(channels, config.hidden, bias=False)
        self.filter = nn.Parameter(torch.ones(config.hidden, config.bands))
        self.up = nn.Linear(config.hidden, channels, bias=False)
        self.gate = nn.Parameter(torch.zeros(channels))

    def delta(self, features: Features) -> Tensor:
        """Return the filtered features."""
        x = features.rows
        filtered = by_frequency(self.down(x).movedim(3, 1), partial(self._filtered, width=x.shape[2]))
        return features.from_rows(self.gate * self.up(filtered.movedim(1, -1)))

    def _filtered(self, spectrum: Tensor, *, width: int) -> Tensor:
        real = spectrum.real
        height, shown, last = real.shape[-2], real.shape[-1], self.filter.shape[1] - 1
        count = partial(torch.arange, dtype=real.dtype, device=real.device)
        rows, columns = count(height), count(shown) / width  # in cycles for each position
        rows = torch.minimum(rows, height - rows) / height
        distance = (2 * (rows[:, None].square() + columns.square())).sqrt()  # 0 to 1
        shares = (1 - (last * distance[..., None] - count(last + 1)).abs()).clamp(min=0)
        factors: Tensor = (shares @ self.filter.to(real.dtype).T).movedim(2, 0)
        return spectrum * factors
