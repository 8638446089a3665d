"""lowpeft's own implementations of networks that no maintained library has."""

from __future__ import annotations

from .edt import EDT
from .edt_config import EDTConfig

__all__ = ["EDT", "EDTConfig"]
