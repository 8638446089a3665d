"""Headers of image files: what an image will be, and whether it can be read, before its pixels are decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError
from ...ports.layouts import Size
from .colours import is_srgb

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_ORIENTATION = 0x0112  # tag of EXIF and TIFF
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _FORMAT = 256, 257, 258, 262, 277, 339  # tags of TIFF
_KIND, _SMALLER_COPY = 254, 1
_PAGED = {"TIFF": "pages", "PNG": "frames", "GIF": "frames", "WEBP": "frames"}
"""What files of several images contain. A photo (JPEG, "MPO") may contain previews, but is the first image."""
_BY_TIFFFILE = frozenset({"raw", "tiff_adobe_deflate", "tiff_deflate", "packbits"})
"""Compressions that tifffile reads by itself; the others need the package imagecodecs."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header of an image file says.

    Attributes:
        size: Height and width of the image that `read_image` gives, in px, turned upright.
        bits: 8, or 16 for a deep image, which `read_image` gives as float32.
        orientation: EXIF orientation of the stored pixels, 1 to 8; 1 is upright.
    """

    size: Size
    bits: int
    orientation: int


def image_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        DataError: For the reasons that `read_image` lists, except damage after the header.
    """
    with opened_image(Path(path)) as (_, header):
        return header


def image_size(path: str | os.PathLike[str]) -> Size:
    """Return height and width of the image that `read_image` would give, reading only the file's header.

    Raises:
        DataError: For the reasons that `read_image` lists, except damage after the header.
    """
    return image_header(path).size


@contextmanager
def opened_image(path: Path) -> Iterator[tuple[Image, ImageHeader]]:
    """Open an image file that lowpeft can read, without decoding pixels; errors in the block become DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.is_dir():
            raise DataError(f"expected an image file, but {path} is a folder")
        if not path.exists():
            link = f" ({path} is a link to {path.readlink()})" if path.is_symlink() else ""
            raise DataError(f"there is no image file {path}{link}")
        if not path.is_file():  # to open a pipe would wait for a writer
            raise DataError(f"expected an image file, but {path} is a pipe, a socket or a device")
        # By file and not by path: Pillow maps grey TIFFs into memory by path, and garbles those that are turned.
        with path.open("rb") as file, Image.open(file) as opened:
            _refuse_several(opened, path)
            yield opened, _header(opened, path)
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large to be read safely: {error}") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, TypeError, IndexError) as error:
        # The type of error that a broken file raises depends on its format.
        raise DataError(f"{path} is damaged, truncated or not readable: {error}") from None


def _refuse_several(opened: Image, path: Path) -> None:
    """Raise DataError for a file of several frames or pages. Smaller copies in a TIFF, and of a photo, are none."""
    count = getattr(opened, "n_frames", 1) if opened.format in _PAGED else 1
    if count > 1 and opened.format == "TIFF":
        count = sum(_is_page(opened, number) for number in range(count))
        opened.seek(0)
    if count > 1:
        raise DataError(
            f"{path} contains {count} {_PAGED[str(opened.format)]}, but lowpeft reads files of one image: save each as "
            "a file of its own"
        )


def _is_page(opened: Image, number: int) -> bool:
    opened.seek(number)
    return not opened.tag_v2.get(_KIND, 0) & _SMALLER_COPY  # type: ignore[attr-defined]


def is_white_zero(opened: Image) -> bool:
    """Return whether 0 is white and the largest value black ("MinIsWhite") in a TIFF."""
    return opened.format == "TIFF" and opened.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def _header(opened: Image, path: Path) -> ImageHeader:
    bits, orientation = _bits(opened, path), _orientation(opened)
    width, height = opened.size
    if opened.format == "TIFF":  # Pillow swaps the sides of a turned TIFF, in some versions at once, in others on load
        tags = opened.tag_v2  # type: ignore[attr-defined]
        width, height = tags[_WIDTH], tags[_HEIGHT]
    return ImageHeader((width, height) if orientation >= 5 else (height, width), bits, orientation)


def _orientation(opened: Image) -> int:
    """Return the orientation by EXIF or XMP; 1 if there is none, or none that can be read, before the pixels."""
    from PIL import Image

    try:  # not `opened.getexif()`, which for a PNG decodes all pixels to search for EXIF after them
        value = Image.Image.getexif(opened).get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, TypeError, IndexError):
        return 1
    return value if value in range(1, 9) else 1


def _bits(opened: Image, path: Path) -> int:
    """Return the bits per sample, 8 (also for fewer) or 16.

    Raises:
        DataError: The image is in LAB, of another depth, or deep in a form that would not be read exactly.
    """
    if opened.mode == "LAB":
        raise DataError(f"{path} is in LAB colours, but lowpeft reads grey and RGB images: convert it first")
    deep = _deep_tiff(opened, path) if opened.format == "TIFF" else _deep_samples(opened)
    if not deep:
        if opened.mode not in _MODES:
            raise DataError(f"{path} is in Pillow's mode {opened.mode}, but lowpeft reads images of 8 and 16 bits")
        return 8
    if opened.format not in ("PNG", "TIFF"):
        raise DataError(
            f"{path} has more than 8 bits per sample, which lowpeft reads from PNG and TIFF only, not {opened.format}: "
            "convert it first"
        )
    if "transparency" in opened.info or any("LA;16B" in tile for tile in getattr(opened, "tile", ())):
        raise DataError(
            f"{path} has 16 bits per sample, with transparency that is read from RGBA only: convert it first"
        )
    if (profile := opened.info.get("icc_profile")) and not is_srgb(profile):
        raise DataError(
            f"{path} has 16 bits per sample in the colours of an embedded profile, and only 8-bit images are "
            "converted: convert it to sRGB first"
        )
    return 16


def _deep_samples(opened: Image) -> bool:
    """Return whether a file that is not TIFF has more than 8 bits per sample.

    Deep colour files open as plain "RGB". Only the decoder's raw mode ("RGB;16B") shows the depth; in PPM, the largest
    sample value does.
    """
    raw_arguments = [tile[3] for tile in getattr(opened, "tile", ())]
    arguments = [part for raw in raw_arguments for part in (raw if isinstance(raw, tuple) else (raw,))]
    return any(
        (isinstance(part, str) and ";16" in part) or (opened.format == "PPM" and isinstance(part, int) and part > 255)
        for part in arguments
    )


def _deep_tiff(opened: Image, path: Path) -> bool:
    """Return whether a TIFF has 16 bits per sample; raise DataError for other depths above 8 bits."""
    tags = opened.tag_v2  # type: ignore[attr-defined]
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_FORMAT, (1,))
    if max(bits) <= 8:
        return False
    if set(bits) != {16} or set(kinds) != {1}:
        form = {2: "signed", 3: "float"}.get(max(kinds), "whole")
        raise DataError(
            f"{path} has samples of {max(bits)} bits ({form} numbers), but lowpeft reads images of 8 bits, and of 16 "
            "bits as whole numbers: convert it first"
        )
    if tags.get(_PHOTOMETRIC) not in (0, 1, 2) or tags.get(_SAMPLES, 1) not in (1, 3):
        raise DataError(f"{path} has 16 bits per sample and is neither grey nor RGB (without alpha): convert it first")
    compression = opened.info.get("compression", "raw")
    if tags.get(_SAMPLES, 1) == 3 and compression not in _BY_TIFFFILE and find_spec("imagecodecs") is None:
        raise DataError(
            f"{path} has 16 bits per sample, compressed as {compression}: pip install imagecodecs to read it, or save "
            "it without compression"
        )
    return True
