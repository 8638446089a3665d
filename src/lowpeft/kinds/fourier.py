"""Fourier transforms of feature maps, for kinds that change features by frequency."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ports.autocast import without_autocast


def by_frequency(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the inverse transform of the changed spectrum of maps (N,C,H,W), in the dtype of `x`.

    All is computed in float32, or float64 for float64, without autocast: torch has no complex numbers of bfloat16, and
    no transforms of float16 on CPUs. Transforms are orthonormal, so values and spectrum have the same sum of squares.

    Args:
        x: Maps of any height and width.
        change: Function from the spectrum (N,C,H,W//2+1), which is complex, to another one. Its parameters may have
            another dtype.
    """
    if not x.numel():  # a batch without images, which not every library transforms
        return x
    with without_autocast(x.device.type):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = change(torch.fft.rfft2(wide, norm="ortho"))
        # One dimension after the other: libraries differ in what a transform of two to real values makes of a spectrum
        # without the symmetry of a real map's.
        rows = torch.fft.ifft(spectrum, dim=-2, norm="ortho")
        changed: Tensor = torch.fft.irfft(rows, n=x.shape[-1], dim=-1, norm="ortho")
        return changed.to(x.dtype)
