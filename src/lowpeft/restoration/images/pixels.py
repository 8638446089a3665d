"""Pixels of an opened image file, upright: the part that `read_image` and `read_photo` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .colours import alpha_of, as_tensor, plain, with_channels
from .deep import deep_layers, upright
from .headers import ImageHeader

if TYPE_CHECKING:
    from PIL.Image import Image


def read_pixels(
    opened: Image, header: ImageHeader, path: Path, *, channels: int, white_level: int, on_white: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the pixels of an opened image, (1,H,W) or (3,H,W), and its opacity, (1,H,W); None if it has none.

    Both are uint8, or float32 0..1 of a file of 16 bits. The EXIF data of `opened` must not have been changed: Pillow
    turns a TIFF by them when it loads it.

    Args:
        opened: The image, from `opened_image`.
        header: Its header.
        path: Its file.
        channels: As for `read_image`.
        white_level: As for `read_image`.
        on_white: True composites transparent pixels over white; False gives the colours that they have.

    Raises:
        DataError: As for `deep_layers`.
    """
    if header.bits > 8:
        values, alpha = deep_layers(opened, header, path, white_level)
        if on_white and alpha is not None:
            values = values * alpha + (1 - alpha)
        return with_channels(values, channels), alpha
    opened.load()
    orientation = 1 if opened.format == "TIFF" else header.orientation
    opacity = alpha_of(opened)
    image = upright(as_tensor(plain(opened, channels, on_white=on_white)), orientation).contiguous()
    return image, None if opacity is None else upright(as_tensor(opacity), orientation).contiguous()
