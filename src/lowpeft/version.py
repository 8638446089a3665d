"""The version, read from the installed package's metadata when asked for."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed version of lowpeft."""
    return metadata.version("lowpeft")
