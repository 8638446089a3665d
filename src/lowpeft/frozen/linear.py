"""Linear layers whose weight is padded with zeros, or whole, and is not kept for backward in that form.

A padded weight is a copy, made anew in backward, so that between the passes the parameter alone is alive. The layer
runs on a copy of an unpadded weight too (0.3 MB): the forward then makes no view of a parameter, which counts of the
storages that a forward made would take for one of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .first_order import refuse_second_order


class Padding(NamedTuple):
    """Zeros between the rows or columns of a weight.

    Attributes:
        dim: 0 for rows (outputs), 1 for columns (inputs).
        places: Row or column of the padded weight for each one of the weight.
        size: Number of rows or columns of the padded weight.
    """

    dim: int
    places: Tensor
    size: int

    def of(self, weight: Tensor) -> Tensor:
        """Return a weight, or a bias, with zeros."""
        shape = [self.size if dim == self.dim else n for dim, n in enumerate(weight.shape)]
        return weight.new_zeros(shape).index_copy(self.dim, self.places, weight)


class Affine(NamedTuple):
    """Weight and bias of a linear layer, with the zeros that pad them.

    Attributes:
        weight: Weight (outputs, inputs).
        bias: Bias (outputs,), or None.
        padding: Zeros; None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    padding: Padding | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weight and, if there is one, the bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def run(self, x: Tensor) -> Tensor:
        """Return x·Wᵀ + b for rows x (…, inputs); padded outputs are zero, and padded inputs do not count."""
        if any(t.requires_grad for t in self.tensors) or torch.compiler.is_compiling():
            return _run(x, *self)
        out: Tensor = _Frozen.apply(x, *self)
        return out

    def again(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """Return the same as `run`, with other tensors in place of `tensors`; records no graph."""
        return _run(x, tensors[0], tensors[1] if len(tensors) > 1 else None, self.padding)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding | None) -> Tensor:
    if padding is not None and padding.dim == 0 and bias is not None:
        bias = padding.of(bias)
    return F.linear(x, _copied(weight, padding), bias)


def _copied(weight: Tensor, padding: Padding | None) -> Tensor:
    return weight.clone() if padding is None else padding.of(weight)


class _Frozen(torch.autograd.Function):
    """A linear layer with a frozen weight and bias, which keeps the weight as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dtype = padding, x.dtype
        return _run(x, weight, bias, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_order()
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        passed = gradient @ _copied(weight, ctx.padding).to(gradient.dtype)
        return passed.to(ctx.dtype), None, None, None
