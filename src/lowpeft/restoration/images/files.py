"""Reading and writing image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import DataError, did_you_mean
from ...ports.layouts import Size
from ...storage import new_file
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

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})

_EXIF_ORIENTATION, _FIRST_QUARTER_TURN = 0x0112, 5  # orientations 5 to 8 swap the sides


def read_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read an image file as uint8 (3, H, W), RGB, turned upright according to its EXIF tag.

    Grey and palette images become RGB. Transparent images are composited over white. Of several frames the first is
    read.

    Raises:
        DataError: The file is missing, a folder, unreadable, not an image, truncated, in LAB colours, or has more than
            8 bits per sample.
    """
    from PIL import ImageOps

    with _opened(Path(path)) as opened:
        return _pixels(ImageOps.exif_transpose(opened))


def image_size(path: str | os.PathLike[str]) -> Size:
    """Return height and width of the image that `read_image` would give, reading only the file's header.

    Raises:
        DataError: For the reasons that `read_image` lists, except damage after the header.
    """
    with _opened(Path(path)) as opened:
        # For a PNG without EXIF before its pixels, getexif would decode all of them to search for EXIF after them.
        exif = opened.getexif() if opened.format != "PNG" or "exif" in opened.info else {}
        turned = exif.get(_EXIF_ORIENTATION, 1) >= _FIRST_QUARTER_TURN
        return opened.size if turned else (opened.height, opened.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open an image file of at most 8 bits per sample, without reading pixels; raise DataError for Pillow's errors."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.is_dir():
            raise DataError(f"expected an image file, but {path} is a folder")
        if not path.exists():
            raise DataError(f"there is no image file {path}")
        with Image.open(path) as opened:
            _refuse_other_samples(opened, path)
            yield opened
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large to be read safely: {error}") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # The type of error that a broken file raises depends on its format.
        raise DataError(f"{path} is damaged, truncated or not readable: {error}") from None


def _refuse_other_samples(opened: Image, path: Path) -> None:
    """Raise for LAB, and for more than 8 bits per sample, which Pillow would silently reduce to 8."""
    # Deep colour files open as plain "RGB". Only the decoder's raw mode ("RGB;16B") shows the depth; in PPM, the
    # largest sample value does.
    raw_arguments = [tile[3] for tile in getattr(opened, "tile", ())]
    arguments = [part for raw in raw_arguments for part in (raw if isinstance(raw, tuple) else (raw,))]
    deep = any(
        (isinstance(part, str) and ";16" in part) or (opened.format == "PPM" and isinstance(part, int) and part > 255)
        for part in arguments
    )
    if opened.mode == "LAB":
        raise DataError(f"{path} is in LAB colours, but lowpeft reads grey and RGB images: convert it first")
    if deep or opened.mode not in _EIGHT_BIT_MODES:
        raise DataError(
            f"{path} has more than 8 bits per sample (Pillow mode {opened.mode}), but lowpeft reads 8-bit images: "
            "convert it first"
        )


def as_tensor(picture: Image) -> torch.Tensor:
    """Convert a Pillow image of mode L or RGB to uint8 (1, H, W) or (3, H, W)."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


def _pixels(picture: Image) -> torch.Tensor:
    """Convert a Pillow image of any 8-bit mode to uint8 (3, H, W), with transparency composited over white."""
    from PIL import Image

    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return as_tensor(picture.convert("RGB"))


def write_image(image: torch.Tensor, path: str | os.PathLike[str]) -> None:
    """Write an image (3, H, W), uint8 or float 0..1 (see `to_uint8`), in the format given by the suffix.

    The write is atomic: if the process is killed, an earlier file at this path is unchanged. JPEG is written at
    quality 95 without chroma subsampling, all other formats without loss.

    Raises:
        DataError: The image is not (3, H, W) of such values, the suffix is unknown, or the path cannot be written.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise DataError(f"cannot write {path}: expected an image (3, H, W), not shape {tuple(image.shape)}")
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
    """Convert an image (3, H, W), uint8 or float 0..1 (see `to_uint8`), to a Pillow image.

    Raises:
        DataError: The image is of another type, or contains NaN or an infinity.
    """
    from PIL import Image

    pixels = eight_bit(image)
    buffer = bytearray(pixels.numel())
    torch.frombuffer(buffer, dtype=torch.uint8).copy_(pixels.permute(1, 2, 0).reshape(-1))
    return Image.frombytes("RGB", (pixels.shape[2], pixels.shape[1]), buffer)


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
