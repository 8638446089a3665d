"""AdaptIR and spectral adapters, from their formulas alone: Fourier transforms as products, convolutions as sums.

`w` maps a parameter's name to its value, `x` is (N,H,W,C), all in float64.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .adapters import gelu, linear, softmax

Weights = Mapping[str, Tensor]


def waves(length: int, sign: int) -> Tensor:
    """exp(sign · 2πi · k · n / length) / √length for k, n = 0 … length - 1."""
    index = torch.arange(length, dtype=torch.float64)
    return torch.exp(sign * 2j * math.pi * index[:, None] * index / length) / math.sqrt(length)


def spectrum_of(z: Tensor) -> Tensor:
    """Of (N,H,W,h), with frequencies in the places of rows and columns."""
    return torch.einsum("uy,vx,nyxc->nuvc", waves(z.shape[1], -1), waves(z.shape[2], -1), z.to(torch.complex128))


def from_half(half: Tensor, width: int) -> Tensor:
    """The real maps with the left half of a spectrum (N,H,W//2+1,h), whose first and middle columns are real there."""
    rows = torch.einsum("yu,nuvc->nyvc", waves(half.shape[1], 1), half)
    parts = torch.einsum("xv,nyvc->nyxvc", waves(width, 1)[:, : half.shape[2]], rows).real
    twice = torch.tensor([1.0 if v in (0, width / 2) else 2.0 for v in range(half.shape[2])], dtype=torch.float64)
    return (parts * twice[:, None]).sum(3)


def amplitude_phase(z: Tensor, w: Weights, name: str, smooth: float | None) -> Tensor:
    """|F⁻¹(M exp(iΦ))| with M = w_a |F z| + b_a and Φ = w_p ∠(F z) + b_p; b_a fades below `smooth`, if given."""
    height, width = z.shape[1:3]
    half = spectrum_of(z)[:, :, : width // 2 + 1]
    for u in {0, height // 2 if height % 2 == 0 else 0}:
        for v in {0, width // 2 if width % 2 == 0 else 0}:
            half[:, u, v] = half[:, u, v].real.to(half.dtype)  # their own mirror images
    size, angle = half.abs(), half.angle()
    fading = 1.0 if smooth is None else size / (size.square() + smooth**2).sqrt()
    amplitude = w[f"{name}.amplitude"] * size + w[f"{name}.amplitude_bias"] * fading
    phase = w.get(f"{name}.phase", torch.tensor(1.0)) * angle + w[f"{name}.phase_bias"]
    return from_half(amplitude * torch.exp(1j * phase), width).abs()


def depthwise(z: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Kernels (h,9), zeros around the map."""
    height, width = z.shape[1:3]
    out = bias.expand(z.shape).clone()
    for y in range(height):
        for x in range(width):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        out[:, y, x] += kernel[:, 3 * (dy + 1) + dx + 1] * z[:, y + dy, x + dx]
    return out


def two_layers(x: Tensor, w: Weights, name: str) -> Tensor:
    return linear(gelu(linear(x, w, f"{name}.0")), w, f"{name}.2")


def adaptir(x: Tensor, w: Weights, *, training: bool, smooth: float | None) -> Tensor:
    """W_u (c ⊙ (α ⊙ l + β ⊙ g))."""
    down = linear(x, w, "down")
    mean, variance = w["norm.running_mean"], w["norm.running_var"]
    if training:
        mean = down.mean((0, 1, 2))
        variance = (down - mean).square().mean((0, 1, 2))
    z = (down - mean) / (variance + 1e-5).sqrt() * w["norm.weight"] + w["norm.bias"]
    local = depthwise(z, w["kernel_a"] @ w["kernel_b"], w["kernel_bias"])
    far = amplitude_phase(z, w, "frequencies", smooth)
    y = torch.empty_like(z)
    for n in range(len(z)):
        positions = z[n].flatten(0, 1)
        average = softmax(linear(positions, w, "attend")[:, 0]) @ positions
        c = two_layers(average, w, "channel")
        alpha = 1 / (1 + (-two_layers(far[n].mean((0, 1)), w, "local_gate")).exp())
        beta = 1 / (1 + (-linear(local[n], w, "global_gate")).exp())
        y[n] = c * (alpha * local[n] + beta * far[n])
    return y @ w["up.weight"].T


def spectral(x: Tensor, w: Weights) -> Tensor:
    """gate ⊙ up F⁻¹(f ⊙ F(down x)), with the whole spectrum, one frequency after the other."""
    height, width = x.shape[1:3]
    table = w["filter"]
    changed = spectrum_of(x @ w["down.weight"].T)
    for u in range(height):
        for v in range(width):
            cycles = ((u if 2 * u <= height else u - height) / height, (v if 2 * v <= width else v - width) / width)
            place = math.hypot(*cycles) / math.hypot(0.5, 0.5) * (table.shape[1] - 1)
            low = min(int(place), table.shape[1] - 2)
            factor = (low + 1 - place) * table[:, low] + (place - low) * table[:, low + 1]
            changed[:, u, v] = changed[:, u, v] * factor
    maps = torch.einsum("yu,xv,nuvc->nyxc", waves(height, 1), waves(width, 1), changed)
    torch.testing.assert_close(maps.imag, torch.zeros_like(maps.imag), rtol=0, atol=1e-9)
    return w["gate"] * (maps.real @ w["up.weight"].T)
