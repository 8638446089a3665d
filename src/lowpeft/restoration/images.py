"""Image files, 8-bit and float images, and MATLAB's bicubic resizing.

An image is a tensor (3, H, W), RGB, uint8 0..255 or float 0..1. Only files need Pillow; resizing works without it.

This module reproduces MATLAB's `imresize`, because the field's LR images are made with it, and any other pixel values
are a different benchmark. The kernel is the cubic convolution of Keys (IEEE Trans. ASSP 29(6), 1981) with a = -0.5.
When shrinking by s, it is stretched by s, and the taps are normalised to sum 1. For uint8 images MATLAB filters along
the height, rounds half up and clips to uint8, then does the same along the width; the order of the two roundings
affects pixels. The symmetric border reproduces every pixel of the x4 inputs of the KITTI 2015 stereo test archive. The
replicated border reproduces every pixel of NTIRE's Flickr1024 inputs and of the Set5 inputs at x2, x3 and x4.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ..errors import DataError, did_you_mean
from ..storage import new_file

if TYPE_CHECKING:
    from PIL.Image import Image

Border = Literal["symmetric", "replicate"]

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

_KEYS_A = -0.5  # as in MATLAB's "bicubic"; torch uses -0.75


# ---------------------------------------------------------------------------------------------------------- files
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


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
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

    if path.is_dir():
        raise DataError(f"expected an image file, but {path} is a folder")
    if not path.exists():
        raise DataError(f"there is no image file {path}")
    try:
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
        raise DataError(f"{path} holds LAB colours, and lowpeft reads grey and RGB images: convert it first")
    if deep or opened.mode not in _EIGHT_BIT_MODES:
        raise DataError(
            f"{path} holds more than 8 bits per sample (Pillow mode {opened.mode}), but lowpeft reads 8-bit images: "
            "convert it first"
        )


def _pixels(picture: Image) -> torch.Tensor:
    """Convert a Pillow image of any 8-bit mode to uint8 (3, H, W), with transparency composited over white."""
    from PIL import Image

    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    rgb = picture.convert("RGB")
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1).contiguous()


def write_image(image: torch.Tensor, path: str | os.PathLike[str]) -> None:
    """Write an image (3, H, W), uint8 or float 0..1 (see `to_uint8`), in the format given by the suffix.

    The write is atomic: if the process is killed, an earlier file at this path is unchanged. JPEG is written at
    quality 95 without chroma subsampling, all other formats without loss.

    Raises:
        DataError: The image is not (3, H, W) of such values, the suffix is unknown, or the path cannot be written.
    """
    path = Path(path)
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise DataError(f"expected an image (3, H, W) to write to {path}, got shape {tuple(image.shape)}")
    if path.suffix.lower() not in _WRITERS:
        hint = did_you_mean(path.suffix.lower(), _WRITERS)
        raise DataError(
            f"cannot tell the image format of {path} from its suffix {path.suffix!r}{hint}; "
            f"known: {', '.join(sorted(_WRITERS))}"
        )
    _save(as_picture(image), path)


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
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return Path(folder)


def _save(picture: Image, path: Path) -> None:
    format_name, options = _WRITERS[path.suffix.lower()]
    try:
        with new_file(path, durable=False) as temporary:
            picture.save(temporary, format=format_name, **options)
    except OSError as error:
        raise DataError(f"cannot write the image {path}: {error.strerror or error}") from None


# ---------------------------------------------------------------------------------------------------- value ranges
def to_float(image: torch.Tensor) -> torch.Tensor:
    """Convert a uint8 image 0..255 of any shape to float32 0..1.

    Raises:
        DataError: The image is not uint8.
    """
    if image.dtype != torch.uint8:
        raise DataError(f"expected a uint8 image, got {image.dtype}")
    return image.to(torch.float32) / 255


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Convert a float image 0..1 of any shape to uint8 0..255: clamp to the range, then round half up.

    Raises:
        DataError: The image is not of a float type, or contains NaN or an infinity.
    """
    if not image.is_floating_point():
        raise DataError(f"expected a float image with values 0..1, got {image.dtype}")
    if not torch.isfinite(image).all():
        raise DataError("the image holds NaN or infinite values, so it has no 8-bit form: check what produced it")
    # bfloat16 cannot represent 254.5: convert to float32 before scaling.
    wide = image.detach().to(torch.promote_types(image.dtype, torch.float32))
    return wide.clamp(0, 1).mul_(255).add_(0.5).floor_().to(torch.uint8)


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    """Return a uint8 image unchanged; convert any other image with `to_uint8`, which may raise."""
    return image if image.dtype == torch.uint8 else to_uint8(image)


# -------------------------------------------------------------------------------------------------------- resizing
def mod_crop(image: torch.Tensor, scale: int) -> torch.Tensor:
    """Crop (..., H, W) at the bottom and right to the largest multiples of `scale`.

    Raises:
        DataError: `scale` is below 1, or the image is smaller than one LR pixel.
    """
    _check(image, scale)
    height, width = (side - side % scale for side in image.shape[-2:])
    if height == 0 or width == 0:
        raise DataError(f"an image of {_size(image)} has no x{scale} LR pixel: both sides must be at least {scale}")
    return image[..., :height, :width]


def matlab_downscale(image: torch.Tensor, scale: int, *, border: Border = "symmetric") -> torch.Tensor:
    """Shrink a uint8 image (..., C, H, W) like MATLAB's `imresize(image, 1/scale, 'bicubic')`.

    Args:
        image: uint8 (..., C, H, W); H and W are multiples of `scale` (see `mod_crop`).
        scale: Whole factor to shrink by.
        border: Pixels beyond the edge. `symmetric` mirrors the image, edge pixel included; `replicate` repeats the edge
            pixel. E.g. after a row that ends in 1 2 3: 3 2 1 or 3 3 3.

    Returns:
        uint8 (..., C, H / scale, W / scale).

    Raises:
        DataError: The dtype or shape is another, `scale` does not divide the sides, or the border is unknown.
    """
    _check(image, scale, border)
    if image.dtype != torch.uint8:
        raise DataError(f"MATLAB's LR images come from uint8 images, got {image.dtype}: round with to_uint8 first")
    if image.shape[-1] % scale or image.shape[-2] % scale:
        raise DataError(f"an image of {_size(image)} cannot be shrunk by {scale} exactly: mod_crop it first")
    return _shrink(image, scale, border)


def matlab_halve(image: torch.Tensor, *, border: Border = "symmetric") -> torch.Tensor:
    """Halve a uint8 image (..., C, H, W) of any size like MATLAB's `imresize(image, 1/2, 'bicubic')`.

    The field prepares Middlebury scenes this way (`GenerateTrainingPatches.m` of iPASSR): it halves the whole image
    first, then cuts it to multiples of the scale.

    Returns:
        uint8 (..., C, H', W'), where H' and W' are half of H and W, rounded up.

    Raises:
        DataError: The dtype or shape is another, or the border is unknown.
    """
    _check(image, 2, border)
    if image.dtype != torch.uint8:
        raise DataError(f"MATLAB halves uint8 images here, got {image.dtype}: round with to_uint8 first")
    return _shrink(image, 2, border)


def _shrink(image: torch.Tensor, scale: int, border: Border) -> torch.Tensor:
    """Shrink in two passes, height then width; a side that `scale` does not divide is rounded up, as in `imresize`."""
    phases = [_taps((scale - 1) / 2, stretch=scale)]
    rows = _resample(image, -2, phases, scale, border)
    return _resample(rows, -1, phases, scale, border)


def bicubic_upscale(image: torch.Tensor, scale: int, *, border: Border = "symmetric") -> torch.Tensor:
    """Enlarge an image like MATLAB's `imresize(image, scale, 'bicubic')`, the baseline of every SR table.

    Args:
        image: (..., C, H, W), uint8 (rounded half up and clipped after each of the two passes, as in MATLAB) or float
            (neither rounded nor clipped, so values may leave 0..1 at edges).
        scale: Whole factor to enlarge by.
        border: Pixels beyond the edge; see `matlab_downscale`.

    Returns:
        (..., C, H * scale, W * scale) of the same dtype.

    Raises:
        DataError: The dtype or shape is another, or the border is unknown.
    """
    _check(image, scale, border)
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise DataError(f"expected a uint8 or float image, got {image.dtype}")
    phases = [_taps((phase + 0.5) / scale - 0.5, stretch=1) for phase in range(scale)]
    rows = _resample(image, -2, phases, 1, border)
    return _resample(rows, -1, phases, 1, border)


def _check(image: torch.Tensor, scale: int, border: Border = "symmetric") -> None:
    if scale < 1:
        raise DataError(f"the scale must be at least 1, got {scale}")
    if image.ndim < 3 or image.numel() == 0:
        raise DataError(f"expected an image (..., C, H, W), got shape {tuple(image.shape)}")
    if border not in get_args(Border):
        raise DataError(f"unknown border {border!r}{did_you_mean(border, get_args(Border))}; known: {get_args(Border)}")


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]} px"


def _keys(x: float) -> float:
    """Return Keys' cubic convolution kernel (his equation 4) at distance x, with a = -0.5."""
    x = abs(x)
    if x <= 1:
        return (_KEYS_A + 2) * x**3 - (_KEYS_A + 3) * x**2 + 1
    if x < 2:
        return _KEYS_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def _taps(centre: float, *, stretch: int) -> tuple[int, list[float]]:
    """Return the first input index and the weights (sum 1) of the stretched kernel around input position `centre`.

    With a whole factor, all output pixels of a phase have the same fractional position and thus the same weights.
    """
    first = math.floor(centre - 2 * stretch)
    weights = [_keys((centre - index) / stretch) for index in range(first, first + 4 * stretch + 2)]
    total = math.fsum(weights)
    return first, [weight / total for weight in weights]


def _resample(
    image: torch.Tensor, dim: int, phases: list[tuple[int, list[float]]], stride: int, border: Border
) -> torch.Tensor:
    """Resample along `dim`: `len(phases)` output pixels for every `stride` input pixels, rounded if uint8."""
    length = image.shape[dim]
    before = max(-first for first, _ in phases)
    after = max(first + len(weights) for first, weights in phases)
    padded = _pad(image, dim, before, after, border).transpose(dim, -2)
    outputs = []
    for first, weights in phases:
        # Add taps one by one in double precision, as MATLAB does, so that ties round to the same side.
        total = torch.zeros((), dtype=torch.float64, device=image.device)
        for start, weight in enumerate(weights, before + first):
            if weight != 0:
                total = total + padded[..., start : start + length : stride, :] * weight
        outputs.append(total)
    result = torch.stack(outputs, dim=-2).flatten(-3, -2).transpose(dim, -2)
    if image.dtype == torch.uint8:
        return result.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8).contiguous()
    return result.to(image.dtype).contiguous()


def _pad(image: torch.Tensor, dim: int, before: int, after: int, border: Border) -> torch.Tensor:
    """Pad by `before` and `after` pixels along `dim`, in double precision; the padding may exceed the image."""
    length = image.shape[dim]
    position = torch.arange(-before, length + after, device=image.device)
    if border == "symmetric":
        position = position.remainder(2 * length)
        position = torch.minimum(position, 2 * length - 1 - position)
    return image.index_select(dim, position.clamp(0, length - 1)).to(torch.float64)
