"""Memory of a forward pass: its peak, and the part of an image that fits into a budget."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...errors import DataError

MB = 10**6

SAFE_SHARE = 0.6
"""Fraction of the budget given to tensors; malloc was seen to hold up to 60 % more, in blocks too small to release."""

GROWTH = 8
"""Maximum extrapolation: a measured part takes at least 1/8 of the budget, or is at least 1/8 of an image that fits."""

CHANNEL_BLOCK = 16
"""Channel block size of oneDNN's CPU kernels; padded to it, features of small networks take several times as much."""

_CONVOLUTIONS = {torch.ops.aten.convolution.default, torch.ops.aten._convolution.default}


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that tracks the bytes of tensors created within the block and not yet freed.

    Inputs and outputs of a convolution count once more, because its kernels reorder both into blocks of channels.

    Attributes:
        peak: Maximum so far, in bytes, without tensors that existed before the block.
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
    """Return the bytes of a tensor (N,C,…) with its channels padded to whole blocks."""
    if tensor.dim() < 2 or not tensor.numel():
        return tensor.nbytes
    channels = tensor.shape[1]
    return tensor.nbytes // channels * (channels + -channels % CHANNEL_BLOCK)


def _tensors(values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device or the process ran out of memory; torch has no exception type for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: " in str(error)


def peak_bytes(call: Callable[[], object]) -> int:
    """Run the call and return its peak of tensor bytes, on any device."""
    memory = PeakMemory()
    with memory:
        call()
    return memory.peak


@dataclass(frozen=True)
class MemoryLimit:
    """Memory limit of the user.

    Attributes:
        memory_mb: Limit in MB.
        reserved_bytes: Bytes of it that are needed for the images, beside the network's own tensors.
    """

    memory_mb: float
    reserved_bytes: int

    def most_units(
        self, peak: Callable[[int], int], *, whole: int, step: int = 1, around: int = 0, smallest: str
    ) -> int:
        """Find how many units (rows or crops) of an image fit into the limit.

        The memory of 1, 2, 4, … steps is measured and extrapolated linearly. E.g. 240 rows, steps of 48, 96
        rows of context: 48, 96 and 192 rows are measured; if 192 of the 240 fit, a strip has 96 rows.

        Args:
            peak: Function from a number of units to their peak bytes; called with multiples of `step` or with `whole`.
            whole: Number of units of the image.
            step: Numbers of units are multiples of this, or `whole`.
            around: Number of extra units (context) that go through the network with a part; a multiple of `step`.
            smallest: Description of the smallest part, for messages.

        Raises:
            DataError: Not even the smallest part fits.
        """
        budget = (self.memory_mb * MB - self.reserved_bytes) * SAFE_SHARE
        first = count = min(step, whole)
        first_bytes = count_bytes = peak(count)
        room = float(count if count_bytes <= budget else 0)
        while count < whole and count_bytes <= budget:
            before, bytes_before = count, count_bytes
            count = min(2 * count, whole)
            count_bytes = peak(count)
            slope = (count_bytes - bytes_before) / (count - before)
            room = count + (budget - count_bytes) / slope if slope > 0 else float(whole)
            if GROWTH * count_bytes >= budget or (room >= whole and GROWTH * count >= whole):
                break
        if room >= whole:
            return whole
        if (units := int(room) // step * step - around) > 0:
            return units
        needed = self.reserved_bytes + first_bytes * min(step + around, whole) / first / SAFE_SHARE
        raise DataError(
            f"memory_mb={self.memory_mb:g} is too little: {smallest} takes about {math.ceil(needed / MB)} MB, of which "
            f"{math.ceil(self.reserved_bytes / MB)} MB are for the images; raise memory_mb"
        )
