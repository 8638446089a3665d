"""Files and folders as cameras, microscopes and data sets have them: 12 bits, pages, inverted values, bursts."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import tifffile
import torch
from PIL import Image

from lowpeft.cli.main import main
from lowpeft.errors import DataError, LowpeftError
from lowpeft.restoration.data import Crops, Loading, find_scenes, load_example, prepare, reading
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.images import depth_remark, image_size, read_image, write_image
from scene_files import noise, touch

TWELVE_BITS = 4095


def deep(path: Path, *, most: int = TWELVE_BITS, photometric: str = "minisblack") -> numpy.ndarray:
    """Write a grey TIFF of 16 bits, 24x32 px, with values from 0 to `most`, and return them."""
    values = numpy.linspace(0, most, 24 * 32).astype(numpy.uint16).reshape(24, 32)
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, values, photometric=photometric)
    return values


def test_the_white_level_reaches_examples_and_crops(tmp_path: Path) -> None:
    values = deep(tmp_path / "GT" / "a.tif")
    deep(tmp_path / "LQ" / "a.tif")
    loading = Loading(white_level=TWELVE_BITS, channels=1)
    scenes = find_scenes(tmp_path, views=1, scale=1)
    expected = torch.from_numpy(values.astype("float32"))[None] / TWELVE_BITS
    assert torch.equal(load_example(scenes[0], 1, loading=loading).hr[0], expected)
    crops = Crops(scenes, 1, crop_px=(24, 32), augment=False, loading=loading)
    assert torch.equal(crops[0][1][0], expected)
    assert read_image(tmp_path / "GT" / "a.tif").max() < 0.07


def test_values_above_the_white_level_are_refused(tmp_path: Path) -> None:
    deep(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif has values up to 4095, above the white level of 1023"):
        read_image(tmp_path / "a.tif", white_level=1023)
    with pytest.raises(DataError, match="from 1 to 65535, not 0"):
        Loading(white_level=0)


@pytest.mark.parametrize(("most", "bits"), [(900, 10), (1023, 10), (4095, 12), (16383, 14), (16384, None), (0, None)])
def test_files_of_fewer_bits_are_remarked(most: int, bits: int | None, tmp_path: Path) -> None:
    deep(tmp_path / "a.tif", most=most)
    remark = depth_remark([tmp_path / "a.tif", tmp_path / "missing.tif"])
    assert (f"--white-level {2**bits - 1}" in remark) if bits else not remark
    assert not depth_remark([tmp_path / "a.tif"], white_level=20000)


def test_evaluate_says_it_once_and_takes_the_white_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        deep(tmp_path / "HR" / f"{name}.tif")
    command = ["evaluate", "--bicubic", "--scale", "2", "--data", str(tmp_path / "HR"), "--protocol", "rgb"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("--white-level 4095") == 1
    assert main([*command, "--white-level", "4095"]) == 0
    assert "--white-level" not in capsys.readouterr().err


def test_a_tiff_in_which_zero_is_white_is_inverted(tmp_path: Path) -> None:
    values = deep(tmp_path / "a.tif", photometric="miniswhite")
    expected = 1 - torch.from_numpy(values.astype("float32")) / TWELVE_BITS
    assert torch.equal(read_image(tmp_path / "a.tif", channels=1, white_level=TWELVE_BITS)[0], expected)


@pytest.mark.parametrize(
    ("suffix", "parts"), [("tif", "pages"), ("png", "frames"), ("gif", "frames"), ("webp", "frames")]
)
def test_files_of_several_images_are_refused(suffix: str, parts: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=rf"a\.{suffix} contains 3 {parts}.*a file of its own"):
            read(tmp_path / f"a.{suffix}")


def test_a_smaller_copy_in_a_tiff_and_a_preview_in_a_photo_are_no_pages(tmp_path: Path) -> None:
    pixels = numpy.full((8, 8, 3), 200, numpy.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, photometric="rgb")
        file.write(pixels[::2, ::2] // 2, photometric="rgb", subfiletype=1)
    assert torch.equal(read_image(tmp_path / "a.tif"), torch.full((3, 8, 8), 200, dtype=torch.uint8))
    photo = Image.fromarray(pixels)
    photo.save(tmp_path / "a.mpo", save_all=True, append_images=[photo])
    assert image_size(tmp_path / "a.mpo") == (8, 8)


@pytest.mark.parametrize(
    ("files", "scale", "shared"),
    [
        ("GT/1.png GT/2.png LQ/1_1.png LQ/1_2.png LQ/2_1.png", 1, {"1_1": "1", "1_2": "1", "2_1": "2"}),
        ("GT/901.png LQ/901x1.png LQ/901x2.png", 1, {"901x1": "901", "901x2": "901"}),
        ("GT/norain-1.png rain/rain-1-01.png rain/rain-1-02.png", 1,
         {"rain-1-01": "norain-1", "rain-1-02": "norain-1"}),
    ],
)  # fmt: skip
def test_several_degraded_images_share_their_clean_one(
    files: str, scale: int, shared: dict[str, str], tmp_path: Path
) -> None:
    touch(tmp_path, *files.split())
    scenes = find_scenes(tmp_path, views=1, scale=scale)
    assert {scene.name: scene.hr[0].stem for scene in scenes} == shared
    assert all(scene.lr[0].stem == scene.name for scene in scenes)


@pytest.mark.parametrize(
    ("files", "scale"),
    [
        ("GT/1.png GT/2.png LQ/1_1.png LQ/1_2.png", 1),
        ("GT/1.png LQ/1_1.png LQ/1_2.png LQ/3_1.png", 1),
        ("HR/0001.png LR/0001x2.png LR/0001x4.png", 4),
    ],
)
def test_a_clean_or_degraded_image_alone_is_refused(files: str, scale: int, tmp_path: Path) -> None:
    touch(tmp_path, *files.split())
    with pytest.raises(DataError, match="not every image"):
        find_scenes(tmp_path, views=1, scale=scale)


def test_shared_clean_images_are_said_and_may_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "GT/1.png", "GT/2.png", *(f"LQ/{n}_{i}.png" for n in (1, 2) for i in range(3)))
    line = "6 images from GT (layout folders); degraded images read from LQ, 3 of each of 2 clean images"
    assert reading(find_scenes(".", views=1, scale=1), 1) == line
    Path("list.txt").write_text("2.png\n", encoding="utf-8")
    assert [s.name for s in find_scenes(".", views=1, scale=1, meta_info="list.txt")] == ["2_0", "2_1", "2_2"]


def test_low_beside_normal_is_degraded_beside_clean(tmp_path: Path) -> None:
    touch(tmp_path, "Low/low1.png", "Normal/normal1.png")
    (scene,) = find_scenes(tmp_path, views=1, scale=1)
    assert (scene.hr[0].parent.name, scene.lr[0].parent.name) == ("Normal", "Low")


def test_prepare_writes_what_a_degradation_makes(tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    write_image(noise(16, 24), tmp_path / "HR" / "a.png")
    scenes, loading = find_scenes(tmp_path / "HR", views=1), Loading(degrade=degradation("noise:5..50"))
    assert prepare(scenes, tmp_path / "out", 1, loading=loading) == 1
    made = read_image(tmp_path / "out" / "LR_x1" / "a.png")
    expected = load_example(scenes[0], 1, loading=loading).lr[0]
    assert (made / 255 - expected.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert prepare(scenes, tmp_path / "out", 1, loading=loading) == 0
    with pytest.raises(DataError, match="degrade was"):
        prepare(scenes, tmp_path / "out", 1, loading=Loading(degrade=degradation("noise:5")))


def test_a_grey_span_that_subtracts_three_means_is_refused(tmp_path: Path) -> None:
    span = pytest.importorskip("spandrel.architectures.SPAN").SPAN
    from lowpeft.backbones.opening import load_backbone

    network = span(num_in_ch=1, num_out_ch=1, feature_channels=8, upscale=2)
    torch.save({"params": network.state_dict()}, tmp_path / "span.pth")
    with pytest.raises(LowpeftError, match=r"SPAN for images of 1 channels.*norm=False"):
        load_backbone(tmp_path / "span.pth")
