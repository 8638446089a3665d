"""Colours of image files: embedded profiles, transparency, and the grey value of a colour."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in a grey value: ITU-R BT.601 without offset, as in MATLAB's `rgb2gray` and Pillow's "L"."""

_NEAR_SRGB = 2
"""Largest change in 8-bit steps by a profile that is taken for sRGB, whatever it is called."""
_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
_GREY_MODES = frozenset({"1", "L", "LA", "La"})


def check_channels(channels: int) -> None:
    """Raise DataError unless images of this number of channels can be read: 1 (grey) or 3 (RGB)."""
    if channels not in (1, 3):
        raise DataError(
            f"the network takes images of {channels} channels, but image files are read as grey (1 channel) or RGB (3)"
        )


def as_tensor(picture: Image) -> torch.Tensor:
    """Convert a Pillow image of mode L, RGB or RGBA to uint8 (1, H, W), (3, H, W) or (4, H, W)."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


def is_grey(picture: Image) -> bool:
    """Return whether a picture has no colours, by its mode."""
    return picture.mode in _GREY_MODES or picture.mode.startswith("I")


def plain(picture: Image, channels: int, *, on_white: bool = True) -> Image:
    """Convert an 8-bit picture of any mode to mode L (1 channel) or RGB (3), in sRGB.

    Args:
        picture: The picture.
        channels: 1 or 3.
        on_white: True composites transparent pixels over white; False gives the colours that they have.
    """
    from PIL import Image

    grey, profile = is_grey(picture), picture.info.get("icc_profile")
    if picture.has_transparency_data:
        coloured = _with_alpha(picture)
        white = Image.new("RGBA", coloured.size, "white")
        picture = Image.alpha_composite(white, coloured) if on_white else coloured
    if picture.mode != "CMYK":
        picture = picture.convert("L" if grey else "RGB")
    if profile:
        picture = _in_srgb(picture, profile)
    return (picture if picture.mode in ("L", "RGB") else picture.convert("RGB")).convert(
        "L" if channels == 1 else "RGB"
    )


def alpha_of(picture: Image) -> Image | None:
    """Return the opacity of an 8-bit picture as a picture of mode L, 0 transparent; None if it has none."""
    return _with_alpha(picture).getchannel("A") if picture.has_transparency_data else None


def _with_alpha(picture: Image) -> Image:
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def profile_as_read(picture: Image) -> bytes | None:
    """Return the profile that the colours given by `plain` are in: the picture's own, or sRGB where it was converted.

    None if the picture has none or it was ignored; then, as in most files, sRGB is meant. None too for converted grey.
    """
    from PIL import ImageCms

    profile: bytes | None = picture.info.get("icc_profile")
    if not profile:
        return None
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
    except (OSError, ValueError, TypeError):
        return None
    grey = is_grey(picture)
    if space != ("GRAY" if grey else "CMYK" if picture.mode == "CMYK" else "RGB "):
        return None
    if is_srgb(profile):
        return profile
    return None if grey else ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Convert a float image (1,H,W) or (3,H,W) to 1 or 3 channels: grey by `LUMA`, or grey repeated."""
    if image.shape[0] == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1).contiguous()
    return (image * image.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)


@functools.lru_cache(maxsize=64)
def is_srgb(profile: bytes) -> bool:
    """Return whether colours of an embedded profile need no conversion: it is sRGB, by its effect, or unreadable."""
    from PIL import Image, ImageCms

    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
    except (OSError, ValueError, TypeError):
        return True
    if space == "GRAY":
        steps = Image.frombytes("L", (256, 1), bytes(range(256)))
    elif space == "RGB ":
        levels = range(0, 256, 15)
        steps = Image.frombytes(
            "RGB", (18**3, 1), bytes(v for r in levels for g in levels for b in levels for v in (r, g, b))
        )
    else:
        return False
    before, after = (
        torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int()
        for p in (steps, _in_srgb(steps, profile, same=True))
    )
    return bool((before - after).abs().max() <= _NEAR_SRGB)


def _in_srgb(picture: Image, profile: bytes, *, same: bool = False) -> Image:
    """Convert a picture of mode L, RGB or CMYK to sRGB; a profile that cannot be read or is of another mode is ignored.

    With `same` the conversion is done even if it changes nothing that matters.
    """
    from PIL import ImageCms

    if not same and picture.mode != "CMYK" and is_srgb(profile):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES[picture.mode]:
            return picture
        converted = ImageCms.profileToProfile(
            picture,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
    return picture if converted is None else converted.convert("L" if picture.mode == "L" else "RGB")
