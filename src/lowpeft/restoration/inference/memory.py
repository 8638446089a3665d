"""How much memory a run takes, and how much of an image fits into a given one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MB = 10**6

SAFE_SHARE = 0.6
"""Of a bound that measured tensors may fill. Beside them the C library was seen to hold up to 0.6 times their bytes, in
blocks too small for it to give back."""

GROWTH = 8
"""A measured run is at least this fraction of the memory, or of the image, that is inferred from it."""

CHANNEL_BLOCK = 16
"""Of oneDNN's kernels on the CPU; those of small networks take several times their tensors."""

_CONVOLUTIONS = {torch.ops.aten.convolution.default, torch.ops.aten._convolution.default}


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block, the bytes of tensors that are made and not yet freed, and their maximum so far.

    A convolution's input and output count once more, because its kernels reorder both into blocks of channels.

    Attributes:
        peak: In bytes; what was there before the block does not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = _tensors((args, kwargs))
        for tensor in given:
            self._note(tensor, made_here=False)
        output = func(*args, **(kwargs or {}))
        made = _tensors(output)
        for tensor in made:
            self._note(tensor, made_here=True)
        scratch = sum(map(_blocked_bytes, (*given, *made))) if func in _CONVOLUTIONS else 0
        self.peak = max(self.peak, self._live + scratch)
        return output

    def _note(self, tensor: Tensor, *, made_here: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes() if made_here else 0
            self._live += self._known[key]
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live -= self._known.pop(key, 0)


def _blocked_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor (N,C,…) with its channels filled up to whole blocks."""
    if tensor.dim() < 2 or not tensor.numel():
        return tensor.nbytes
    channels = tensor.shape[1]
    return tensor.nbytes // channels * (channels + -channels % CHANNEL_BLOCK)


def _tensors(values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the process, had no more memory to give; torch has no type for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: " in str(error)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors that the call holds at once; on any device."""
    memory = PeakMemory()
    with memory:
        call()
    return memory.peak


def most_that_fits(take: Callable[[int], int], *, step: int, whole: int, budget: float) -> int:
    """How much of an image can be run at once.

    What a part takes is measured for parts that double, and continued in proportion.

    Args:
        take: The bytes that a part takes; called with multiples of `step`, or with `whole`.
        step: Of the result, unless it is `whole`.
        whole: All there is.
        budget: In bytes.

    Returns:
        The largest multiple of `step`, or `whole`, whose bytes are within the budget; 0 if there is none.
    """
    small = min(step, whole)
    small_bytes = take(small)
    large, large_bytes = small, small_bytes
    room = float(small if small_bytes <= budget else 0)
    while large < whole and large_bytes <= budget:
        small, small_bytes = large, large_bytes
        large = min(2 * large, whole)
        large_bytes = take(large)
        slope = (large_bytes - small_bytes) / (large - small)
        room = large + (budget - large_bytes) / slope if slope > 0 else float(whole)
        if GROWTH * large_bytes >= budget or (room >= whole and GROWTH * large >= whole):
            break
    return whole if room >= whole else int(room) // step * step
