"""Reading, writing and resizing images."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lowpeft.errors import DataError
from lowpeft.restoration.images import (
    IMAGE_SUFFIXES,
    bicubic_upscale,
    image_size,
    matlab_downscale,
    matlab_halve,
    mod_crop,
    read_image,
    to_float,
    to_uint8,
    write_image,
)
from reference.matlab_resize import resize

LOSSLESS = sorted(IMAGE_SUFFIXES - {".jpg", ".jpeg"})


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def png(colour_type: int, bits: int, channels: int) -> bytes:
    """A 3x2 PNG of zeros; Pillow cannot write deep colour itself."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 3, 2, bits, colour_type, 0, 0, 0)
    rows = (b"\0" + bytes(3 * channels * bits // 8)) * 2
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- Files
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    image = noise(5, 7)
    write_image(image, tmp_path / f"a{suffix}")
    assert torch.equal(read_image(tmp_path / f"a{suffix}"), image)


def test_jpeg_keeps_colour_edges(tmp_path: Path) -> None:
    """Subsampled chroma would smear a one-pixel red/blue stripe by more than 50 levels."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0, :, ::2] = 200
    image[2, :, 1::2] = 200
    write_image(image, tmp_path / "a.jpg")
    assert (read_image(tmp_path / "a.jpg").int() - image.int()).abs().max() < 30


def test_float_images_are_rounded_half_up(tmp_path: Path) -> None:
    write_image(torch.tensor([1.5, 2.5, 300.0]).view(3, 1, 1) / 255, tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flatten().tolist() == [2, 3, 255]


def pillow(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (3, 2), colour)


def palette(*, transparent: bool) -> Image.Image:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        pytest.param(pillow("L", 77), (77, 77, 77), id="grey"),
        pytest.param(pillow("1", 1), (255, 255, 255), id="bilevel"),
        pytest.param(palette(transparent=False), (10, 20, 30), id="palette"),
        pytest.param(palette(transparent=True), (255, 255, 255), id="transparent palette over white"),
        pytest.param(pillow("RGBA", (10, 20, 30, 255)), (10, 20, 30), id="opaque RGBA"),
        pytest.param(pillow("RGBA", (10, 20, 30, 0)), (255, 255, 255), id="transparent RGBA over white"),
        pytest.param(pillow("RGBA", (0, 100, 200, 51)), (204, 224, 244), id="a fifth RGBA over white"),
        pytest.param(pillow("LA", (0, 51)), (204, 204, 204), id="a fifth grey over white"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, image: Image.Image, colour: tuple[int, int, int]) -> None:
    image.save(tmp_path / "a.png")
    expected = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 3)
    assert torch.equal(read_image(tmp_path / "a.png"), expected)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (3, 3, 2)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_from_the_header_is_that_of_the_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (3, 2)).save(tmp_path / f"a{suffix}", exif=exif)
    assert image_size(tmp_path / f"a{suffix}") == tuple(read_image(tmp_path / f"a{suffix}").shape[1:])


def test_the_size_needs_no_more_than_the_header(tmp_path: Path) -> None:
    write_image(noise(50, 70), tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    assert image_size(tmp_path / "a.png") == (50, 70)


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(b"", "", id="empty"),
        pytest.param(b"no image at all", "", id="text"),
        pytest.param(saved(Image.new("RGB", (64, 64)), "PNG")[:-40], "", id="cut PNG"),
        pytest.param(saved(Image.effect_noise((64, 64), 9), "JPEG")[:-400], "", id="cut JPEG"),
        pytest.param(b"P6 3 2 65535\n" + bytes(36), "8 bits", id="16-bit PPM"),
        pytest.param(b"P5 3 2 65535\n" + bytes(12), "8 bits", id="16-bit PGM"),
        pytest.param(saved(Image.new("LAB", (3, 2)), "TIFF"), "LAB", id="LAB"),
        pytest.param(saved(Image.new("F", (3, 2)), "TIFF"), "8 bits", id="float TIFF"),
        pytest.param(saved(Image.new("I", (3, 2)), "TIFF"), "8 bits", id="32-bit TIFF"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "scene_L.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"scene_L\.png.*{word}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_eight_bit_png_made_by_hand_is_read(tmp_path: Path) -> None:
    """So that the refusals above are about the depth, not about the file."""
    (tmp_path / "a.png").write_bytes(png(2, 8, 3))
    assert torch.equal(read_image(tmp_path / "a.png"), torch.zeros(3, 2, 3, dtype=torch.uint8))


WHOLE = saved(Image.effect_noise((12, 12), 50), "PNG")


@given(end=st.integers(0, len(WHOLE) - 1))
def test_a_cut_file_is_refused_or_complete(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.png"
    path.write_bytes(WHOLE)
    whole = read_image(path)
    path.write_bytes(WHOLE[:end])
    try:
        assert torch.equal(read_image(path), whole)
    except DataError:
        return


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(noise(4, 4), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(DataError, match=r"a\.png .*16 pixels"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png"):
        read_image(tmp_path / "nowhere.png")


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(DataError, match="aaa"):
        read_image("a" * 300 + ".png")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path} is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (torch.zeros(3, 2, 2), "a.xyz", r"'\.xyz'.*\.png"),
        (torch.zeros(3, 2, 2), "a.pgn", r"did you mean '\.png'"),
        (torch.zeros(3, 2, 2), "a", "''"),
        (torch.zeros(3, 2, 2), "missing/a.png", r"missing/a\.png"),
        (torch.zeros(1, 3, 2, 2), "a.png", r"\(3, H, W\).*\(1, 3, 2, 2\)"),
        (torch.zeros(2, 2, 2), "a.png", r"\(3, H, W\).*\(2, 2, 2\)"),
        (torch.full((3, 2, 2), 200.0), "a.png", r"values 0\.\.1.*200"),
        (torch.zeros(3, 0, 2), "a.png", r"\(3, H, W\).*\(3, 0, 2\)"),
        (torch.zeros(3, 2, 2, dtype=torch.int32), "a.png", r"torch\.int32"),
        (torch.full((3, 2, 2), math.nan), "a.png", "NaN"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, image: torch.Tensor, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_image(image, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise(4, 4)
    write_image(old, tmp_path / "a.png")

    def full_disk(self: Image.Image, file: Path, **options: object) -> None:
        file.write_bytes(b"half an image")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_image(noise(4, 4, seed=1), tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), old)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# --- Value ranges
def test_all_eight_bit_values_survive_the_float_form() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)


def test_float_form_is_float32_up_to_1() -> None:
    image = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert image.dtype == torch.float32
    assert image.tolist() == pytest.approx([0, 0.2, 1])


@given(st.floats(-3, 3, width=32))
def test_eight_bit_form_is_the_nearest_value(value: float) -> None:
    nearest = min(max(math.floor(value * 255 + 0.5), 0), 255)
    found = int(to_uint8(torch.tensor([value])))
    tie = abs(value * 255 + 0.5 - round(value * 255 + 0.5)) < 1e-3
    assert found == nearest or (tie and abs(found - nearest) == 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_scaling(dtype: torch.dtype) -> None:
    """In bfloat16 itself 177 + 0.5 is 178."""
    image = (torch.arange(256) / 255).to(dtype)
    assert torch.equal(to_uint8(image), to_uint8(image.double()))


def test_to_float_takes_uint8_and_leaves_float_images_as_they_are() -> None:
    image = torch.tensor([-0.1, 1.2])
    assert to_float(image) is image
    with pytest.raises(DataError, match=r"torch\.int32"):
        to_float(torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_to_uint8_refuses_what_is_no_number(bad: float) -> None:
    with pytest.raises(DataError, match="NaN"):
        to_uint8(torch.tensor([0.5, bad]))


# --- Resizing
def reference(image: torch.Tensor, factor: float, border: str, *, round_to_uint8: bool) -> torch.Tensor:
    channels = [resize(c.tolist(), factor, border, round_to_uint8=round_to_uint8) for c in image]
    return torch.tensor(channels, dtype=torch.float64)


@pytest.mark.parametrize("border", ["symmetric", "replicate"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_downscale_equals_the_reference(scale: int, border: str) -> None:
    image = noise(3 * scale, 4 * scale, seed=scale)
    expected = reference(image, 1 / scale, border, round_to_uint8=True)
    assert torch.equal(matlab_downscale(image, scale, border=border).double(), expected)


@given(st.sampled_from([2, 4]), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_downscale_equals_the_reference_on_small_images(scale: int, height: int, width: int, seed: int) -> None:
    """Down to one LR pixel, where the taps reach past the mirrored image and are mirrored again."""
    image = noise(height * scale, width * scale, seed)[:1]
    expected = reference(image, 1 / scale, "symmetric", round_to_uint8=True)
    assert torch.equal(matlab_downscale(image, scale).double(), expected)


@pytest.mark.parametrize("border", ["symmetric", "replicate"])
@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 5), (7, 5), (1, 1)])
def test_halving_equals_the_reference_also_for_odd_sides(size: tuple[int, int], border: str) -> None:
    """`imresize` rounds the sides up, so the last pixel of an odd side lies half beyond the edge."""
    image = noise(*size)
    expected = reference(image, 0.5, border, round_to_uint8=True)
    assert expected.shape == (3, -(-size[0] // 2), -(-size[1] // 2))
    assert torch.equal(matlab_halve(image, border=border).double(), expected)


def test_float_images_are_shrunk_without_rounding() -> None:
    image = noise(16, 24)
    halved = matlab_halve(to_float(image))
    assert (halved - to_float(matlab_halve(image))).abs().max() < 2 / 255
    assert not torch.equal(halved, to_float(matlab_halve(image)))


@pytest.mark.parametrize("border", ["symmetric", "replicate"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upscale_equals_the_reference(scale: int, border: str) -> None:
    image = noise(5, 4)
    expected = reference(image, scale, border, round_to_uint8=True)
    assert torch.equal(bicubic_upscale(image, scale, border=border).double(), expected)


def test_upscale_of_floats_neither_rounds_nor_clips() -> None:
    image = noise(5, 4).double() / 255
    expected = reference(image, 3, "symmetric", round_to_uint8=False)
    found = bicubic_upscale(image, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.min() < 0
    assert found.max() > 1


def test_upscale_keeps_the_dtype() -> None:
    assert bicubic_upscale(torch.zeros(3, 2, 2, dtype=torch.float16), 2).dtype == torch.float16


def test_the_borders_differ_only_near_the_edge() -> None:
    image = noise(48, 48)
    apart = matlab_downscale(image, 4) != matlab_downscale(image, 4, border="replicate")
    assert apart.any()
    assert not apart[:, 2:-2, 2:-2].any()


def test_batches_are_resized_image_by_image() -> None:
    images = torch.stack([noise(8, 12, seed=1), noise(8, 12, seed=2)])
    together = matlab_downscale(images, 4)
    assert torch.equal(together, torch.stack([matlab_downscale(image, 4) for image in images]))


def test_mod_crop_takes_from_bottom_and_right() -> None:
    image = noise(9, 11)
    assert torch.equal(mod_crop(image, 4), image[:, :8, :8])


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (noise(8, 9), 4, "9x8 px .* 4 .*mod_crop"),
        (noise(8, 8), 0, "at least 1, not 0"),
        (noise(8, 8).int(), 4, r"torch\.int32"),
        (noise(8, 8)[0], 4, r"\(8, 8\)"),
        (noise(0, 8), 4, r"\(3, 0, 8\)"),
    ],
)
def test_downscale_refuses(image: torch.Tensor, scale: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        matlab_downscale(image, scale)


def test_unknown_borders_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'replicate'"):
        matlab_downscale(noise(8, 8), 4, border="replicated")  # type: ignore[arg-type]


def test_upscale_refuses_integers() -> None:
    with pytest.raises(DataError, match=r"torch\.int32"):
        bicubic_upscale(noise(8, 8).int(), 2)


def test_mod_crop_refuses_less_than_one_lr_pixel() -> None:
    with pytest.raises(DataError, match="at least 4"):
        mod_crop(noise(3, 8), 4)


# --- Against the archive that everybody evaluates on
@pytest.mark.real_data
@pytest.mark.parametrize("index", range(20))
@pytest.mark.parametrize("side", ["L", "R"])
def test_downscale_gives_every_pixel_of_the_archive(data_root: Path, index: int, side: str) -> None:
    name = f"kitti2015sr_{index:06d}_{side}.png"
    hr = mod_crop(read_image(data_root / "stereo" / "test" / name), 4)
    lr = read_image(data_root / "stereo" / "test_lr_x4_matlab" / name)
    assert torch.equal(matlab_downscale(hr, 4), lr)
