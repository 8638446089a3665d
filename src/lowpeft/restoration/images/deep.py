"""Exact pixels of PNG and TIFF files of 16 bits per sample, which Pillow cuts to 8 bits unless they are grey."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...checks import is_whole
from ...errors import DataError
from .colours import as_tensor
from .headers import ImageHeader, is_white_zero

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


WHITE = 65535
"""Largest value of 16 bits."""


def check_white_level(white_level: int) -> None:
    """Raise DataError unless a value of 16-bit files can be white: a whole number 1..65535."""
    if not is_whole(white_level, least=1) or white_level > WHITE:
        raise DataError(f"the white level of 16-bit files must be a whole number from 1 to {WHITE}, not {white_level}")


def deep_layers(opened: Image, header: ImageHeader, path: Path, white_level: int) -> tuple[Tensor, Tensor | None]:
    """Return the colours of a 16-bit image, (1,H,W) or (3,H,W), float32 0..1, upright, and its opacity, (1,H,W).

    Raises:
        DataError: The pixels are above the white level, those of an RGB TIFF are damaged, or tifffile is missing.
    """
    samples = deep_samples(opened, path)
    if (largest := int(samples[:3].max())) > white_level:
        raise DataError(
            f"{path} has values up to {largest}, above the white level of {white_level}: give the largest value that "
            "the files can have (white_level=, on the command line --white-level)"
        )
    values = samples[:3].to(torch.float32) / white_level
    if is_white_zero(opened):
        values = 1 - values
    turned = opened.format == "TIFF" and len(samples) == 1  # by Pillow, as it decoded them
    orientation = 1 if turned else header.orientation
    alpha = upright(samples[3:].to(torch.float32) / WHITE, orientation).contiguous() if len(samples) == 4 else None
    return upright(values, orientation).contiguous(), alpha


def deep_samples(opened: Image, path: Path) -> Tensor:
    """Return the stored samples of a 16-bit image, int32 0..65535: (1,H,W), (3,H,W), or (4,H,W) with alpha.

    RGB TIFF is decoded by tifffile (which scikit-image brings too), all others by Pillow.

    Raises:
        DataError: The pixels of an RGB TIFF are damaged, or tifffile is missing.
    """
    if opened.mode in ("RGB", "RGBA"):
        return _tiff(path) if opened.format == "TIFF" else _png(opened, path)
    opened.load()
    whole = opened.convert("I")
    return torch.frombuffer(bytearray(whole.tobytes()), dtype=torch.int32).view(1, whole.height, whole.width)


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
            samples = torch.from_numpy(page.asarray().astype("int32"))
    except (tifffile.TiffFileError, zlib.error, IndexError) as error:
        raise DataError(f"{path} is damaged, truncated or not readable: {error}") from None
    return samples.permute(2, 0, 1) if page.planarconfig == tifffile.PLANARCONFIG.CONTIG else samples
