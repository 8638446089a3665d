"""What is said of a file that cannot be enhanced."""

from __future__ import annotations

from pathlib import Path

from ...errors import LowpeftError, printable


def about(file: Path, error: Exception) -> LowpeftError:
    """Return an error whose text begins with the file; an error of the network's code is named by its type."""
    if not isinstance(error, LowpeftError):
        return LowpeftError(f"{file}: {type(error).__name__}: {printable(error)}")
    if error.message.startswith((f"{file} ", f"{file}: ")):
        return error
    return type(error)(f"{file}: {error.message}", problems=error.problems)
