"""Parts of a computation that must not be done in the lower precision of autocast."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for a type of device, e.g. "cuda"."""
    # Nothing is entered where autocast is off anyway, so that an exported graph does not contain it.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
