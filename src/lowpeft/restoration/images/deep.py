"""Exact pixels of PNG and TIFF files of 16 bits per sample, which Pillow cuts to 8 bits unless they are grey."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import DataError
from .colours import as_tensor
from .headers import ImageHeader

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


def deep_pixels(opened: Image, header: ImageHeader, path: Path) -> Tensor:
    """Return a 16-bit image (1,H,W) or (3,H,W), float32 0..1, upright, with transparency composited over white.

    RGB TIFF is decoded by tifffile (which scikit-image brings too), all others by Pillow.

    Raises:
        DataError: The pixels of an RGB TIFF are damaged, or tifffile is missing.
    """
    orientation = header.orientation
    if opened.mode in ("RGB", "RGBA"):
        samples = _tiff(path) if opened.format == "TIFF" else _png(opened, path)
    else:
        opened.load()
        whole = torch.frombuffer(bytearray(opened.convert("I").tobytes()), dtype=torch.int32)
        samples = whole.view(1, opened.height, opened.width)
        orientation = 1 if opened.format == "TIFF" else orientation  # Pillow turns a TIFF upright itself
    values = samples.to(torch.float32) / 65535
    if len(values) == 4:
        values = values[:3] * values[3:] + (1 - values[3:])
    return upright(values, orientation).contiguous()


def upright(image: Tensor, orientation: int) -> Tensor:
    """Turn stored pixels (C,H,W) upright, as the EXIF orientation 1 to 8 tells."""
    if orientation >= 5:
        image = image.transpose(-1, -2)
    flips = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}.get(orientation, ())
    return image.flip(flips) if flips else image


def _png(opened: Image, path: Path) -> Tensor:
    """Return the samples of an RGB or RGBA PNG, (3,H,W) or (4,H,W).

    Pillow's raw mode "RGB;16B" keeps the first byte of each sample, which is the high one in PNG; "RGB;16L" keeps the
    second.
    """
    from PIL import Image

    high = as_tensor(opened).int()
    with Image.open(path) as again:
        again.tile = [tile._replace(args=f"{again.mode};16L") for tile in again.tile]
        return high * 256 + as_tensor(again)


def _tiff(path: Path) -> Tensor:
    """Return the stored samples of the first page of an RGB TIFF, (3,H,W)."""
    try:
        import tifffile
    except ImportError:
        raise DataError(f"{path} has 16 bits per sample, which needs tifffile: pip install 'lowpeft[train]'") from None
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            samples = torch.from_numpy(page.asarray().astype("float32"))
    except (tifffile.TiffFileError, zlib.error, IndexError) as error:
        raise DataError(f"{path} is damaged, truncated or not readable: {error}") from None
    return samples.permute(2, 0, 1) if page.planarconfig == tifffile.PLANARCONFIG.CONTIG else samples
