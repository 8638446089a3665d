"""The moving average of the trained tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An exponential moving average (EMA) of tensors.

    After step n (from 1) it is `d·average + (1-d)·tensor` with d = min(decay, (1+n)/(10+n)), so that a short run does
    not end near its start; the ramp is that of TensorFlow's ExponentialMovingAverage.

    Attributes:
        tensors: The averages, by the name of what they are of.
    """

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        self._live = dict(live)
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the tensors after the step with that number, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self._live.items():
            self.tensors[name].lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Make the tensors their averages, for good."""
        for name, tensor in self._live.items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the tensors are their averages."""
        before = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._live.items():
                    tensor.copy_(before[name])
