"""Frozen convolutions and batch norms that keep no input for backward.

The input of a convolution is needed for the gradient of its weight only, and PyTorch (2.14) keeps it for frozen weights
too. A batch norm in eval mode is the affine map x·s + t of each channel, which needs s alone.

Noticed also in memsave_torch (arXiv 2404.12406).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .first_order import refuse_second_order

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Forward = Callable[..., Tensor]


class _FrozenConv(torch.autograd.Function):
    """A convolution whose weight and bias are frozen; it keeps the weight and the shape of the input.

    The geometry (stride, padding, …) is that of `layer`, the weight may be another.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _ConvNd, weight: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        out = run(x)
        ctx.save_for_backward(weight)
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        ctx.format = torch.channels_last if x.dim() == 4 and _is_channels_last(x) else torch.contiguous_format
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_order()
        (gradient,), (weight,), layer = gradients, ctx.saved_tensors, ctx.layer
        # The values of the input do not matter. Its memory is never read, and its layout chooses the kernel.
        x = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.format)
        passed = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight.to(gradient.dtype),  # under autocast the layer ran in another dtype than its weight's
            None,
            layer.stride,
            _padding(layer),
            layer.dilation,
            layer.transposed,
            layer.output_padding,
            layer.groups,
            (True, False, False),
        )[0]
        return passed.to(ctx.dtype), None, None, None


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _padding(layer: _ConvNd) -> tuple[int, ...]:
    """Return the padding of each side as numbers, also for padding="same" and "valid"."""
    return tuple(layer._reversed_padding_repeated_twice[::-2]) if isinstance(layer.padding, str) else layer.padding


def is_convolution(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Return whether a module of a class is one of PyTorch's convolutions, padded alike on each side."""
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) or module.padding_mode != "zeros":
        return False
    if "parametrizations" in module._modules:  # its weight may differ in each reading
        return False
    own = next(c for c in (*CONVOLUTIONS, *TRANSPOSED) if isinstance(module, c))
    same_code = all(getattr(cls, name, None) is getattr(own, name, None) for name in ("forward", "_conv_forward"))
    sides = module._reversed_padding_repeated_twice
    return same_code and (isinstance(module, _ConvTransposeNd) or sides[::2] == sides[1::2])


def is_batch_norm(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Return whether a module of a class is one of PyTorch's batch norms, with statistics for eval mode."""
    same_code = getattr(cls, "forward", None) in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return same_code and isinstance(module, _BatchNorm) and module.running_mean is not None


def can_run(module: nn.Module, x: object) -> bool:
    """Return whether `run` may take the place of a layer's forward in this call: its parameters need no gradient."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    trained = any(isinstance(t, Tensor) and t.requires_grad for t in (module.weight, module.bias))
    if isinstance(module, _BatchNorm):  # without gradients too: else a network would round differently with and without
        return not (trained and torch.is_grad_enabled())
    return torch.is_grad_enabled() and x.requires_grad and not trained


def run(module: nn.Module, own: Forward, x: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Run a frozen convolution or batch norm without keeping its input; arguments as for `run_convolution`."""
    chosen = run_batch_norm if isinstance(module, _BatchNorm) else run_convolution
    return chosen(module, own, x, *rest, **named)


def run_convolution(module: nn.Module, own: Forward, x: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Run a convolution's own forward; it keeps no input for backward.

    Args:
        module: The layer, with frozen parameters.
        own: Forward of its class.
        x: Input, (N, C, …) or (C, …), which requires a gradient.
        rest: Further arguments of the forward (`output_size` of transposed convolutions).
        named: Further keyword arguments.
    """
    layer = cast(_ConvNd, module)
    changed = layer.padding_mode != "zeros" or "_conv_forward" in layer.__dict__
    if rest or named or changed or x.dim() != 2 + len(layer.kernel_size):  # an output size, or no batch
        return own(module, x, *rest, **named)
    out: Tensor = _FrozenConv.apply(x, module, layer.weight, lambda given: own(module, given))
    return out


def run_low_rank(layer: _ConvNd, x: Tensor, bias: Tensor | None, factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Run a frozen convolution and low-rank changes of its weight, each as two convolutions of few channels.

    Each group of a grouped convolution has the same a. If every a is frozen, the input is not kept for backward.

    Args:
        layer: One of PyTorch's convolutions, not transposed, padded with zeros; its weight is frozen.
        x: Input (N, C, …) or (C, …).
        bias: Bias, frozen, or None.
        factors: Pairs (a, b) of shapes (rank, columns) and (outputs, rank); b·a is the change of the flattened weight.
    """
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(layer.kernel_size) - 1]
    lean = x.dim() == 2 + len(layer.kernel_size) and not any(a.requires_grad for a, _ in factors)
    lean = lean and not layer._parameters["weight"].requires_grad  # type: ignore[union-attr]

    def product(weight: Tensor, bias: Tensor | None) -> Tensor:
        def own(given: Tensor) -> Tensor:
            out: Tensor = convolve(given, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            return out

        return _FrozenConv.apply(x, layer, weight, own) if lean else own(x)

    weight = cast(Tensor, layer._parameters["weight"])
    out = product(weight, bias)
    for a, b in factors:
        few = product(a.view(-1, *weight.shape[1:]).repeat(layer.groups, *(1,) * (weight.dim() - 1)), None)
        out = out + convolve(few, b.view(*b.shape, *(1,) * len(layer.kernel_size)), groups=layer.groups)
    return out


def run_batch_norm(module: nn.Module, own: Forward, x: Tensor) -> Tensor:
    """Run a batch norm as x·s + t in eval mode with stored statistics; else its own forward.

    Args:
        module: The layer, with frozen parameters.
        own: Forward of its class.
        x: Input (N, C, …).
    """
    norm = cast(_BatchNorm, module)
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        return own(module, x)
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -mean * factor if norm.bias is None else norm.bias - mean * factor
    shape = (1, -1, *(1,) * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, factor.view(shape)).to(x.dtype)
