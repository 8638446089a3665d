"""Parts of a computation that must not be done in the lower precision of autocast."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for a type of device, e.g. "cuda"."""
    # Nothing is entered where autocast is off anyway, so that an exported graph does not contain it. There is none for
    # meta tensors, and asking raises.
    off = device == "meta" or not torch.is_autocast_enabled(device)
    return contextlib.nullcontext() if off else torch.autocast(device, enabled=False)
