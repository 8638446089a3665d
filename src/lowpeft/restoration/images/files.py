"""Reading and writing image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import DataError, did_you_mean
from ...storage import new_file
from .colours import check_channels
from .deep import WHITE, check_white_level
from .deep_files import deep_samples_of, write_deep_png, write_deep_tiff
from .headers import opened_image
from .pixels import read_pixels
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
DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
"""Suffixes of formats that `write_image` writes with 16 bits per sample."""
ALPHA_SUFFIXES = DEEP_SUFFIXES | {".webp"}
"""Suffixes of formats that `write_image` writes with transparency."""
_DESCRIBED = ALPHA_SUFFIXES | {".jpg", ".jpeg"}
"""Suffixes of formats that have a place for a profile and EXIF data."""


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
        return read_pixels(opened, header, path, channels=channels, white_level=white_level, on_white=True)[0]


def write_image(
    image: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    bits: int = 8,
    alpha: torch.Tensor | None = None,
    profile: bytes | None = None,
    exif: bytes | None = None,
) -> None:
    """Write an image (3, H, W) or (1, H, W), uint8 or float 0..1 (see `to_uint8`), in the format of the suffix.

    The write is atomic: if the process is killed, an earlier file at this path is unchanged. JPEG is written at
    quality 95 without chroma subsampling, all other formats without loss.

    Args:
        image: The image.
        path: File to write.
        bits: Bits per sample, 8, or 16 for PNG and TIFF.
        alpha: Opacity, (1, H, W), uint8 or float 0..1, for PNG, TIFF and WebP; None for an opaque image.
        profile: ICC profile of the colours; BMP and PPM have no place for it.
        exif: EXIF data; BMP, PPM and TIFF of 16 bits have no place for them.

    Raises:
        DataError: The image or the opacity has another shape or other values, the suffix is unknown, the format cannot
            hold the depth or the opacity, or the path cannot be written.
    """
    path = Path(path)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        found = tuple(image.shape)
        raise DataError(f"cannot write {path}: expected an image (3, H, W) or (1, H, W), not shape {found}")
    suffix = _known(path)
    if alpha is not None and alpha.shape != (1, *image.shape[1:]):
        raise DataError(
            f"cannot write {path}: expected alpha (1, H, W) as large as the image, not {tuple(alpha.shape)}"
        )
    if bits not in (8, 16) or (bits == 16 and suffix not in DEEP_SUFFIXES):
        raise DataError(f"cannot write {path} with {bits} bits per sample: PNG and TIFF hold 8 or 16, the others 8")
    if alpha is not None and suffix not in ALPHA_SUFFIXES:
        raise DataError(f"cannot write {path} with transparency: choose PNG, TIFF or WebP")
    if bits == 16:
        samples = torch.cat([deep_samples_of(part) for part in (image, alpha) if part is not None])
        with _new(path) as temporary:
            if suffix == ".png":
                write_deep_png(samples, temporary, profile=profile, exif=exif)
            else:
                write_deep_tiff(samples, temporary, profile=profile)
        return
    picture = as_picture(image)
    if alpha is not None:
        picture.putalpha(as_picture(alpha))
    _save(picture, path, {"icc_profile": profile, "exif": exif} if suffix in _DESCRIBED else {})


def write_picture(picture: Image, path: str | os.PathLike[str]) -> None:
    """Write a Pillow image as `write_image` writes an image.

    Raises:
        DataError: The suffix is unknown, or the path cannot be written.
    """
    _save(picture, Path(path), {})


def _save(picture: Image, path: Path, about: dict[str, bytes | None]) -> None:
    format_name, options = _WRITERS[_known(path)]
    with _new(path) as temporary:
        picture.save(temporary, format=format_name, **options, **{k: v for k, v in about.items() if v is not None})


def _known(path: Path) -> str:
    """Return the suffix in small letters; raise DataError if no image format has it."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        known = f"{did_you_mean(suffix, _WRITERS)}; known: {', '.join(sorted(_WRITERS))}"
        raise DataError(f"cannot write {path}: {path.suffix!r} is not the suffix of a known image format{known}")
    return suffix


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`; errors of the system and of Pillow in the block become DataError."""
    try:
        with new_file(path, durable=False) as temporary:
            yield temporary
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: e.g. EXIF data that are too long for JPEG
        raise DataError(f"cannot write the image {path}: {getattr(error, 'strerror', None) or error}") from None


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
