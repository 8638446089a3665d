"""Settings for enhancing files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ... import checks
from ...errors import DataError
from ..images import DEEP_SUFFIXES, check_white_level
from ..images.deep import WHITE
from ..inference import Tiling

Precision = Literal["fp32", "bf16", "fp16"]
Existing = Literal["refuse", "skip", "overwrite"]
Format = Literal["png", "tif", "jpg", "webp"]
SideBySide = Literal["left-right", "right-left"]

PRECISIONS: tuple[str, ...] = get_args(Precision)
EXISTING: tuple[str, ...] = get_args(Existing)
FORMATS: tuple[str, ...] = get_args(Format)
SIDES_BY_SIDE: tuple[str, ...] = get_args(SideBySide)


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """How files are found, enhanced and written.

    Attributes:
        recursive: True to take the images in subfolders of given folders too.
        side_by_side: Order of the two views that each file contains side by side; None for files of one view. Only for
            models of two views.
        format: Format of the results; None for that of each input if it loses nothing, else PNG.
        bits: Bits per sample of the results, 8 or 16; None for those of each input, where the format holds them.
        existing: What is done where a result exists: refuse all before any work, skip it, or overwrite it.
        white_level: Value of white in files of 16 bits; see `read_image`.
        ensemble: True to average several passes; see `lowpeft.enhance`.
        memory_mb: Memory limit, see `Tiling`; None to run an image in strips if it needs more than is free.
        precision: `fp32` to run the network in its own precision, `bf16` or `fp16` to run it under autocast.
    """

    recursive: bool = False
    side_by_side: SideBySide | None = None
    format: Format | None = None
    bits: int | None = None
    existing: Existing = "refuse"
    white_level: int = WHITE
    ensemble: bool = False
    memory_mb: float | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            DataError: A setting is unknown or out of range, or two contradict each other; all problems are listed.
        """
        check_white_level(self.white_level)
        Tiling(memory_mb=self.memory_mb)
        problems = checks.one_of("existing", self.existing, EXISTING)
        problems += checks.one_of("precision", self.precision, PRECISIONS)
        if self.side_by_side is not None:
            problems += checks.one_of("side_by_side", self.side_by_side, SIDES_BY_SIDE)
        if self.format is not None:
            problems += checks.one_of("format", self.format, FORMATS)
        if self.bits is not None:
            problems += checks.one_of("bits", str(self.bits), ("8", "16"))
        if self.bits == 16 and self.format is not None and f".{self.format}" not in DEEP_SUFFIXES:
            problems.append(f"format {self.format} holds 8 bits per sample: give png or tif, or no bits")
        if problems:
            raise DataError("the settings for enhancing files do not work:", problems=problems)
