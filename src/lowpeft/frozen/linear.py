"""Linear layers whose weight is padded with zeros, or whole, and is not kept for backward in that form.

A padded weight is a copy, made anew in backward, so that between the passes the parameter alone is alive. The layer
runs on a copy of an unpadded weight too (0.3 MB): the forward then makes no view of a parameter, which counts of the
storages that a forward made would take for one of them.
"""

from __future__ import annotations

from itertools import chain
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
    """Weight and bias of a linear layer, with the zeros that pad them, and low-rank changes of the weight.

    Attributes:
        weight: Weight (outputs, inputs).
        bias: Bias (outputs,), or None.
        factors: Pairs (a, b) of shapes (rank, inputs) and (outputs, rank); b·a is added to the weight.
        padding: Zeros; None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    factors: tuple[tuple[Tensor, Tensor], ...] = ()
    padding: Padding | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors: weight, bias if there is one, factors."""
        return tuple(t for t in (self.weight, self.bias, *chain(*self.factors)) if t is not None)

    def run(self, x: Tensor) -> Tensor:
        """Return x·Wᵀ + b for rows x (…, inputs); padded outputs are zero, and padded inputs do not count."""
        trained = any(t.requires_grad for t in (self.weight, self.bias) if t is not None)
        if torch.is_grad_enabled() and not trained:
            return self._changed(x, _Frozen.apply(x, self.weight, self.bias, self.padding))
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """Return the same as `run` by torch's own operations, which keep more for backward."""
        return self._changed(x, _run(x, self.weight, self.bias, self.padding))

    def again(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """Return the same as `plain`, with other tensors in place of `tensors`."""
        weight, *others = tensors
        bias = None if self.bias is None else others.pop(0)
        return Affine(weight, bias, tuple(zip(others[::2], others[1::2], strict=True)), self.padding).plain(x)

    def _changed(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the output plus what the factors add to it."""
        for a, b in self.factors:
            if self.padding is not None:
                a, b = (a, self.padding.of(b)) if self.padding.dim == 0 else (self.padding.of(a), b)
            out = out + F.linear(F.linear(x, a), b)
        return out


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding | None) -> Tensor:
    if padding is not None:
        weight, bias = padding.of(weight), padding.of(bias) if padding.dim == 0 and bias is not None else bias
    return F.linear(x, weight, bias)


class _Frozen(torch.autograd.Function):
    """A linear layer with a frozen weight and bias, which keeps the weight as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dtype = padding, x.dtype
        return _run(x, weight.clone() if padding is None else weight, bias, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_order()
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        whole = weight if ctx.padding is None else ctx.padding.of(weight)
        passed = gradient @ whole.to(gradient.dtype)
        return passed.to(ctx.dtype), None, None, None
