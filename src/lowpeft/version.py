"""Version of lowpeft, from the installed package's metadata."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Return the installed version of lowpeft; `unknown` if it is only on the path and not installed."""
    try:
        return metadata.version("lowpeft")
    except metadata.PackageNotFoundError:
        return "unknown"
