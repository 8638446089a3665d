"""Blur kernels of the practical chains: Gaussians, generalised and plateau-shaped ones, and sinc filters.

Formulas: Real-ESRGAN (Wang et al., arXiv 2107.10833), section 3.1 and 3.3; the generalised forms are from Liu et al.
(arXiv 2005.09728), which it cites.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Form = Literal["gaussian", "generalised", "plateau"]


def bell(side: int, sigmas: tuple[float, float], angle: float, form: Form = "gaussian", beta: float = 1) -> Tensor:
    """Return a bell-shaped kernel (side, side) of sum 1.

    With q = xᵀ Σ⁻¹ x: exp(-q/2) for `gaussian`, exp(-q^beta / 2) for `generalised`, 1 / (1 + q^beta) for `plateau`.

    Args:
        side: Odd side in px.
        sigmas: Standard deviations along the two axes, in px.
        angle: Direction of the first axis, in radians.
        form: Shape.
        beta: Exponent of `generalised` and `plateau`.
    """
    x, y = _grid(side)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigmas[0]
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigmas[1]
    q = along.square() + across.square()
    if form == "plateau":
        kernel = 1 / (1 + q**beta)
    else:
        kernel = torch.exp(-0.5 * (q**beta if form == "generalised" else q))
    return kernel / kernel.sum()


def sinc(side: int, cutoff: float) -> Tensor:
    """Return the circular low-pass filter (side, side) of sum 1: cutoff · J1(cutoff · r) / (2π r).

    Args:
        side: Odd side in px.
        cutoff: Cut-off frequency in radians per px, from 0 to π.
    """
    x, y = _grid(side)
    r = (x.square() + y.square()).sqrt()
    kernel: Tensor = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * math.pi)  # the limit at r = 0
    return kernel / kernel.sum()


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """Return the columns' and the rows' distances to the centre, each (side, side), float64."""
    line = torch.arange(side, dtype=torch.float64) - side // 2
    return line.expand(side, side), line[:, None].expand(side, side)
