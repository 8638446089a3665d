"""A limit for what is built while a stranger's checkpoint is opened: its shapes say how large the network becomes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import LowpeftError
from .weights import State

SPARE = 2**26
"""Elements that a network may have beside those of its checkpoint: masks, indices, what is made and thrown away."""
TIMES = 4
"""How many times the elements of its checkpoint may be made; a layer is made empty, and some are made again."""


@contextmanager
def bounded(state: State) -> Iterator[None]:
    """Raise within the block before tensors are made that are far larger than those of a state dict.

    Raises:
        LowpeftError: So many elements were asked for; they were not made.
    """
    with _Counting(SPARE + TIMES * sum(tensor.numel() for tensor in state.values())):
        yield


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements of new tensors; a result of a computation, most of which are thrown away, counts alone."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = most

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Functions that make a tensor from nothing take its size first: empty, zeros, ones, full, rand, randn.
        if args and isinstance(args[0], (list, tuple, torch.Size)) and all(isinstance(side, int) for side in args[0]):
            self._count(args[0])
            return func(*args, **(kwargs or {}))
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not made.is_meta and made.numel() > SPARE:
            given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
            if made.untyped_storage().data_ptr() not in given:  # neither a view nor written in place
                _refuse(made.shape)
        return made

    def _count(self, shape: Sequence[int]) -> None:
        self.left -= math.prod(shape)
        if self.left < 0:
            _refuse(shape)


def _refuse(shape: Sequence[int]) -> NoReturn:
    raise LowpeftError(
        "a network of its shapes would have far more values than the checkpoint: a tensor of "
        f"{'x'.join(map(str, shape)) or 'one value'} is one too many"
    )
