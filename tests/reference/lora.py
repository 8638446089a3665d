"""LoRA's change of a flattened weight, entry by entry, with and without an offset from a start."""

from collections.abc import Mapping

import torch
from torch import Tensor


def lora(weight: Tensor, w: Mapping[str, Tensor], scale: float) -> Tensor:
    """W + s (B A − B0 A0), with A = A0 + a and B = B0 + b where there is a start."""
    a, b = w["a"], w["b"]
    a0, b0 = (w["a0"], w["b0"]) if "a0" in w else (torch.zeros_like(a), torch.zeros_like(b))
    flat = weight.reshape(len(b), -1).clone()
    for row in range(flat.shape[0]):
        for column in range(flat.shape[1]):
            new = sum((b0[row, k] + b[row, k]) * (a0[k, column] + a[k, column]) for k in range(len(a)))
            old = sum(b0[row, k] * a0[k, column] for k in range(len(a)))
            flat[row, column] += scale * (new - old)
    return flat.view(weight.shape)
