"""Degradations: each step against its definition, the chains' form, repeatability, and crops and scenes made so."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lowpeft.errors import DataError
from lowpeft.restoration.data import Crops, Loading, Scene, load_example
from lowpeft.restoration.degradations import PRESETS, degradation
from lowpeft.restoration.degradations.kernels import bell, sinc
from lowpeft.restoration.images import matlab_downscale, read_image, to_float, write_image


def textured(height: int = 48, width: int = 64, channels: int = 3, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, channels, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (fine * 255).round().to(torch.uint8)


def made(text: str, image: Tensor, *key: str | int, scale: int = 1) -> Tensor:
    return degradation(text).views([image], scale, *(key or ("key",)))[0]


def test_noise_has_its_standard_deviation_and_is_not_clipped() -> None:
    grey = torch.full((3, 200, 200), 255, dtype=torch.uint8)
    noise = made("noise:25", grey) - 1
    assert noise.std().item() == pytest.approx(25 / 255, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.001)
    assert noise.max() > 0.2
    channels = torch.corrcoef(noise.flatten(1))
    assert (channels - torch.eye(3)).abs().max() < 0.02


def test_noise_of_a_range_has_many_strengths() -> None:
    grey = torch.full((1, 100, 100), 128, dtype=torch.uint8)
    sigmas = [255 * made("noise:5..50", grey, i).std().item() for i in range(60)]
    assert 4.5 < min(sigmas) < 10
    assert 45 < max(sigmas) < 52
    assert np.mean(sigmas) == pytest.approx(27.5, abs=5)


def test_shot_noise_grows_with_the_root_of_the_value() -> None:
    for value in (64, 255):
        noise = made("poisson:400", torch.full((3, 200, 200), value, dtype=torch.uint8))
        assert noise.std().item() == pytest.approx(math.sqrt(value / 255 / 400), rel=0.02)


def test_blur_of_a_point_is_the_gaussian() -> None:
    point = torch.zeros(1, 33, 33, dtype=torch.uint8)
    point[0, 16, 16] = 255
    y, x = torch.meshgrid(torch.arange(-16.0, 17), torch.arange(-16.0, 17), indexing="ij")
    expected = torch.exp(-(x**2 + y**2) / (2 * 1.6**2))
    assert (made("blur:1.6", point)[0] - expected / expected.sum()).abs().max() < 1e-5


def test_jpeg_is_what_pillow_writes_and_reads() -> None:
    image = textured()
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=30)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(made("jpeg:30", image), to_float(expected))


def test_jpeg_of_a_grey_image_has_one_channel() -> None:
    assert made("jpeg:10", textured(channels=1)).shape == (1, 48, 64)


def test_down_is_matlabs_bicubic_and_rounds_only_when_asked() -> None:
    image = textured()
    small = made("down:4", image, scale=4)
    rounded = matlab_downscale(image, 4)
    assert (small.clamp(0, 1) - to_float(rounded)).abs().max() < 2 / 255  # of uint8 images, MATLAB rounds twice
    assert not torch.equal(small, to_float(rounded))
    eight = made("down:4,8bit", image, scale=4) * 255
    assert (eight - eight.round()).abs().max() < 1e-4


def test_steps_run_in_the_order_given() -> None:
    image = textured()
    assert made("noise:25,blur:2", image).std() < made("blur:2,noise:25", image).std()
    assert made("noise:50,8bit", image).amax() <= 1 < made("noise:50", image).amax()


@pytest.mark.parametrize("text", ["noise:25", "blur:1..3,noise:0..50,jpeg:30..90", *PRESETS])
def test_the_key_alone_decides(text: str) -> None:
    image = textured()
    before = torch.random.get_rng_state()
    assert torch.equal(made(text, image, 1, "a"), made(text, image, 1, "a"))
    assert not torch.equal(made(text, image, 1, "a"), made(text, image, 2, "a"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_views_of_a_pair_have_one_strength_and_noise_of_their_own() -> None:
    grey = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    left, right = degradation("noise:5..50").views([grey, grey], 1, 3)
    assert left.std().item() == pytest.approx(right.std().item(), rel=0.03)
    assert not torch.equal(left, right)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_the_networks_size_in_eight_bits(name: str, scale: int) -> None:
    image, changed = textured(), 0
    for i in range(12):
        result = made(name, image, i, scale=scale)
        assert result.shape == (3, 48 // scale, 64 // scale)
        assert 0 <= result.min() <= result.max() <= 1
        assert (result * 255 - (result * 255).round()).abs().max() < 1e-4
        changed += not torch.equal(result, made(name, image, i + 1, scale=scale))
    assert changed == 12


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_grey_images_and_pairs(name: str) -> None:
    for i in range(8):
        results = degradation(name).views([textured(channels=1), textured(channels=1, seed=1)], 2, i)
        assert [r.shape for r in results] == [(1, 24, 32)] * 2


def test_kernels_sum_to_one_and_have_their_shapes() -> None:
    for kernel in (bell(21, (2, 1), 0.3), bell(21, (2, 2), 0, "generalised", 2), bell(21, (2, 1), 1, "plateau", 1.5)):
        assert kernel.sum().item() == pytest.approx(1)
        assert torch.allclose(kernel, kernel.flip(0, 1))
    along = bell(21, (3, 1), 0)  # three times as wide along x
    assert along[10, 13] / along[10, 10] == pytest.approx(math.exp(-0.5))
    assert along[11, 10] / along[10, 10] == pytest.approx(math.exp(-0.5))
    low_pass = sinc(21, math.pi / 3)
    assert low_pass.sum().item() == pytest.approx(1)
    assert low_pass.min() < 0 < low_pass[10, 10] == low_pass.max()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no step"),
        ("nois:25", "did you mean 'noise'"),
        ("noise", "noise:VALUE"),
        ("noise:", "neither a number"),
        ("noise:5_0", "neither a number"),
        (None, "written as text.*not None"),
        (5, "written as text.*not 5"),
        ("noise:loud", "neither a number nor LOW..HIGH"),
        ("noise:0", "above 0 to 255"),
        ("noise:nan", "above 0 to 255"),
        ("noise:50..5", "smaller value comes first"),
        ("noise:1..2..3", "neither a number"),
        ("jpeg:30.5", "whole numbers"),
        ("jpeg:0..50", "from 1 to 95"),
        ("down:2..4", "one value"),
        ("8bit:3", "has no value"),
        ("bsrgan,noise:5", "bsrgan is a whole chain"),
        ("rain", "--data-lr"),
        ("blur:-1,nois:3", "(?s)blur:-1.*nois"),
    ],
)
def test_what_is_no_degradation_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        degradation(text)


@pytest.mark.parametrize("text", ["noise:12.3456789", "noise:0.1..0.30000000000000004", "poisson:1e6", "blur:1e-7"])
def test_what_is_printed_is_read_as_the_same(text: str) -> None:
    assert degradation(str(degradation(text))) == degradation(text)


@pytest.mark.parametrize(
    ("text", "images", "scale", "message"),
    [
        ("noise:25", [], 1, "at least one image"),
        ("noise:25", [textured(), textured(40)], 1, r"one size, but these are \(3, 48, 64\), \(3, 40, 64\)"),
        ("noise:25", [None], 1, "image tensors .*not NoneType"),
        ("noise:25", [textured()[0]], 1, r"image tensors .*not \(48, 64\)"),
        ("poisson:9", [torch.full((3, 8, 8), math.nan)], 1, "NaN"),
        ("noise:25", [textured().float()], 1, "divide an image 0..255 by 255"),
        ("jpeg:30", [textured(channels=2)], 1, "JPEG takes .*not of 2"),
        ("bsrgan", [textured(channels=4)], 2, "JPEG takes .*not of 4"),
        ("bsrgan", [textured()[:, :9, :9]], 4, "multiples of the scale 4, but this one is 9x9"),
        ("down:2,down:2", [textured()[:, :6]], 4, "multiples of the scale 4"),
        ("bsrgan", [textured()], 0, "scale must be a whole number of at least 1, not 0"),
    ],
)
def test_images_that_cannot_be_degraded_are_refused(text: str, images: list[Tensor], scale: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        degradation(text).views(images, scale, "key")


def test_keys_are_texts_and_whole_numbers() -> None:
    assert torch.equal(made("noise:5", textured(), np.int64(1), "a"), made("noise:5", textured(), 1, "a"))
    with pytest.raises(DataError, match="texts and whole numbers"):
        made("noise:5", textured(), 0.5)


def test_printing_gives_the_text() -> None:
    assert str(degradation(" blur:1.20, down:4,noise:5..10 ,8bit")) == "blur:1.2,down:4,noise:5..10,8bit"


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [("noise:5", 4, "add down:4"), ("down:2", 4, "shrinks by 2"), ("down:2,down:2,noise:3", 1, "shrinks by 4")],
)
def test_another_scale_is_refused(text: str, scale: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(text, textured(), scale=scale)


def scenes(folder: Path, *names: str) -> list[Scene]:
    for seed, name in enumerate(names):
        write_image(textured(seed=seed), folder / f"{name}.png")
    return [Scene(name, (folder / f"{name}.png",)) for name in names]


def test_scenes_of_scale_1_without_degraded_images_are_refused(tmp_path: Path) -> None:
    (scene,) = scenes(tmp_path, "a")
    with pytest.raises(DataError, match=r"scale 1 needs degraded images.*--degrade noise:25"):
        load_example(scene, 1)
    with pytest.raises(DataError, match="scale 1 needs degraded images"):
        Crops([scene], 1, crop_px=(16, 16))


def test_a_scene_is_degraded_by_its_name_alone(tmp_path: Path) -> None:
    a, b = scenes(tmp_path, "a", "b")
    noise = degradation("noise:25")
    first = load_example(a, 1, loading=Loading(degrade=noise))
    assert torch.equal(first.lr[0], load_example(a, 1, loading=Loading(degrade=noise)).lr[0])
    assert torch.equal(first.hr[0], read_image(a.hr[0]))
    other = load_example(b, 1, loading=Loading(degrade=noise))
    assert not torch.equal(first.lr[0] - to_float(first.hr[0]), other.lr[0] - to_float(other.hr[0]))


def test_lr_files_are_not_read_where_a_degradation_is_given(tmp_path: Path) -> None:
    (scene,) = scenes(tmp_path, "a")
    missing = Scene("a", scene.hr, (tmp_path / "missing.png",))
    assert load_example(missing, 1, loading=Loading(degrade=degradation("noise:25"))).lr[0].shape == (3, 48, 64)
    assert len(Crops([missing], 1, crop_px=(16, 16), loading=Loading(degrade=degradation("noise:25")))[0]) == 2


def test_crops_are_degraded_anew_and_repeatably(tmp_path: Path) -> None:
    crops = Crops(
        scenes(tmp_path, "a"), 1, crop_px=(16, 16), augment=False, loading=Loading(degrade=degradation("noise:25"))
    )
    again = Crops(crops.scenes, 1, crop_px=(16, 16), augment=False, loading=Loading(degrade=degradation("noise:25")))
    noises = [lr - hr for lr, hr in (crops[i] for i in range(3))]
    assert torch.equal(again[2][0], crops[2][0])
    assert not torch.equal(noises[0], noises[1])
    assert torch.stack(noises).std().item() == pytest.approx(25 / 255, rel=0.1)


@pytest.mark.parametrize(("text", "scale"), [("blur:1.2", 1), ("blur:1.5,down:2", 2)])
def test_crops_see_the_surroundings_that_a_whole_image_has(tmp_path: Path, text: str, scale: int) -> None:
    (scene,) = scenes(tmp_path, "a")
    blur = degradation(text)
    whole = load_example(scene, scale, loading=Loading(degrade=blur))
    crops = Crops([scene], scale, crop_px=(16, 16), augment=False, loading=Loading(degrade=blur))
    small = 16 // scale
    for i in range(12):
        lr, hr = crops[i]
        places = [
            (y, x)
            for y in range(whole.lr[0].shape[1] - small + 1)
            for x in range(whole.lr[0].shape[2] - small + 1)
            if torch.equal(to_float(whole.hr[0])[:, y * scale : y * scale + 16, x * scale : x * scale + 16], hr[0])
        ]
        (y, x) = places[0]
        assert (whole.lr[0][:, y : y + small, x : x + small] - lr[0]).abs().max() < 1e-5
