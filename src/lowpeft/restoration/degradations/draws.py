"""Random draws from a generator that a key seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Generator

from ...checks import plain_whole
from ...errors import DataError

T = TypeVar("T")


def generator(*key: str | int) -> Generator:
    """Return a generator on the CPU whose seed is a hash of the key; equal integers of any library count as one.

    Raises:
        DataError: A part of the key is neither text nor an integer.
    """
    plain = tuple(str(part) if isinstance(part, str) else plain_whole(part) for part in key)
    if None in plain:
        raise DataError(f"the key of random draws must consist of texts and whole numbers, not {key!r}")
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def uniform(low: float, high: float, random: Generator) -> float:
    """Draw a number from `low` to `high`, all equally likely."""
    return low + (high - low) * float(torch.rand((), generator=random, device="cpu", dtype=torch.float64))


def whole(low: int, high: int, random: Generator) -> int:
    """Draw a whole number from `low` to `high`, both included, all equally likely."""
    return int(torch.randint(low, high + 1, (), generator=random, device="cpu"))


def chance(probability: float, random: Generator) -> bool:
    """Return True with this probability."""
    return uniform(0, 1, random) < probability


def one_of(choices: Sequence[T], random: Generator, weights: Sequence[float] | None = None) -> T:
    """Draw one of the choices, with these weights (sum 1) or all equally likely."""
    if weights is None:
        return choices[whole(0, len(choices) - 1, random)]
    left = uniform(0, sum(weights), random)
    for choice, weight in zip(choices, weights, strict=True):
        left -= weight
        if left < 0:
            return choice
    return choices[-1]


def shuffled(choices: Sequence[T], random: Generator) -> list[T]:
    """Return the choices in random order."""
    return [choices[i] for i in torch.randperm(len(choices), generator=random, device="cpu").tolist()]
