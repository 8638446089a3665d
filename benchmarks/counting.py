"""Bytes and FLOPs of a training step or a forward, exactly: storages that operations make, and formulas of operations.

Everything here is deterministic, and works on meta tensors, which take neither memory nor time (`on_meta`). Scratch
memory inside of kernels is not seen. Meta tensors give the same figures as the CPU, but for one: where the CPU lays out
the gradient of a weight otherwise than the weight, it is copied, and the peak of full fine-tuning may be larger by it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Storages(TorchDispatchMode):
    """Dispatch mode that follows, without keeping them alive, the storages that operations make in the block.

    Attributes:
        live: Bytes that were made in the block and are alive now.
        peak: Maximum of `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._bytes: dict[int, int] = {}
        self._viewed: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, made_here=False)
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            self._note(tensor, made_here=True)
        self.peak = max(self.peak, self.live)
        return output

    @property
    def viewed(self) -> int:
        """Bytes that are alive, were there before the block, and of which an operation returned a view: weights."""
        return sum(self._viewed.values())

    def _note(self, tensor: Tensor, *, made_here: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._bytes:
            self._bytes[key] = storage.nbytes() if made_here else 0
            self.live += self._bytes[key]
            weakref.finalize(storage, self._forget, key).atexit = False
        elif made_here and not self._bytes[key]:
            self._viewed[key] = storage.nbytes()

    def _forget(self, key: int) -> None:
        self.live -= self._bytes.pop(key, 0)
        self._viewed.pop(key, None)


def kept_bytes(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Run a forward and its backward; return what the forward made and what is alive when the backward begins.

    Args:
        loss: Function that runs the forward and returns the loss; nothing else may hold on to its tensors.

    Returns:
        Bytes without tensors that were there before (weights, images); and with those of which an operation returned a
        view, e.g. a linear layer's transposed weight.
    """
    with Storages() as storages:
        value = loss()
        kept = storages.live
        found = kept, kept + storages.viewed
    value.backward()
    return found


def step_peak_bytes(loss: Callable[[], Tensor]) -> int:
    """Run a forward and its backward; return the most bytes alive at once, gradients of parameters included.

    Gradients that are there before the call are not counted, so there should be none.
    """
    with Storages() as storages:
        loss().backward()
    return storages.peak


def peak_bytes(call: Callable[[], object]) -> int:
    """Run a call without gradients; return the most bytes alive at once, its result included."""
    with torch.no_grad(), Storages() as storages:
        call()
    return storages.peak


def flops(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Run a forward and its backward; return the FLOPs of the forward, and of both.

    The counter keeps tensors alive that checkpointing would free: measure memory in another run.
    """
    with _flop_counter() as counter:
        value = loss()
        forward = counter.get_total_flops()
        value.backward()
    return forward, counter.get_total_flops()


def forward_flops(call: Callable[[], object]) -> int:
    """Run a call without gradients; return its FLOPs."""
    with torch.no_grad(), _flop_counter() as counter:
        call()
    return counter.get_total_flops()


class _NoModules:
    """In place of the counter's tracker of modules, whose global hooks would keep optimised blocks as they are."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _flop_counter() -> FlopCounterMode:
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            _FLASH: _flash_flops,
            _FLASH_BACKWARD: _flash_backward_flops,
            torch.ops.aten.convolution_backward: _convolution_backward_flops,
        },
    )
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


def _convolution_backward_flops(gradient: Any, x: Any, weight: Any, *others: Any, **named: Any) -> int:
    """FLOPs of the gradients that are wanted, each as many as the forward's; torch's own formula ignores groups."""
    transposed, wanted = others[4], others[7]
    return int(conv_flop_count(x, weight, gradient, transposed)) * (wanted[0] + wanted[1])


def _flash_flops(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    """FLOPs of the CPU's flash attention, of which torch has no formula; arguments are shapes."""
    return int(sdpa_flop_count(query, key, value))


def _flash_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def optimizer_bytes(parameters: Sequence[nn.Parameter]) -> int:
    """Take a step of AdamW with zero gradients, and return the bytes of its state; the parameters do not change."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, foreach=False)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return sum(tensor.nbytes for tensor in _tensors(list(optimizer.state.values())))


# --- Attention
class AttentionKernels(TorchDispatchMode):
    """Dispatch mode that counts the kernels of `scaled_dot_product_attention` in forwards.

    Attributes:
        counts: Number of calls by kernel, e.g. `_scaled_dot_product_efficient_attention`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if "scaled_dot_product" in name and not name.endswith("backward"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _AttentionCalls(TorchFunctionMode):
    """Function mode that counts calls of `scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


MATH = "math"


def attention_kernels(call: Callable[[], object]) -> dict[str, int]:
    """Run a forward; return how many calls of `scaled_dot_product_attention` each kernel ran.

    Calls that no fused kernel ran are under `MATH`, with or without a kernel of that name: they store the scores.
    """
    with _AttentionCalls() as calls, AttentionKernels() as kernels:
        call()
    found = {name: number for name, number in sorted(kernels.counts.items()) if MATH not in name}
    missing = calls.number - sum(found.values())
    return {**found, MATH: missing} if missing else found


# --- Meta tensors
def on_meta(model: nn.Module) -> nn.Module:
    """Move a model to the meta device, in place, with tensors that are plain attributes of its modules."""
    model.to("meta")
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                setattr(module, name, value.to("meta"))
    return model


@contextlib.contextmanager
def attention_as_on_cpu() -> Iterator[None]:
    """Run `scaled_dot_product_attention` of meta tensors by the kernel that the CPU would choose, in the block.

    The function itself is replaced: a mode would not hold in the thread in which backward repeats a forward.
    """
    own = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_cpu_attention if query.is_meta else own)(query, *args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def _cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> Tensor:
    # The choice depends on sizes, strides and `requires_grad` alone; memory that is not touched is not allocated.
    with _disable_current_modes():  # or the stand-ins would be counted
        q, k, v = map(_untouched, (query, key, value))
        mask = None if attn_mask is None else _untouched(attn_mask)
        chosen = torch._fused_sdp_choice(q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale)
        del q, k, v, mask
    if chosen != SDPBackend.FLASH_ATTENTION.value:
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return _FLASH(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _untouched(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return made.requires_grad_(tensor.requires_grad)


def _tensors(values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]
