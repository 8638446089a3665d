"""Enhancing files: what is found, what the results are called, and what of a file is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import nn

import lowpeft
from lowpeft.core.attachment.views import StereoModel
from lowpeft.errors import DataError, LowpeftError
from lowpeft.restoration.enhancing import Enhanced, FileSettings, enhance_files, plan_files, run_files
from lowpeft.restoration.enhancing.room import Room, free_mb
from lowpeft.restoration.images import bicubic_upscale, image_size, read_image, read_photo, write_image
from lowpeft.restoration.images.deep import upright
from lowpeft.restoration.inference import Tiling
from scene_files import noise, touch

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


class Repeat(nn.Module):
    """Repeats pixels, or with scale 1 returns them; a parameter gives it a device."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def network(scale: int = 2, channels: int = 3) -> lowpeft.Backbone:
    return lowpeft.describe(
        Repeat(scale), scale=scale, channels=channels, value_range=(0, 1), size_multiple=1, min_px=1
    )


@pytest.fixture(scope="module")
def stereo() -> StereoModel:
    """A stereo model that repeats the pixels of each view."""
    base = lowpeft.describe(
        nn.Sequential(nn.Conv2d(3, 3, 1), Repeat(2)), scale=2, channels=3, value_range=(0, 1), size_multiple=1, min_px=1
    )
    with torch.no_grad():
        base.module[0].weight.copy_(torch.eye(3)[:, :, None, None])
        base.module[0].bias.zero_()
    model = lowpeft.adapt(base, lowpeft.StereoConfig(target="0", every=1))
    assert isinstance(model, StereoModel)
    return model


def repeated(image: torch.Tensor, scale: int = 2) -> torch.Tensor:
    return image.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def names(outcome: Enhanced, out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in outcome.written)


# --- Odd files
def _cmyk(path: Path) -> None:
    Image.new("CMYK", (6, 4), (10, 20, 30, 40)).save(path, "JPEG")


def _palette(path: Path) -> None:
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.save(path, transparency=0)


def _animated(path: Path) -> None:
    Image.new("RGB", (6, 4), "red").save(path, save_all=True, append_images=[Image.new("RGB", (6, 4), "blue")])


def _truncated(path: Path) -> None:
    write_image(noise(40, 40), path)
    path.write_bytes(path.read_bytes()[:900])


def picture(mode: str, size: tuple[int, int] = (6, 4), **options: object) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path, **options)


FINE: dict[str, tuple[Callable[[Path], None], str]] = {
    "bmp.bmp": (picture("RGB"), "RGB"),
    "capital.PNG": (picture("RGB"), "RGB"),
    "cmyk.jpg": (_cmyk, "RGB"),
    "deep.png": (lambda p: write_image(noise(4, 6), p, bits=16), "RGB"),
    "deep.tif": (lambda p: write_image(noise(4, 6), p, bits=16), "RGB"),
    "gif.gif": (picture("P"), "RGB"),
    "grey alpha.png": (picture("LA"), "LA"),
    "grey.png": (picture("L"), "L"),
    "grey16.png": (picture("I;16"), "I;16"),
    "large.ppm": (picture("RGB"), "RGB"),
    "lossless.webp": (picture("RGB", lossless=True), "RGB"),
    "lossy.webp": (picture("RGB"), "RGB"),
    "new\nline.png": (picture("RGB"), "RGB"),
    "one.png": (picture("RGB", (1, 1)), "RGB"),
    "palette.png": (_palette, "RGBA"),
    "photo.jpeg": (picture("RGB"), "RGB"),
    "strip.png": (picture("RGB", (700, 1)), "RGB"),
    "two.colours.png": (picture("1"), "L"),
    "ünïcode 图.png": (picture("RGBA"), "RGBA"),
    os.fsdecode(b"bytes \xff.png"): (picture("RGB"), "RGB"),
}
"""Files that are enhanced, and the mode of the result."""
BAD: dict[str, Callable[[Path], object]] = {
    "animated.gif": _animated,
    "empty.png": lambda p: p.touch(),
    "float.tif": lambda p: tifffile.imwrite(p, torch.rand(4, 6).numpy()),
    "lab.tif": picture("LAB"),
    "line\nbreak.png": lambda p: p.touch(),
    "link.png": lambda p: p.symlink_to(p),
    "nowhere.png": lambda p: p.symlink_to(p.with_name("none")),
    "text.png": lambda p: p.write_text("text"),
    "truncated.png": _truncated,
}
"""Files that fail, with one line each."""
PASSED: dict[str, Callable[[Path], object]] = {
    "folder.png": lambda p: p.mkdir(),
    "loop": lambda p: p.symlink_to(p.parent, target_is_directory=True),
    "notes.txt": lambda p: p.touch(),
    ".hidden.png": lambda p: p.touch(),
}


def test_a_folder_of_odd_files_is_enhanced_or_fails_by_line(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, write in {**{n: w for n, (w, _) in FINE.items()}, **BAD, **PASSED}.items():
        write(folder / name)
    outcome = enhance_files(network(), [folder], out, settings=FileSettings(recursive=True))
    assert len(outcome.failures) == len(BAD)
    for name in BAD:
        assert sum(name in line for line in outcome.failures) == 1, name
    assert len(outcome.written) == len(FINE)
    by_stem = {path.name.split("_x2")[0]: path for path in outcome.written}
    for name, (_, mode) in FINE.items():
        result = by_stem.get(Path(name).stem) or by_stem[name]
        with Image.open(result) as opened, Image.open(folder / name) as given:
            assert (opened.mode, opened.size) == (mode, (2 * given.width, 2 * given.height)), name
            assert (read_photo(result).bits == 16) == ("deep" in name or "16" in name), name


def test_the_only_file_raises(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png"):
        enhance_files(network(), [tmp_path], tmp_path / "out")
    _truncated(tmp_path / "a.png")
    with pytest.raises(DataError, match="truncated"):
        enhance_files(network(), [tmp_path], tmp_path / "out")


# --- What is kept
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(("bits", "suffix"), [(8, ".png"), (8, ".tif"), (8, ".webp"), (16, ".png")])
def test_colours_opacity_and_depth_are_kept(scale: int, bits: int, suffix: str, tmp_path: Path) -> None:
    image, alpha = noise(5, 7), noise(5, 7, 1)[:1]
    path = tmp_path / f"a{suffix}"
    write_image(image, path, bits=bits, alpha=alpha, profile=SRGB)
    (result,) = enhance_files(network(scale), [path], tmp_path / "out").written
    assert result.suffix == suffix
    photo = read_photo(result)
    assert photo.bits == bits
    assert photo.profile == SRGB
    given = read_photo(path)
    assert given.alpha is not None
    assert photo.alpha is not None
    expected = given.alpha if scale == 1 else bicubic_upscale(given.alpha, scale).clamp(0, 255 if bits == 8 else 1)
    assert (photo.alpha.double() - expected.double()).abs().max() <= 1 / 65535 * (bits == 16)
    shown = (alpha > 0).expand(3, -1, -1) if suffix == ".webp" else torch.ones(3, 5, 7, dtype=torch.bool)
    assert torch.equal(photo.image[repeated(shown, scale)], repeated(given.image, scale)[repeated(shown, scale)])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("count", [1, 3])
def test_grey_and_colour_of_any_depth_come_back(bits: int, suffix: str, count: int, tmp_path: Path) -> None:
    values = torch.rand(count, 6, 9) if bits == 16 else noise(6, 9)[:count]
    write_image(values, tmp_path / f"a{suffix}", bits=bits)
    (result,) = enhance_files(network(1), [tmp_path / f"a{suffix}"], tmp_path / "out").written
    assert result.name == f"a_restored{suffix}"
    assert torch.equal(read_image(result, channels=count), read_image(tmp_path / f"a{suffix}", channels=count))
    assert read_photo(result).grey == (count == 1)


def test_exif_is_kept_upright_and_without_sizes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0xA002] = 8
    exif.get_ifd(0x8769)[0x829A] = 0.01
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    for form in ("png", "jpg", "webp", "tif"):
        settings = FileSettings(format=form)  # type: ignore[arg-type]
        (result,) = enhance_files(network(), [tmp_path / "a.jpg"], tmp_path / "out", settings=settings).written
        with Image.open(result) as opened:
            found = opened.getexif()
            assert opened.size == (8, 16)
            assert found[0x010F] == "Maker"
            assert 0x0112 not in found or found[0x0112] == 1
            details = found.get_ifd(0x8769)
            assert (0xA002 in details, float(details[0x829A])) == (False, 0.01)


TURNED: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "8 bits": (".tif", lambda picture: picture),
    "16 bits": (".tif", lambda picture: picture.convert("L").convert("I").point(lambda v: v * 257).convert("I;16")),
    "alpha": (".tif", lambda picture: picture.convert("RGBA")),
    "jpeg": (".jpg", lambda picture: picture),
    "png": (".png", lambda picture: picture),
}
"""Files that are turned, by suffix and from an RGB picture."""


@pytest.mark.parametrize("by_xmp", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_files_of_any_kind_come_back_upright(orientation: int, by_xmp: bool, tmp_path: Path) -> None:
    given = Image.frombytes("RGB", (5, 4), noise(4, 5).numpy().tobytes())
    exif, xmp = Image.Exif(), f'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
    exif[700 if by_xmp else 0x0112] = xmp.encode() if by_xmp else orientation
    for kind, (suffix, convert) in TURNED.items():
        if by_xmp and suffix != ".tif":
            continue
        path, flat = tmp_path / f"{kind}{suffix}", tmp_path / f"flat {kind}{suffix}"
        convert(given).save(path, exif=exif)
        convert(given).save(flat)
        (result,) = enhance_files(network(1), [path], tmp_path / "out").written
        image = read_image(path)
        assert torch.equal(read_image(result), image), kind
        assert torch.equal(image, upright(read_image(flat), orientation)), kind
        assert image_size(path) == image.shape[-2:], kind


def test_converted_colours_say_so(tmp_path: Path) -> None:
    swapped = SRGB.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ")
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for name, profile, names_srgb in (("a", swapped, True), ("b", other, False), ("c", b"none", False)):
        Image.new("RGB", (6, 4), "red").save(tmp_path / f"{name}.png", icc_profile=profile)
        (result,) = enhance_files(network(), [tmp_path / f"{name}.png"], tmp_path / "out").written
        found = read_photo(result)
        assert (found.profile is not None) == names_srgb
        assert found.profile != swapped
        assert (found.image[0, 0, 0] > 200) != names_srgb  # red by the profile is blue in sRGB
        assert torch.equal(read_image(result)[:, 0, 0], read_image(tmp_path / f"{name}.png")[:, 0, 0])


# --- Formats and names
def test_formats_and_bits_are_chosen(tmp_path: Path) -> None:
    write_image(noise(4, 6), tmp_path / "a.png", bits=16)
    for form, bits, found in (("jpg", None, 8), ("png", 8, 8), ("tif", None, 16), ("webp", 8, 8)):
        settings = FileSettings(format=form, bits=bits, existing="overwrite")  # type: ignore[arg-type]
        (result,) = enhance_files(network(), [tmp_path / "a.png"], tmp_path / form, settings=settings).written
        assert (result.name, read_photo(result).bits) == (f"a_x2.{form}", found)
    with pytest.raises(DataError, match="format jpg holds 8 bits"):
        FileSettings(format="jpg", bits=16)
    write_image(noise(4, 6), tmp_path / "b.png", alpha=noise(4, 6)[:1])
    with pytest.raises(DataError, match=r"transparency, which \.jpg does not hold"):
        plan_files(network(), [tmp_path / "b.png"], tmp_path, FileSettings(format="jpg"))
    write_image(noise(1, 9000), tmp_path / "c.png")
    with pytest.raises(DataError, match=r"18000x2 px.*16383 px"):
        plan_files(network(), [tmp_path / "c.png"], tmp_path, FileSettings(format="webp"))


def test_equal_names_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        write_image(noise(4, 6), tmp_path / name)
    outcome = enhance_files(network(), [tmp_path], tmp_path / "out")
    assert names(outcome, tmp_path / "out") == ["a.jpg_x2.png", "a.png_x2.png", "b_x2.png"]
    (tmp_path / "more").mkdir()
    write_image(noise(4, 6), tmp_path / "more" / "a.png")
    with pytest.raises(DataError, match="several results would be written to one file"):
        enhance_files(network(), [tmp_path / "a.png", tmp_path / "more" / "a.png"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_results_that_exist_are_refused_skipped_or_overwritten(tmp_path: Path) -> None:
    for name in "abc":
        write_image(noise(4, 6), tmp_path / f"{name}.png")
    touch(tmp_path / "out", "a_x2.png", "b_x2.png")
    with pytest.raises(DataError, match="exist already") as caught:
        enhance_files(network(), [tmp_path], tmp_path / "out")
    assert len(caught.value.problems) == 2
    outcome = enhance_files(network(), [tmp_path], tmp_path / "out", settings=FileSettings(existing="skip"))
    assert (names(outcome, tmp_path / "out"), len(outcome.skipped)) == (["c_x2.png"], 2)
    assert not (tmp_path / "out" / "a_x2.png").stat().st_size
    outcome = enhance_files(network(), [tmp_path], tmp_path / "out", settings=FileSettings(existing="overwrite"))
    assert len(outcome.written) == 3


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    for name in ("a.png", "a_x2.png"):
        write_image(noise(4, 6), tmp_path / name)
    before = (tmp_path / "a_x2.png").read_bytes()
    with pytest.raises(DataError, match="replace images that are given as inputs"):
        enhance_files(network(), [tmp_path], tmp_path, settings=FileSettings(existing="overwrite"))
    assert (tmp_path / "a_x2.png").read_bytes() == before


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_results_never_replace_an_input_by_another_name(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    write_image(noise(4, 6), tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    link(tmp_path / "out" / "a_x2.png", tmp_path / "a.png")
    with pytest.raises(DataError, match="replace images that are given as inputs"):
        plan_files(network(), [tmp_path / "a.png"], tmp_path / "out", FileSettings(existing="overwrite"))


def test_of_a_pair_only_missing_results_are_written(stereo: StereoModel, tmp_path: Path) -> None:
    for name, view in zip(("a.png", "b.png"), pair(), strict=True):
        write_image(view, tmp_path / name)
    (tmp_path / "a.png").rename(tmp_path / "b_x2.png")  # the first view has the name of the second result
    before = (tmp_path / "b_x2.png").read_bytes()
    given, skip = [tmp_path / "b_x2.png", tmp_path / "b.png"], FileSettings(existing="skip")
    outcome = enhance_files(stereo, given, tmp_path, settings=skip)
    assert names(outcome, tmp_path) == ["b_x2_x2.png"]
    assert outcome.skipped == (tmp_path / "b_x2.png",)
    assert (tmp_path / "b_x2.png").read_bytes() == before


def test_a_result_that_appears_meanwhile_is_skipped(tmp_path: Path) -> None:
    write_image(noise(4, 6), tmp_path / "a.png")
    skip = FileSettings(existing="skip")
    work = plan_files(network(), [tmp_path], tmp_path / "out", skip)
    touch(tmp_path / "out", "a_x2.png")
    outcome = run_files(network(), work, skip)
    assert (outcome.written, outcome.skipped) == ((), (tmp_path / "out" / "a_x2.png",))


def test_results_are_not_enhanced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p.png", "q/r.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        write_image(noise(4, 6), name)
    again = FileSettings(recursive=True, existing="skip")
    for inputs, out in ((["."], "."), (["**/*.png", "**/*.jpg"], "new"), (["*.png", "q/*.jpg"], ".")):
        enhance_files(network(), inputs, out, settings=again)
        before = sorted(Path().rglob("*.*"))
        outcome = enhance_files(network(), inputs, out, settings=again)
        assert outcome.written == ()
        assert sorted(Path().rglob("*.*")) == before
    outcome = enhance_files(network(), ["."], ".", settings=again)
    assert Path("p_x2.png") in outcome.left_out
    jpeg = FileSettings(format="jpg", existing="skip")
    outcome = enhance_files(network(), ["p.png", "p_x2.png"], ".", settings=jpeg)
    assert names(outcome, Path()) == ["p_x2.jpg", "p_x2_x2.jpg"]  # given by name
    assert Path("p_x2.jpg") in plan_files(network(), ["."], ".", again).left_out


def test_pipes_are_not_taken_and_refused_by_name(tmp_path: Path) -> None:
    write_image(noise(4, 6), tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    for given in (tmp_path, tmp_path / "*.png"):
        work = plan_files(network(), [given], tmp_path / "out", FileSettings())
        assert ([job.files for job in work.jobs], work.failures) == ([(tmp_path / "a.png",)], ())
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match=rf"{name} is a pipe, a socket or a device"):
            plan_files(network(), [tmp_path / name], tmp_path / "out", FileSettings())


# --- Networks that fail
class Odd(nn.Module):
    """Fails in another way for each width of image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        if width == 5:
            raise KeyError("two\nlines")
        return x[..., :-1] if width == 6 else x * torch.nan if width == 7 else x


def test_whatever_a_network_raises_is_a_line_that_begins_with_the_file(tmp_path: Path) -> None:
    base = lowpeft.describe(Odd(), scale=1, channels=3, value_range=(0, 1), size_multiple=1, min_px=1)
    for width in (5, 6, 7, 8):
        write_image(noise(4, width), tmp_path / f"{width}.png")
    outcome = enhance_files(base, [tmp_path], tmp_path / "out")
    assert names(outcome, tmp_path / "out") == ["8_restored.png"]
    assert [line.partition(": ")[0] for line in outcome.failures] == [str(tmp_path / f"{w}.png") for w in (5, 6, 7)]
    assert [line.count(str(tmp_path)) for line in outcome.failures] == [1, 1, 1]
    assert "KeyError: 'two\\nlines'" in outcome.failures[0]
    with pytest.raises(KeyError) as caught:
        enhance_files(base, [tmp_path / "5.png"], tmp_path / "out")
    assert str(tmp_path / "5.png") in caught.value.__notes__[0]
    with pytest.raises(DataError, match=r"^\S*6\.png: the network"):
        enhance_files(base, [tmp_path / "6.png"], tmp_path / "out")


def test_folders_and_patterns_are_searched_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/b/c.png", "in/b/d.jpg", "in/out/old.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_image(noise(4, 6), name)
    out = Path("in/out")
    recursive = FileSettings(recursive=True, existing="overwrite")
    assert names(enhance_files(network(), ["in"], out), out) == ["a_x2.png"]
    assert names(enhance_files(network(), ["in"], out, settings=recursive), out) == [
        "a_x2.png",
        "b/c_x2.png",
        "b/d_x2.png",
    ]
    new = Path("new")
    assert names(enhance_files(network(), ["in/*/*.png"], new), new) == [
        "b/c_x2.png",
        "out/a_x2_x2.png",
        "out/old_x2.png",
    ]
    with pytest.raises(DataError) as caught:
        enhance_files(network(), ["in/*.tif", "none.png", "in/b/**c", "new"], new)
    assert len(caught.value.problems) == 4


# --- Two views
def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(6, 8, seed), noise(6, 8, seed + 100)


def jps(path: Path, *, flags: int | None) -> None:
    """A lossless stand-in: PNG has no segments, so a JPEG of two flat halves."""
    picture = Image.new("RGB", (32, 16), "red")
    picture.paste("blue", (16, 0, 32, 16))
    picture.save(path, "JPEG", quality=95)
    if flags is not None:
        block = b"_JPSJPS_" + bytes([0, 4, 0, flags, 2, 1])
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe3" + (len(block) + 2).to_bytes(2, "big") + block + data[2:])


@pytest.mark.parametrize(("flags", "first"), [(None, "right"), (0, "right"), (4, "left")])
def test_a_jps_contains_both_views(flags: int | None, first: str, stereo: StereoModel, tmp_path: Path) -> None:
    jps(tmp_path / "a.jps", flags=flags)
    outcome = enhance_files(stereo, [tmp_path / "a.jps"], tmp_path / "out")
    assert names(outcome, tmp_path / "out") == ["a_left_x2.png", "a_right_x2.png"]
    red = read_image(tmp_path / "out" / f"a_{first}_x2.png")
    assert red.shape == (3, 32, 32)
    assert red[0].float().mean() > 200 > 100 > red[2].float().mean()


def test_an_mpo_contains_both_views(stereo: StereoModel, tmp_path: Path) -> None:
    red, blue, small = (Image.new("RGB", (16, size), c) for c, size in (("red", 16), ("blue", 16), ("blue", 8)))
    red.save(tmp_path / "a.mpo", save_all=True, append_images=[blue])
    outcome = enhance_files(stereo, [tmp_path], tmp_path / "out")
    left, right = (read_image(path).float().mean((1, 2)) for path in outcome.written)
    assert left[0] > 200 > right[0]
    red.save(tmp_path / "a.mpo", save_all=True, append_images=[small])
    with pytest.raises(DataError, match="a photo and its preview"):
        enhance_files(stereo, [tmp_path / "a.mpo"], tmp_path / "new")


def test_side_by_side_views_are_cut_apart(stereo: StereoModel, tmp_path: Path) -> None:
    left, right = pair()
    write_image(torch.cat([right, left], dim=-1), tmp_path / "a.png")
    settings = FileSettings(side_by_side="right-left")
    outcome = enhance_files(stereo, [tmp_path], tmp_path / "out", settings=settings)
    for path, view in zip(outcome.written, (left, right), strict=True):
        assert torch.equal(read_image(path), repeated(view))
    write_image(noise(6, 7), tmp_path / "a.png")
    with pytest.raises(DataError, match="7 px wide"):
        plan_files(stereo, [tmp_path], tmp_path / "new", settings)
    with pytest.raises(DataError, match="for stereo models"):
        plan_files(network(), [tmp_path], tmp_path / "new", settings)


@pytest.mark.parametrize(
    ("left", "right"),
    [("a_L.png", "a_R.png"), ("left/a.png", "right/a.png"), ("a/im0.png", "a/im1.png"), ("left_a.png", "right_a.png")],
)
def test_pairs_of_a_folder_are_found_by_name(left: str, right: str, stereo: StereoModel, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name, view in zip((left, right), pair(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(view, folder / name)
    work = plan_files(stereo, [folder], out, FileSettings())
    assert [job.files for job in work.jobs] == [(folder / left, folder / right)]
    assert names(run_files(stereo, work), out) == sorted(n.replace(".", "_x2.") for n in (left, right))


def test_views_without_partner_fail_by_line(stereo: StereoModel, tmp_path: Path) -> None:
    for name in ("a_L.png", "a_R.png", "b_L.png", "c_L.png", "c_L.jpg", "c_R.png", "d.png"):
        write_image(noise(4, 6), tmp_path / name)
    outcome = enhance_files(stereo, [tmp_path], tmp_path / "out")
    assert names(outcome, tmp_path / "out") == ["a_L_x2.png", "a_R_x2.png"]
    assert [any(n in line for line in outcome.failures) for n in ("b_L.png: has no right", "c_L.png", "d.png")] == [
        True
    ] * 3


def test_views_of_one_name_are_told_apart(stereo: StereoModel, tmp_path: Path) -> None:
    files = [tmp_path / "left" / "a.png", tmp_path / "right" / "a.jpg"]
    for path, view in zip(files, pair(), strict=True):
        path.parent.mkdir()
        write_image(view, path)
    assert names(enhance_files(stereo, files, tmp_path / "out"), tmp_path / "out") == [
        "a_left_x2.png",
        "a_right_x2.png",
    ]


def test_two_files_are_the_views(stereo: StereoModel, tmp_path: Path) -> None:
    for name, view in zip(("one.png", "two.jpg"), pair(), strict=True):
        write_image(view, tmp_path / name)
    outcome = enhance_files(stereo, [tmp_path / "one.png", tmp_path / "two.jpg"], tmp_path / "out")
    assert [path.name for path in outcome.written] == ["one_x2.png", "two_x2.png"]


# --- Memory and precision
class Wide(nn.Module):
    """Convolutions whose features take much memory; `pool` adds the mean of the whole image."""

    def __init__(self, *, pool: bool) -> None:
        super().__init__()
        self.first, self.last, self.pool = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1), pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x)
        return self.last(features + features.mean((-2, -1), keepdim=True) if self.pool else features)


def wide(*, pool: bool = False, strips: bool = True) -> lowpeft.Backbone:
    torch.manual_seed(0)
    return lowpeft.describe(
        Wide(pool=pool), scale=1, channels=3, value_range=(0, 1), size_multiple=1, min_px=1, strips=strips
    )


@pytest.mark.parametrize("pool", [False, True])
def test_an_image_that_needs_more_than_is_free_is_run_in_strips(
    pool: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(noise(600, 40), tmp_path / "a.png")
    said: list[str] = []
    for name, free in (("whole", 10_000.0), ("strips", 20.0)):
        monkeypatch.setattr("lowpeft.restoration.enhancing.room.free_mb", lambda device, free=free: free)
        model = wide(pool=pool)
        work = plan_files(model, [tmp_path / "a.png"], tmp_path / name, FileSettings())
        run_files(model, work, say=said.append)
        assert len(said) == (0 if name == "whole" else 1 + pool)
    whole, strips = (read_image(tmp_path / name / "a_restored.png") for name in ("whole", "strips"))
    assert torch.equal(whole, strips) != pool
    assert "run in strips" in said[0]


def test_out_of_memory_is_tried_once_more_with_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_image(noise(8, 8), tmp_path / f"{name}.png")
    limits: list[float | None] = []

    def fails(*arguments: object, tiling: Tiling, **options: object) -> None:
        limits.append(tiling.memory_mb)
        raise torch.OutOfMemoryError("of the device")

    monkeypatch.setattr("lowpeft.restoration.enhancing.running.enhance_views", fails)
    outcome = enhance_files(wide(), [tmp_path], tmp_path / "out", settings=FileSettings(memory_mb=100))
    assert limits == [100, 50, 100, 50]
    assert ["--memory-mb" in line for line in outcome.failures] == [True, True]
    limits.clear()
    with pytest.raises(LowpeftError, match=r"a\.png does not fit"):
        enhance_files(wide(strips=False), [tmp_path / "a.png"], tmp_path / "out")
    assert limits == [None]


def test_the_free_memory_is_known_here() -> None:
    free = free_mb(torch.device("cpu"))
    assert free is not None
    assert free > 1
    assert free_mb(torch.device("meta")) is None
    assert Room(wide(), None, print).needed_mb((640, 640)) > 4 * Room(wide(), None, print).needed_mb((160, 320))


def test_bf16_is_near_and_fp16_is_for_gpus(tmp_path: Path) -> None:
    write_image(noise(24, 24), tmp_path / "a.png")
    images = []
    for precision in ("fp32", "bf16"):
        settings = FileSettings(precision=precision)  # type: ignore[arg-type]
        (result,) = enhance_files(wide(), [tmp_path / "a.png"], tmp_path / precision, settings=settings).written
        images.append(read_image(result).int())
    assert 0 < (images[0] - images[1]).abs().max() <= 4
    with pytest.raises(DataError, match="fp16 is for GPUs"):
        enhance_files(wide(), [tmp_path / "a.png"], tmp_path / "out", settings=FileSettings(precision="fp16"))


def test_one_view_alone_is_an_error(stereo: StereoModel, tmp_path: Path) -> None:
    write_image(noise(16, 24), tmp_path / "a_L.png")
    with pytest.raises(DataError, match=r"a_L\.png.* has no right view"):
        enhance_files(stereo, [tmp_path / "a_L.png"], tmp_path / "out")
