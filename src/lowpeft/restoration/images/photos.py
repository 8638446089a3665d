"""Photos: images with what their files say beside the pixels: opacity, depth, profile, EXIF."""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ...ports.layouts import Size
from .colours import check_channels, is_grey, profile_as_read
from .deep import WHITE, check_white_level
from .headers import opened_image
from .pixels import read_pixels

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

Views = Literal["left-right", "right-left", "frames"]
"""How a file contains two views: side by side, the left or the right one first, or as images of their own (MPO)."""

_JPS = b"_JPSJPS_"
_FIRST_CHUNK = 12  # of a RIFF file, after "RIFF", its length and "WEBP"
_LOSSLESS = {"PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm"}
"""Suffix of results by Pillow's name of the formats that lose nothing; WebP may or may not."""

_ORIENTATION, _EXIF_FOLDER, _SIZE_TAGS = 0x0112, 0x8769, (0xA002, 0xA003)
_OF_PIXELS = frozenset(
    {*range(254, 260), 262, 263, 266, *range(273, 280), 280, 281, 284, 317, *range(320, 326), 330, 338, 339, 347}
    | {513, 514, *range(529, 533), 700, 33723, 34377, 34675}
)
"""Tags of a TIFF that describe how its pixels are stored, or contain other metadata."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """Image file.

    Attributes:
        image: (3,H,W), RGB, or (1,H,W), grey; uint8, or float32 0..1 of a file of 16 bits; upright.
        alpha: Opacity, (1,H,W), of the same type and range; None if the file has none.
        grey: True if the file has no colours.
        bits: Bits per sample, 8 or 16.
        profile: ICC profile of the pixels; None if it is not known.
        exif: EXIF data, with the orientation upright and without sizes; None if there are none.
    """

    image: Tensor = field(repr=False)
    alpha: Tensor | None = field(repr=False)
    grey: bool
    bits: int
    profile: bytes | None = field(repr=False)
    exif: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PhotoHeader:
    """What the header of an image file says.

    Attributes:
        size: Height and width, in px, turned upright.
        bits: Bits per sample, 8 or 16.
        alpha: True if the file has opacity.
        suffix: Suffix of a file that loses nothing: that of the file's own format, or `.png`.
        views: How the file contains two views of a scene; None if it says nothing about views.
    """

    size: Size
    bits: int
    alpha: bool
    suffix: str
    views: Views | None


def read_photo(path: str | os.PathLike[str], *, channels: int = 3, white_level: int = WHITE, frame: int = 0) -> Photo:
    """Read an image file as `read_image` does, but with its opacity, and keep what else it says.

    Transparent pixels keep the colours that the file gives them.

    Args:
        path: File to read.
        channels: As for `read_image`.
        white_level: As for `read_image`.
        frame: Number of the image in a file of several (MPO).

    Raises:
        DataError: As for `read_image`, or there is no such frame.
    """
    check_channels(channels)
    check_white_level(white_level)
    path = Path(path)
    with opened_image(path) as (opened, header):
        if frame:
            opened.seek(frame)
        image, alpha = read_pixels(opened, header, path, channels=channels, white_level=white_level, on_white=False)
        profile = opened.info.get("icc_profile") if header.bits > 8 else profile_as_read(opened)
        exif = _exif(opened)  # after the pixels, because it is changed
        return Photo(image=image, alpha=alpha, grey=is_grey(opened), bits=header.bits, profile=profile, exif=exif)


def photo_header(path: str | os.PathLike[str]) -> PhotoHeader:
    """Read the header of an image file.

    Raises:
        DataError: For the reasons that `read_image` lists, except damage after the header.
    """
    path = Path(path)
    with opened_image(path) as (opened, header):
        return PhotoHeader(
            size=header.size,
            bits=header.bits,
            alpha=bool(opened.has_transparency_data),
            suffix=_suffix(opened, path),
            views=_views(opened, path),
        )


def _views(opened: Image, path: Path) -> Views | None:
    """Return how a file contains two views of a scene.

    In a JPS the descriptor of segment APP3 tells it: after the mark and a length of 2 bytes, a reserved byte, flags (4:
    the left view comes first), the layout (2: side by side) and the type (1: stereo), as FFmpeg's `mjpegdec.c` has it.
    A JPS without descriptor is for crossed eyes: the right view is on the left.
    """
    if opened.format == "MPO" and getattr(opened, "n_frames", 1) > 1:
        return "frames"
    told = [data for name, data in getattr(opened, "applist", ()) if name == "APP3" and data.startswith(_JPS)]
    if told and len(told[0]) >= len(_JPS) + 6:
        flags, layout, kind = told[0][len(_JPS) + 3 : len(_JPS) + 6]
        if (layout, kind) == (2, 1):
            return "left-right" if flags & 4 else "right-left"
        return None
    return "right-left" if path.suffix.lower() == ".jps" else None


def _suffix(opened: Image, path: Path) -> str:
    """Return the suffix of results in the format of an opened file if it loses nothing, else `.png`."""
    if opened.format == "WEBP":
        return ".webp" if _lossless_webp(path) else ".png"
    return _LOSSLESS.get(opened.format or "", ".png")


def _exif(opened: Image) -> bytes | None:
    """Return the EXIF data that stand before the pixels, cleaned in place; None if there are none that can be read."""
    from PIL import Image

    with contextlib.suppress(OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, TypeError, IndexError):
        exif = Image.Image.getexif(opened)  # not `opened.getexif()`, which decodes a PNG to search behind the pixels
        return _cleaned(exif)
    return None


def _cleaned(exif: Exif) -> bytes | None:
    """Return EXIF data without what is not true of the result: the orientation, sizes, and how pixels are stored."""
    for tag in set(exif) & {*_OF_PIXELS, _ORIENTATION}:
        del exif[tag]
    details = exif.get_ifd(_EXIF_FOLDER)
    for tag in _SIZE_TAGS:
        details.pop(tag, None)
    return exif.tobytes() if len(exif) else None


def _lossless_webp(path: Path) -> bool:
    """Return whether the image of a WebP file is in a chunk "VP8L" (RFC 9649)."""
    with path.open("rb") as file:
        file.seek(_FIRST_CHUNK)
        while len(head := file.read(8)) == 8:
            name, length = head[:4], int.from_bytes(head[4:], "little")
            if name in (b"VP8 ", b"VP8L"):
                return name == b"VP8L"
            file.seek(length + length % 2, os.SEEK_CUR)
    return False
