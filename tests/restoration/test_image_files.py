"""Image files as people have them: a table of odd files, each with its exact pixels or the words of its error."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from lowpeft.errors import DataError
from lowpeft.restoration.images import image_header, image_size, matlab_downscale, read_image, write_image

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
DEEP_GREY = np.ascontiguousarray(DEEP[..., 0])
WIDE = 0x0112  # the tag of the orientation


def tensor(array: np.ndarray) -> Tensor:
    """The image that an array (H,W) or (H,W,3) is read as."""
    array = array[..., None].repeat(3, -1) if array.ndim == 2 else array
    image = torch.from_numpy(array.astype(np.float32) if array.dtype == np.uint16 else array.copy()).permute(2, 0, 1)
    return image / 65535 if array.dtype == np.uint16 else image


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric=options.pop("photometric", "rgb"), **options)
    return file.getvalue()


def png(
    array: np.ndarray, colour_type: int, *before: bytes, after: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """A PNG of 8 or 16 bits by hand: Pillow cannot write deep colour."""
    height, width = size or array.shape[:2]
    bits = 8 * array.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in array)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def interlaced() -> bytes:
    """A 3x2 RGB PNG of 16 bits in Adam7 passes, all samples 0x1234."""
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 1)
    widths = (1, 1, 1, 3)  # rows of passes 1, 4 (column 2), 6 (column 1) and 7 (row 1)
    rows = b"".join(b"\0" + b"\x12\x34" * 3 * width for width in widths)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation: object) -> Image.Exif:
    found = Image.Exif()
    found[WIDE] = orientation
    return found


def exif_chunk(orientation: int) -> bytes:
    return chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))


def swapped_profile() -> bytes:
    """A profile of RGB whose red and blue primaries are exchanged: far from sRGB, and easy to check."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    return bytes(content.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ"))


SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def palette(**info: object) -> Image.Image:
    picture = Image.new("P", (3, 2), 1)
    picture.putpalette([9, 9, 9, 10, 20, 30])
    picture.info.update(info)
    return picture


def frames() -> list[Image.Image]:
    return [Image.fromarray(RGB), Image.new("RGB", (7, 5), "red"), Image.new("RGB", (7, 5), "blue")]


def alpha(value: int) -> Image.Image:
    picture = Image.fromarray(RGB).convert("RGBA")
    picture.putalpha(value)
    return picture


def plain(colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 3)


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF standard's table, by the rows and columns that become the top and the left."""
    turns = {1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1]}
    swapped = array.swapaxes(0, 1)
    return {**turns, 5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}[orientation]


@dataclass
class File:
    """A file; `image` is what it is read as, `words` what its error says, `near` how far pixels may be off."""

    name: str
    content: bytes
    image: Tensor | None = None
    words: str = ""
    near: int = 0
    header: bool = True
    """False if only the pixels show the fault."""


PICTURE, EXACT = Image.fromarray(RGB), tensor(RGB)
DEEP_RGBA = np.concatenate([DEEP, np.full((5, 7, 1), 65535, np.uint16)], -1)
HALF = np.concatenate([DEEP, np.full((5, 7, 1), 13107, np.uint16)], -1)  # alpha 0.2
TURNED_TIFF = [
    File(f"turned{n}{how}.tif", saved(PICTURE, "TIFF", exif=exif(n), **options), tensor(oriented(RGB, n)))
    for n in range(2, 9)
    for how, options in {"": {}, "-lzw": {"compression": "tiff_lzw"}}.items()
]
TURNED_PNG = [
    File(f"turned{n}.png", saved(PICTURE, "PNG", exif=exif(n)), tensor(oriented(RGB, n))) for n in range(2, 9)
]
FILES = [
    *TURNED_TIFF,
    *TURNED_PNG,
    File("turned-deep.png", png(DEEP, 2, exif_chunk(6)), tensor(oriented(DEEP, 6))),
    File("turned-deep.tif", tiff(DEEP, extratags=[(274, 3, 1, 8, True)]), tensor(oriented(DEEP, 8))),
    File(
        "turned-deep-grey.tif",
        tiff(DEEP_GREY, photometric="minisblack", extratags=[(274, 3, 1, 5, True)]),
        tensor(oriented(DEEP_GREY, 5)),
    ),
    File(
        "turned-grey.tif",
        tiff(GREY, photometric="minisblack", extratags=[(274, 3, 1, 6, True)]),
        tensor(oriented(GREY, 6)),
    ),
    File("orientation-0.png", saved(PICTURE, "PNG", exif=exif(0)), EXACT),
    File("orientation-99.tif", saved(PICTURE, "TIFF", exif=exif(99)), EXACT),
    File("late-exif.png", png(RGB, 2, after=exif_chunk(6)), EXACT),
    File("broken-exif.png", png(RGB, 2, chunk(b"eXIf", b"MM\0*\0\0")), EXACT),
    File("turned.webp", saved(PICTURE, "WEBP", lossless=True, exif=exif(6)), tensor(oriented(RGB, 6))),
    File("grey.png", saved(Image.fromarray(GREY), "PNG"), tensor(GREY)),
    File("UPPER.PNG", saved(PICTURE, "PNG"), EXACT),
    File("really-png.jpg", saved(PICTURE, "PNG"), EXACT),
    File("no-suffix", saved(PICTURE, "BMP"), EXACT),
    File("bilevel.png", saved(Image.new("1", (3, 2), 1), "PNG"), plain((255, 255, 255))),
    File("palette.png", saved(palette(), "PNG"), plain((10, 20, 30))),
    File("palette.gif", saved(palette(), "GIF"), plain((10, 20, 30))),
    File("palette-transparent.png", saved(palette(transparency=1), "PNG"), plain((255, 255, 255))),
    File("grey-alpha.png", saved(Image.new("LA", (3, 2), (0, 51)), "PNG"), plain((204, 204, 204))),
    File("opaque.png", saved(alpha(255), "PNG"), EXACT),
    File("clear.png", saved(alpha(0), "PNG"), torch.full((3, 5, 7), 255, dtype=torch.uint8)),
    File("opaque.webp", saved(alpha(255), "WEBP", lossless=True), EXACT),
    File("rgba.tif", saved(alpha(255), "TIFF"), EXACT),
    File("lossless.webp", saved(PICTURE, "WEBP", lossless=True), EXACT),
    File(
        "lossy.webp",
        saved(Image.new("RGB", (16, 16), (90, 90, 90)), "WEBP"),
        torch.full((3, 16, 16), 90).byte(),
        near=2,
    ),
    File(
        "flat.jpg", saved(Image.new("RGB", (16, 16), (90, 90, 90)), "JPEG"), torch.full((3, 16, 16), 90).byte(), near=1
    ),
    File("grey.jpg", saved(Image.new("L", (16, 16), 90), "JPEG"), torch.full((3, 16, 16), 90).byte(), near=1),
    File(
        "progressive.jpg",
        saved(Image.new("RGB", (16, 16), (90, 90, 90)), "JPEG", progressive=True),
        torch.full((3, 16, 16), 90).byte(),
        near=1,
    ),
    File(
        "cmyk.jpg",
        saved(Image.new("CMYK", (16, 16), (0, 0, 0, 155)), "JPEG"),
        torch.full((3, 16, 16), 100).byte(),
        near=2,
    ),
    File("cmyk.tif", saved(Image.new("CMYK", (3, 2), (0, 255, 0, 0)), "TIFF"), plain((255, 0, 255))),
    File(
        "animated.gif",
        saved(Image.new("P", (3, 2), 0), "GIF", save_all=True, append_images=[Image.new("P", (3, 2), 1)]),
        plain((0, 0, 0)),
    ),
    File(
        "animated.webp",
        saved(frames()[0], "WEBP", save_all=True, append_images=frames()[1:], lossless=True),
        words="contains 3 frames",
    ),
    File(
        "animated.png", saved(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), words="contains 3 frames"
    ),
    File("pages.tif", saved(frames()[0], "TIFF", save_all=True, append_images=frames()[1:]), words="contains 3 pages"),
    File(
        "pair.mpo",
        saved(
            Image.new("RGB", (16, 16), (90, 90, 90)), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))]
        ),
        torch.full((3, 16, 16), 90).byte(),
        near=1,
    ),
    File("planar.tif", tiff(RGB.transpose(2, 0, 1), planarconfig="separate"), EXACT),
    File("tiled.tif", tiff(RGB, tile=(16, 16)), EXACT),
    File("lzw.tif", saved(PICTURE, "TIFF", compression="tiff_lzw"), EXACT),
    File("deflate.tif", saved(PICTURE, "TIFF", compression="tiff_adobe_deflate"), EXACT),
    File("big-endian.tif", tiff(RGB, byteorder=">"), EXACT),
    File("bigtiff.tif", tiff(RGB, bigtiff=True), EXACT),
    File("interlaced.ppm", saved(PICTURE, "PPM"), EXACT),
    File("grey.pgm", saved(Image.fromarray(GREY), "PPM"), tensor(GREY)),
    File("deep.png", png(DEEP, 2), tensor(DEEP)),
    File("deep-grey.png", png(DEEP_GREY, 0), tensor(DEEP_GREY)),
    File("deep-opaque.png", png(DEEP_RGBA, 6), tensor(DEEP)),
    File("deep-fifth.png", png(HALF, 6), tensor(DEEP) * 0.2 + 0.8),
    File("deep-grey-alpha.png", png(np.stack([DEEP_GREY, DEEP_GREY], -1), 4), words="from RGBA only"),
    File("deep-colour-key.png", png(DEEP, 2, chunk(b"tRNS", bytes(6))), words="from RGBA only"),
    File("deep-interlaced.png", interlaced(), tensor(np.full((2, 3, 3), 0x1234, np.uint16))),
    File("deep.tif", tiff(DEEP), tensor(DEEP)),
    File("deep-planar.tif", tiff(DEEP.transpose(2, 0, 1), planarconfig="separate"), tensor(DEEP)),
    File("deep-tiled.tif", tiff(DEEP, tile=(16, 16)), tensor(DEEP)),
    File("deep-deflate.tif", tiff(DEEP, compression="zlib", predictor=2), tensor(DEEP)),
    File("deep-big-endian.tif", tiff(DEEP, byteorder=">"), tensor(DEEP)),
    File("deep-grey.tif", tiff(DEEP_GREY, photometric="minisblack"), tensor(DEEP_GREY)),
    File("deep-grey-lzw.tif", saved(Image.fromarray(DEEP_GREY), "TIFF", compression="tiff_lzw"), tensor(DEEP_GREY)),
    File("srgb.png", saved(PICTURE, "PNG", icc_profile=SRGB_PROFILE), EXACT),
    File("profile.png", saved(PICTURE, "PNG", icc_profile=swapped_profile()), EXACT.flip(0), near=3),
    File("profile.tif", saved(PICTURE, "TIFF", icc_profile=swapped_profile()), EXACT.flip(0), near=3),
    File("profile-alpha.png", saved(alpha(255), "PNG", icc_profile=swapped_profile()), EXACT.flip(0), near=3),
    File(
        "profile-of-colour-on-grey.png",
        saved(Image.fromarray(GREY), "PNG", icc_profile=swapped_profile()),
        tensor(GREY),
    ),
    File("broken-profile.png", saved(PICTURE, "PNG", icc_profile=b"no profile"), EXACT),
    File("cut-profile.png", saved(PICTURE, "PNG", icc_profile=swapped_profile()[:200]), EXACT),
    File("deep-srgb.png", png(DEEP, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB_PROFILE))), tensor(DEEP)),
    File(
        "deep-profile.png",
        png(DEEP, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(swapped_profile()))),
        words="embedded profile",
    ),
    File("deep.ppm", b"P6 3 2 65535\n" + bytes(36), words="PNG and TIFF only"),
    File("deep.pgm", b"P5 3 2 65535\n" + bytes(12), words="PNG and TIFF only"),
    File("deep-alpha.tif", tiff(DEEP_RGBA, extrasamples=["unassalpha"]), words="without alpha"),
    File("deep-inverted.tif", tiff(DEEP_GREY, photometric="miniswhite"), tensor(65535 - DEEP_GREY)),
    File("float.tif", tiff(GREY.astype(np.float32), photometric="minisblack"), words="32 bits .float"),
    File("whole.tif", tiff(GREY.astype(np.int32), photometric="minisblack"), words="32 bits .signed"),
    File("signed.tif", tiff(DEEP_GREY.astype(np.int16), photometric="minisblack"), words="16 bits .signed"),
    File("lab.tif", saved(Image.new("LAB", (3, 2)), "TIFF"), words="LAB"),
    File("hsv.tif", b"II*\0" + bytes(40), words="not an image|damaged"),
    File("empty.png", b"", words="not an image"),
    File("text.png", b"no image at all", words="not an image"),
    File("page.jpg", b"<!DOCTYPE html><html>404</html>", words="not an image"),
    File("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", words="not an image"),
    File("zeros.png", bytes(500), words="not an image"),
    File("cut.png", saved(PICTURE, "PNG")[:-40], words="damaged", header=False),
    File("cut.jpg", saved(Image.effect_noise((64, 64), 9), "JPEG")[:-400], words="damaged", header=False),
    File("cut.tif", saved(PICTURE, "TIFF")[:-60], words="damaged", header=False),
    File("cut.webp", saved(Image.effect_noise((64, 64), 50), "WEBP")[:200], words="damaged|not an image"),
    File("cut-deep.png", png(DEEP, 2)[:-80], words="damaged", header=False),
    File("cut-deep.tif", tiff(DEEP)[:-60], words="damaged", header=False),
    File("cut-deep-deflate.tif", tiff(DEEP, compression="zlib")[:-30], words="damaged", header=False),
    File("huge.png", png(RGB, 2, size=(60000, 60000)), words="too large"),
    File("huge-deep.png", png(DEEP, 2, size=(60000, 60000)), words="too large"),
    File("no-pixels.png", png(RGB, 2, size=(0, 7)), words="damaged|not an image"),
]


def test_the_table_is_long_and_names_each_file_once() -> None:
    assert len({file.name for file in FILES}) == len(FILES) > 100


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_gives_its_pixels_or_says_why_not(tmp_path: Path, file: File) -> None:
    path = tmp_path / file.name
    path.write_bytes(file.content)
    if file.image is None:
        with pytest.raises(DataError, match=rf"{file.name}.*({file.words})") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
        if file.header:
            with pytest.raises(DataError) as by_header:
                image_size(path)
            assert str(by_header.value) == str(caught.value)
        return
    image = read_image(path)
    assert image.dtype == file.image.dtype
    assert image_size(path) == tuple(image.shape[1:])
    assert image_header(path).bits == (16 if image.is_floating_point() else 8)
    if image.is_floating_point():
        torch.testing.assert_close(image, file.image, rtol=0, atol=1e-6)
    else:
        assert (image.int() - file.image.int()).abs().max() <= file.near
    grey = read_image(path, channels=1)
    assert grey.shape == (1, *image.shape[1:])
    if bool((image[0] == image[1]).all()) and bool((image[0] == image[2]).all()):
        assert torch.equal(grey, image[:1])


def test_sixteen_bits_are_exact(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    (tmp_path / "a.png").write_bytes(png(every, 0))
    (tmp_path / "a.tif").write_bytes(tiff(every, photometric="minisblack"))
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name, channels=1)
        assert torch.equal((image.double() * 65535).round().int().flatten(), torch.arange(65536, dtype=torch.int32))


def test_colours_become_grey_by_the_luma_of_bt601(tmp_path: Path) -> None:
    write_image(torch.from_numpy(RGB).permute(2, 0, 1), tmp_path / "a.png")
    expected = (RGB @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(int)
    assert (read_image(tmp_path / "a.png", channels=1)[0].int() - torch.from_numpy(expected)).abs().max() <= 1
    (tmp_path / "b.png").write_bytes(png(DEEP, 2))
    deep = torch.from_numpy((DEEP / 65535 @ np.array([0.299, 0.587, 0.114])).astype(np.float32))
    torch.testing.assert_close(read_image(tmp_path / "b.png", channels=1)[0], deep, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".webp"])
def test_grey_images_are_written_and_read_back(tmp_path: Path, suffix: str) -> None:
    image = torch.from_numpy(GREY)[None]
    write_image(image, tmp_path / f"a{suffix}")
    assert torch.equal(read_image(tmp_path / f"a{suffix}", channels=1), image)


@pytest.mark.parametrize("channels", [0, 2, 4, 6])
def test_other_numbers_of_channels_are_refused(tmp_path: Path, channels: int) -> None:
    write_image(torch.zeros(3, 2, 2), tmp_path / "a.png")
    with pytest.raises(DataError, match=f"{channels} channels"):
        read_image(tmp_path / "a.png", channels=channels)


def links(folder: Path) -> Path:
    (folder / "a.png").symlink_to(folder / "gone.png")
    return folder / "a.png"


def folder_named_image(folder: Path) -> Path:
    (folder / "a.png").mkdir()
    return folder / "a.png"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (links, r"link to .*gone\.png"),
        (folder_named_image, "is a folder"),
        (lambda folder: folder / "a.png", "no image"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    path = make(tmp_path)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=words):
            read(path)


def test_deep_images_are_shrunk_without_rounding() -> None:
    image = tensor(DEEP)[:, :4, :4]
    found = matlab_downscale(image.double(), 2)
    assert found.dtype == torch.float64
    assert not torch.equal(found, (found * 255).round() / 255)
