"""Loading scenes: cut to whole LR pixels, checked, halved, and LR views made where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lowpeft.errors import DataError
from lowpeft.restoration.data import Example, Loading, Scene, find_scenes, load_example, read_clean_crops
from lowpeft.restoration.data.examples import usable_size
from lowpeft.restoration.images import matlab_downscale, matlab_halve, write_image
from scene_files import noise, write_pair


def hr_and_lr(folder: Path, hr_px: tuple[int, int], lr_px: tuple[int, int]) -> Scene:
    write_pair(folder / "hr", "a", *hr_px)
    write_pair(folder / "lr", "a", *lr_px, seed=7)
    (scene,) = find_scenes(folder / "hr", lr_folder=folder / "lr")
    return scene


# --- LR views
@pytest.mark.parametrize("border", ["symmetric", "replicate"])
def test_lr_views_are_made_from_the_whole_mod_cropped_view(tmp_path: Path, border: str) -> None:
    example = load_example(write_pair(tmp_path, "a", 18, 35), 4, loading=Loading(border=border))
    assert torch.equal(example.hr[0], noise(18, 35)[:, :16, :32])
    assert torch.equal(example.lr[1], matlab_downscale(noise(18, 35, 1000)[:, :16, :32], 4, border=border))


def test_lr_views_on_disk_are_used(tmp_path: Path) -> None:
    assert torch.equal(load_example(hr_and_lr(tmp_path, (18, 35), (4, 8)), 4).lr[1], noise(4, 8, 1007))


def test_single_images_have_one_view(tmp_path: Path) -> None:
    write_image(noise(9, 12), tmp_path / "a.png")
    example = load_example(Scene("a", (tmp_path / "a.png",)), 3)
    assert [tuple(v.shape) for v in (*example.lr, *example.hr)] == [(3, 3, 4), (3, 9, 12)]


# --- Middlebury's rule
@pytest.mark.parametrize("size", [(32, 64), (31, 61), (33, 62)])
def test_halving_comes_first_and_on_the_whole_view(tmp_path: Path, size: tuple[int, int]) -> None:
    """As `GenerateTrainingPatches.m` of iPASSR does: imresize by 1/2, then modcrop, then imresize by 1/scale."""
    example = load_example(write_pair(tmp_path, "a", *size), 4, loading=Loading(halve=True))
    halved = matlab_halve(noise(*size))
    hr = halved[:, : halved.shape[1] // 4 * 4, : halved.shape[2] // 4 * 4]
    assert torch.equal(example.hr[0], hr)
    assert torch.equal(example.lr[0], matlab_downscale(hr, 4))


def test_lr_views_on_disk_belong_to_the_halved_view(tmp_path: Path) -> None:
    example = load_example(hr_and_lr(tmp_path, (31, 64), (4, 8)), 4, loading=Loading(halve=True))
    assert torch.equal(example.lr[0], noise(4, 8, 7))
    with pytest.raises(DataError, match=r"64x31 px.* 8x4 px.* 16x7 px"):
        load_example(hr_and_lr(tmp_path, (31, 64), (7, 16)), 4, loading=Loading(halve=True))


def test_a_clean_rectangle_is_cut_before_halving(tmp_path: Path) -> None:
    example = load_example(write_pair(tmp_path, "a", 40, 64), 4, clean_crop=(5, 8, 60, 39), loading=Loading(halve=True))
    hr = matlab_halve(noise(40, 64)[:, 8:32, 8:56])
    assert torch.equal(example.hr[0], hr)
    assert torch.equal(example.lr[0], matlab_downscale(hr, 4))


# --- Clean rectangles
def test_a_clean_rectangle_is_rounded_inwards_to_lr_pixels(tmp_path: Path) -> None:
    example = load_example(write_pair(tmp_path, "a", 24, 40), 4, clean_crop=(3, 4, 37, 23))
    assert torch.equal(example.hr[1], noise(24, 40, 1000)[:, 4:20, 4:36])


def test_nothing_outside_a_clean_rectangle_enters_the_lr_views(tmp_path: Path) -> None:
    example = load_example(write_pair(tmp_path, "a", 24, 40), 4, clean_crop=(4, 4, 36, 20))
    assert torch.equal(example.lr[0], matlab_downscale(noise(24, 40)[:, 4:20, 4:36], 4))


def test_a_clean_rectangle_cuts_lr_views_on_disk_at_the_same_place(tmp_path: Path) -> None:
    example = load_example(hr_and_lr(tmp_path, (24, 40), (6, 10)), 4, clean_crop=(4, 4, 36, 20))
    assert torch.equal(example.lr[0], noise(6, 10, 7)[:, 1:5, 1:9])


@pytest.mark.parametrize(
    "rectangle", [(0, 0, 41, 24), (-1, 0, 8, 8), (8, 8, 8, 16), (9, 9, 11, 24)], ids=["wide", "left", "empty", "thin"]
)
def test_rectangles_that_do_not_fit_are_refused(tmp_path: Path, rectangle: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="scene a: "):
        load_example(write_pair(tmp_path, "a", 24, 40), 4, clean_crop=rectangle)


def test_clean_rectangles_are_read_from_the_manifest(tmp_path: Path) -> None:
    entries = [
        {"scene": "a", "clean_crop": [1, 2, 30, 14], "width": 32},
        {"scene": "b"},
        {"scene": "c", "clean_crop": None},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    assert read_clean_crops(tmp_path) == {"a": (1, 2, 30, 14)}


def test_the_rectangle_of_a_pair_is_that_of_its_views_as_single_images(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    (tmp_path / "manifest.json").write_text('[{"scene": "a", "clean_crop": [4, 4, 28, 12]}]')
    scenes, crops = find_scenes(tmp_path, views=1), read_clean_crops(tmp_path, views=1)
    found = [load_example(s, 4, clean_crop=crops.get(s.name)).hr[0] for s in scenes]
    assert [s.name for s in scenes] == ["a_L", "a_R"]
    assert torch.equal(found[1], noise(16, 32, 1000)[:, 4:12, 4:28])
    assert crops["a"] == (4, 4, 28, 12)


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataError, match=r"manifest\.json: Is a directory"):
        read_clean_crops(tmp_path)


def test_without_a_manifest_there_are_no_rectangles(tmp_path: Path) -> None:
    assert read_clean_crops(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"manifest\.json"),
        ('{"scene": "a"}', "'scene'"),
        ('[{"name": "a"}]', "'scene'"),
        ('[{"scene": "a", "clean_crop": [1, 2, 3]}]', r"'clean_crop' of a .*\[x0, y0, x1, y1\].* \[1, 2, 3\]"),
        ('[{"scene": "a", "clean_crop": [1, 2, 3, 4.5]}]', r"'clean_crop' of a .*4\.5"),
        ('[{"scene": "a", "clean_crop": "all"}]', "'clean_crop' of a .*'all'"),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_clean_crops(tmp_path)


# --- Sizes from headers
@pytest.mark.parametrize("clean_crop", [None, (3, 4, 37, 23)])
@pytest.mark.parametrize("hr_px", [(24, 40), (27, 43)])
def test_the_size_from_headers_is_the_loaded_size(
    tmp_path: Path, hr_px: tuple[int, int], clean_crop: tuple[int, int, int, int] | None
) -> None:
    scene = hr_and_lr(tmp_path, hr_px, (6, 10))
    example = load_example(scene, 4, clean_crop=clean_crop)
    assert usable_size(scene, 4, clean_crop=clean_crop) == tuple(example.hr[0].shape[1:])
    (only_hr,) = find_scenes(tmp_path / "hr")
    example = load_example(only_hr, 2, clean_crop=clean_crop, loading=Loading(halve=True))
    assert usable_size(only_hr, 2, clean_crop=clean_crop, halve=True) == tuple(example.hr[0].shape[1:])


@pytest.mark.real_data
def test_the_training_scenes_load_with_their_clean_rectangles(data_root: Path) -> None:
    folder = data_root / "stereo" / "train"
    scenes = [scene for scene in find_scenes(folder) if scene.name in ("mb2021_pendulum", "mb2006t_Aloe")]
    crops = read_clean_crops(folder)
    sizes = [tuple(load_example(s, 4, clean_crop=crops[s.name]).hr[0].shape[1:]) for s in scenes]
    assert sizes == [(368, 424), (1040, 1920)]


def test_examples_are_values() -> None:
    with pytest.raises(AttributeError):
        Example("a", (), ()).name = "b"
