"""The frequency branch of AdaptIR: trained factors and offsets of amplitude and phase."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .fourier import by_frequency

SMALL = 1e-3
"""Amplitude below which a smooth amplitude bias fades out; the amplitudes of normed features are near 1."""


class AmplitudePhase(nn.Module):
    """Global branch `|F⁻¹(M · exp(iΦ))|` with `M = w_a·|F z| + b_a`, `Φ = w_p·∠F z + b_p` and the Fourier transform F.

    It has one number of each sort for each channel, the same for all frequencies: `w_a = w_p = 1`, `b_a = b_p = 0` when
    new, so that the result is |z|. It is computed as `(w_a + b_a/|F z|) · F z · exp(i((w_p - 1)·∠F z + b_p))`, in
    which the angle has no part while `w_p = 1`.

    Args:
        hidden: Number of channels.
        smooth: True for `b_a·F z / √(|F z|² + SMALL²)` in place of `b_a·F z / |F z|`.
        phase_scale: False to leave `w_p` out.
    """

    def __init__(self, hidden: int, *, smooth: bool, phase_scale: bool) -> None:
        super().__init__()
        self.smooth = smooth
        self.amplitude = nn.Parameter(torch.ones(hidden))
        self.amplitude_bias = nn.Parameter(torch.zeros(hidden))
        self.phase = nn.Parameter(torch.ones(hidden)) if phase_scale else None
        self.phase_bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, z: Tensor) -> Tensor:
        """Return the branch's result for maps (N,h,H,W)."""
        return by_frequency(z, partial(self._changed, width=z.shape[-1])).abs()

    def _changed(self, spectrum: Tensor, *, width: int) -> Tensor:
        values = (self.amplitude, self.amplitude_bias, self.phase_bias)
        scale, bias, turn = (value.to(spectrum.real.dtype)[:, None, None] for value in values)
        if self.phase is not None:
            turn = turn + (self.phase.to(turn.dtype)[:, None, None] - 1) * _angle(spectrum, width)
        if self.smooth:
            squares = spectrum.real.square() + spectrum.imag.square()
            changed = spectrum * (scale + bias / (squares + SMALL**2).sqrt())
        else:
            changed = spectrum * scale + bias * _of_length_1(_angle(spectrum, width))
        return changed * _of_length_1(turn)


def _angle(spectrum: Tensor, width: int) -> Tensor:
    """Return the angle of each frequency of maps of this width, -π to π.

    Up to four frequencies, 0 among them, are their own mirror image. They are real: rounding must not choose between
    their angles π and -π, which the factor and the offset of the phase would make different.
    """
    height, shown = spectrum.shape[-2:]
    rows, columns = (torch.arange(count, device=spectrum.device) for count in (height, shown))
    is_real = (2 * rows % height == 0)[:, None] & (2 * columns % width == 0)
    return torch.complex(spectrum.real, spectrum.imag.masked_fill(is_real, 0.0)).angle()


def _of_length_1(angle: Tensor) -> Tensor:
    return torch.complex(angle.cos(), angle.sin())
