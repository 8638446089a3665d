"""Moving average of the trained tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Exponential moving average (EMA) of tensors.

    Step n (from 1) updates it to `d·average + (1-d)·tensor` with d = min(decay, (1+n)/(10+n)). The ramp, from
    TensorFlow's ExponentialMovingAverage, keeps the average of a short run from staying near its start.

    Attributes:
        tensors: Averages by the name of the tensor.
    """

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        self._live = dict(live)
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after a step, numbered from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self._live.items():
            self.tensors[name].lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Overwrite the tensors with their averages."""
        for name, tensor in self._live.items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the tensors by their averages within the block; then restore them."""
        before = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._live.items():
                    tensor.copy_(before[name])
