"""Writing PNG and TIFF files of 16 bits per sample, which Pillow writes for grey alone."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DataError
from .deep import WHITE
from .values import to_whole

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}
"""PNG's colour type by the number of channels: grey, RGB, grey with alpha, RGB with alpha."""
_UP = 2
"""PNG's filter that stores the difference to the row above."""
_LEVEL = 6


def deep_samples_of(image: Tensor) -> Tensor:
    """Convert an image of any shape, uint8 or float 0..1, to int32 0..65535, rounded half up.

    Raises:
        DataError: As for `to_uint8`.
    """
    if image.dtype == torch.uint8:
        return image.to(torch.int32) * 257
    return to_whole(image, WHITE).to(torch.int32)


def write_deep_png(samples: Tensor, path: Path, *, profile: bytes | None, exif: bytes | None) -> None:
    """Write a PNG of 16 bits (PNG specification, third edition, chapters 5 to 11).

    Args:
        samples: Whole numbers 0..65535, (C,H,W): grey, grey and alpha, RGB, or RGB and alpha.
        path: File to write.
        profile: ICC profile; None for none.
        exif: EXIF data; None for none.
    """
    channels, height, width = samples.shape
    rows = samples.permute(1, 2, 0).reshape(height, -1)
    stored = torch.stack([rows >> 8, rows & 255], dim=-1).to(torch.uint8).reshape(height, -1)
    above = torch.cat([torch.zeros_like(stored[:1]), stored[:-1]])
    filtered = torch.cat([torch.full((height, 1), _UP, dtype=torch.uint8), stored - above], dim=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0))]
    if profile is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif is not None:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(filtered.numpy().tobytes(), _LEVEL)), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(_SIGNATURE)
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def write_deep_tiff(samples: Tensor, path: Path, *, profile: bytes | None) -> None:
    """Write an uncompressed TIFF of 16 bits with tifffile; the arguments are those of `write_deep_png`.

    Raises:
        DataError: tifffile is missing.
    """
    try:
        import tifffile
    except ImportError:
        raise DataError(f"{path} with 16 bits per sample needs tifffile: pip install 'lowpeft[train]'") from None
    channels = len(samples)
    tifffile.imwrite(
        path,
        samples.permute(1, 2, 0).squeeze(-1).numpy().astype("uint16"),
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        iccprofile=profile,
        metadata=None,
    )
