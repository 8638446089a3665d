"""How many bits files of 16 bits per sample really use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import DataError
from .deep import WHITE, deep_samples
from .headers import opened_image

_FEWER_BITS = (10, 12, 14)
"""Depths of cameras, microscopes and medical devices whose data are stored in files of 16 bits."""


def depth_remark(paths: Iterable[Path], white_level: int = WHITE) -> str:
    """Return a line if the 16-bit files among these seem to contain 10, 12 or 14 bits, so that they are read too dark.

    The pixels of the 16-bit files are decoded; files that cannot be read are passed over.

    Args:
        paths: Image files.
        white_level: Value that is read as white; no line is returned for another than 65535, which somebody chose.

    Returns:
        The line; empty if a file uses more bits, or if there are no 16-bit files or only black ones.
    """
    values = [] if white_level != WHITE else [value for path in paths if (value := _largest(path)) is not None]
    bits = next((bits for bits in _FEWER_BITS if 0 < max(values, default=0) < 2**bits), None)
    if bits is None:
        return ""
    count = f"{len(values)} file{'s' * (len(values) > 1)}"
    return (
        f"the 16-bit files seem to contain {bits} bits: of {count} looked at, no value is above {max(values)}, which "
        f"is read as {max(values) / WHITE:.2f} of white; if so, give --white-level {2**bits - 1}"
    )


def _largest(path: Path) -> int | None:
    """Return the largest stored colour value of a file of 16 bits; None for other files."""
    try:
        with opened_image(path) as (opened, header):
            return int(deep_samples(opened, path)[:3].max()) if header.bits > 8 else None
    except DataError:
        return None
