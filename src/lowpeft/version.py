"""The version, from the installed package's metadata."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The installed version of lowpeft, `unknown` where it only lies on the path."""
    try:
        return metadata.version("lowpeft")
    except metadata.PackageNotFoundError:
        return "unknown"
