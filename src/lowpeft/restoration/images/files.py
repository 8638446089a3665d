"""Reading and writing image files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import DataError, did_you_mean
from ...storage import new_file
from .colours import as_tensor, check_channels, plain, with_channels
from .deep import WHITE, check_white_level, deep_pixels, upright
from .headers import opened_image
from .values import eight_bit

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's format name and options by suffix: lossless where the format allows it, otherwise little loss.
_WRITERS: dict[str, tuple[str, dict[str, int | bool]]] = {
    ".png": ("PNG", {}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
IMAGE_SUFFIXES = frozenset(_WRITERS)


def read_image(path: str | os.PathLike[str], *, channels: int = 3, white_level: int = WHITE) -> torch.Tensor:
    """Read an image file as (3,H,W), RGB, or (1,H,W), grey: uint8 0..255, or float32 0..1 from a file of 16 bits.

    - It is turned upright by the EXIF orientation that stands before the pixels.
    - Colours of an embedded profile that is not sRGB are converted to sRGB (relative colorimetric). A profile that
      cannot be read, or is of another colour space than the file, is ignored.
    - Transparent pixels are composited over white; an opaque image keeps its colours exactly.
    - PNG and TIFF of 16 bits per sample become float32, value / `white_level`. Files of fewer than 8 bits become 8
      bits.

    Args:
        path: File to read.
        channels: 3 gives RGB; grey is repeated. 1 gives grey; of RGB the luma 0.299 R + 0.587 G + 0.114 B (BT.601, as
            in MATLAB's `rgb2gray`), rounded half up if 8-bit.
        white_level: Value of white in files of 16 bits, 1..65535; 4095 for data of 12 bits. 8-bit files ignore it.

    Raises:
        DataError: The file is missing, a folder, unreadable, not an image, truncated, in LAB colours, of several frames
            or pages, or of a depth that is not read: more than 8 bits in formats other than PNG and TIFF, float, or 32
            bits. Or it has values above the white level, `channels` is neither 1 nor 3, or `white_level` is not in
            1..65535.
    """
    check_channels(channels)
    check_white_level(white_level)
    path = Path(path)
    with opened_image(path) as (opened, header):
        if header.bits > 8:
            return with_channels(deep_pixels(opened, header, path, white_level), channels)
        opened.load()
        # Pillow turns a TIFF upright when it loads it.
        orientation = 1 if opened.format == "TIFF" else header.orientation
        return upright(as_tensor(plain(opened, channels)), orientation).contiguous()


def write_image(image: torch.Tensor, path: str | os.PathLike[str]) -> None:
    """Write an image (3, H, W) or (1, H, W), uint8 or float 0..1 (see `to_uint8`), in the format of the suffix.

    The write is atomic: if the process is killed, an earlier file at this path is unchanged. JPEG is written at
    quality 95 without chroma subsampling, all other formats without loss.

    Raises:
        DataError: The image is not (3, H, W) or (1, H, W) of such values, the suffix is unknown, or the path cannot be
            written.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        found = tuple(image.shape)
        raise DataError(f"cannot write {path}: expected an image (3, H, W) or (1, H, W), not shape {found}")
    write_picture(as_picture(image), path)


def write_picture(picture: Image, path: str | os.PathLike[str]) -> None:
    """Write a Pillow image as `write_image` writes an image.

    Raises:
        DataError: The suffix is unknown, or the path cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        known = f"{did_you_mean(suffix, _WRITERS)}; known: {', '.join(sorted(_WRITERS))}"
        raise DataError(f"cannot write {path}: {path.suffix!r} is not the suffix of a known image format{known}")
    format_name, options = _WRITERS[suffix]
    try:
        with new_file(path, durable=False) as temporary:
            picture.save(temporary, format=format_name, **options)
    except OSError as error:
        raise DataError(f"cannot write the image {path}: {error.strerror or error}") from None


def as_picture(image: torch.Tensor) -> Image:
    """Convert an image (3, H, W) or (1, H, W), uint8 or float 0..1 (see `to_uint8`), to a Pillow image.

    Raises:
        DataError: The image is of another type, contains NaN or an infinity, or values far outside 0..1.
    """
    from PIL import Image

    pixels = eight_bit(image)
    buffer = bytearray(pixels.numel())
    torch.frombuffer(buffer, dtype=torch.uint8).copy_(pixels.permute(1, 2, 0).reshape(-1))
    return Image.frombytes("L" if len(pixels) == 1 else "RGB", (pixels.shape[2], pixels.shape[1]), buffer)


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder for results if it is missing, and return its path.

    Raises:
        DataError: The folder cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"cannot make the folder {folder}: {getattr(error, 'strerror', None) or error}") from error
    return Path(folder)
