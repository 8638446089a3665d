"""Parts of a computation that must be done without autocast, or later with the autocast of now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for a type of device, e.g. "cuda"."""
    # Nothing is entered where autocast is off anyway, so that an exported graph does not contain it. There is none for
    # meta tensors, and asking raises.
    off = device == "meta" or not torch.is_autocast_enabled(device)
    return contextlib.nullcontext() if off else torch.autocast(device, enabled=False)


def autocast_here(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a function that gives contexts with the autocast that is in force now for a type of device."""
    if device == "meta":
        return contextlib.nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype, enabled, cache_enabled=False)
