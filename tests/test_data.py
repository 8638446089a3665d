"""Finding stereo scenes, loading them, and cutting training crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowpeft.data import Crop, Scene, StereoPairs, find_scenes, load_pair, read_clean_crops
from lowpeft.errors import DataError
from lowpeft.images import matlab_downscale, to_float, write_image

FIELDS = ("lr_left", "lr_right", "hr_left", "hr_right")


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def write_pair(folder: Path, name: str, height: int = 16, width: int = 32, seed: int = 0) -> Scene:
    folder.mkdir(exist_ok=True)
    left, right = folder / f"{name}_L.png", folder / f"{name}_R.png"
    write_image(noise(height, width, seed), left)
    write_image(noise(height, width, seed + 1000), right)
    return Scene(name, left, right)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(crop: Crop) -> list[torch.Tensor]:
    return [getattr(crop, field) for field in FIELDS]


# --- Finding
def test_flat_and_nested_layouts_are_found_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b_L.png", "b_R.png", "a_1_L.jpg", "a_1_R.png", "c/hr0.png", "c/hr1.png")
    assert find_scenes(tmp_path) == (
        Scene("a_1", tmp_path / "a_1_L.jpg", tmp_path / "a_1_R.png"),
        Scene("b", tmp_path / "b_L.png", tmp_path / "b_R.png"),
        Scene("c", tmp_path / "c" / "hr0.png", tmp_path / "c" / "hr1.png"),
    )


def test_an_l_within_a_name_is_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "LOLLI_L_L.png", "LOLLI_L_R.png")
    (scene,) = find_scenes(tmp_path)
    assert (scene.name, scene.right.name) == ("LOLLI_L", "LOLLI_L_R.png")


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "._a_L.png", "manifest.json", "notes/readme.txt", "notes/figure.png")
    assert [scene.name for scene in find_scenes(tmp_path)] == ["a"]


def test_lr_views_are_found_by_name(tmp_path: Path) -> None:
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    touch(hr, "a_L.png", "a_R.png", "b/hr0.png", "b/hr1.png")
    touch(lr, "b/lr0.png", "b/lr1.png", "a_L.bmp", "a_R.bmp")
    first, second = find_scenes(hr, lr_folder=lr)
    assert (first.lr_left, first.lr_right) == (lr / "a_L.bmp", lr / "a_R.bmp")
    assert (second.lr_left, second.lr_right) == (lr / "b" / "lr0.png", lr / "b" / "lr1.png")


def test_patch_folders_hold_hr_and_lr_together(tmp_path: Path) -> None:
    touch(tmp_path, "000001/hr0.png", "000001/hr1.png", "000001/lr0.png", "000001/lr1.png")
    (scene,) = find_scenes(tmp_path, lr_folder=tmp_path)
    assert scene.lr_right == tmp_path / "000001" / "lr1.png"


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        (["a_L.png", "b_R.png", "c_L.png", "c_R.png"], ["a_L.png: has no right view", "b_R.png: has no left view"]),
        (["a/hr1.png"], ["a/hr1.png: has no left view"]),
        (["a_L.png", "a_R.png", "left.png"], ["left.png: is named neither NAME_L nor NAME_R"]),
        (["a_L.png", "a_R.png", "_L.png"], ["_L.png: is named neither NAME_L nor NAME_R"]),
        (["a_L.jpg", "a_L.png", "a_R.png"], ["a_L.png: is the same view as a_L.jpg"]),
        (["a_L.png", "a_R.png", "a/hr0.png"], ["a/hr0.png: is the same view as a_L.png"]),
    ],
)
def test_views_without_a_partner_are_all_listed(tmp_path: Path, files: list[str], problems: list[str]) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    assert list(caught.value.problems) == problems


def test_missing_and_superfluous_lr_views_are_all_listed(tmp_path: Path) -> None:
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    touch(hr, "a_L.png", "a_R.png", "b_L.png", "b_R.png")
    touch(lr, "b_L.png", "b_R.png", "c_L.png", "c_R.png")
    with pytest.raises(DataError) as caught:
        find_scenes(hr, lr_folder=lr)
    assert caught.value.problems == ("a: has HR views, but no LR views", "c: has LR views, but no HR views")


def test_an_empty_folder_says_what_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"NAME_L\.png with NAME_R\.png.*NAME/hr0\.png"):
        find_scenes(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        find_scenes(tmp_path / "nowhere")


NAMES = st.text("abLR_01 ", min_size=1, max_size=6).filter(lambda name: name == name.strip())


@given(names=st.sets(NAMES, min_size=1, max_size=5))
def test_every_pair_that_is_written_is_found(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    folder = tmp_path_factory.mktemp("scenes")
    touch(folder, *(f"{name}_{side}.png" for name in names for side in "LR"))
    assert [(scene.name, scene.right.name) for scene in find_scenes(folder)] == [
        (name, f"{name}_R.png") for name in sorted(names)
    ]


# --- Clean rectangles
def test_clean_rectangles_are_read_from_the_manifest(tmp_path: Path) -> None:
    entries = [
        {"scene": "a", "clean_crop": [1, 2, 30, 14], "width": 32},
        {"scene": "b"},
        {"scene": "c", "clean_crop": None},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    assert read_clean_crops(tmp_path) == {"a": (1, 2, 30, 14)}


def test_without_a_manifest_there_are_no_rectangles(tmp_path: Path) -> None:
    assert read_clean_crops(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"scene": "a"}', "must be a list"),
        ('[{"name": "a"}]', "must be a list"),
        ('[{"scene": "a", "clean_crop": [1, 2, 3]}]', r"'clean_crop' of a must be \[x0, y0, x1, y1\]"),
        ('[{"scene": "a", "clean_crop": [1, 2, 3, 4.5]}]', r"'clean_crop' of a"),
        ('[{"scene": "a", "clean_crop": "all"}]', r"'clean_crop' of a"),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_clean_crops(tmp_path)


# --- Loading
def test_lr_views_are_made_from_the_whole_mod_cropped_view(tmp_path: Path) -> None:
    pair = load_pair(write_pair(tmp_path, "a", 18, 35), 4)
    assert torch.equal(pair.hr_left, noise(18, 35)[:, :16, :32])
    assert torch.equal(pair.lr_right, matlab_downscale(noise(18, 35, 1000)[:, :16, :32], 4))


def test_lr_views_on_disk_are_used(tmp_path: Path) -> None:
    write_pair(tmp_path / "hr", "a", 18, 35)
    write_pair(tmp_path / "lr", "a", 4, 8, seed=7)
    (scene,) = find_scenes(tmp_path / "hr", lr_folder=tmp_path / "lr")
    assert torch.equal(load_pair(scene, 4).lr_right, noise(4, 8, 1007))


def test_a_clean_rectangle_is_rounded_inwards_to_lr_pixels(tmp_path: Path) -> None:
    pair = load_pair(write_pair(tmp_path, "a", 24, 40), 4, clean_crop=(3, 4, 37, 23))
    assert torch.equal(pair.hr_right, noise(24, 40, 1000)[:, 4:20, 4:36])


def test_nothing_outside_a_clean_rectangle_enters_the_lr_views(tmp_path: Path) -> None:
    pair = load_pair(write_pair(tmp_path, "a", 24, 40), 4, clean_crop=(4, 4, 36, 20))
    assert torch.equal(pair.lr_left, matlab_downscale(noise(24, 40)[:, 4:20, 4:36], 4))


def test_a_clean_rectangle_cuts_lr_views_on_disk_at_the_same_place(tmp_path: Path) -> None:
    write_pair(tmp_path / "hr", "a", 24, 40)
    write_pair(tmp_path / "lr", "a", 6, 10, seed=7)
    (scene,) = find_scenes(tmp_path / "hr", lr_folder=tmp_path / "lr")
    assert torch.equal(load_pair(scene, 4, clean_crop=(4, 4, 36, 20)).lr_left, noise(6, 10, 7)[:, 1:5, 1:9])


@pytest.mark.parametrize(
    "rectangle", [(0, 0, 41, 24), (-1, 0, 8, 8), (8, 8, 8, 16), (9, 9, 11, 24)], ids=["wide", "left", "empty", "thin"]
)
def test_rectangles_that_do_not_fit_are_refused(tmp_path: Path, rectangle: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="scene a: "):
        load_pair(write_pair(tmp_path, "a", 24, 40), 4, clean_crop=rectangle)


def test_views_of_different_size_are_refused(tmp_path: Path) -> None:
    scene = write_pair(tmp_path, "a", 16, 32)
    write_image(noise(16, 36), scene.right)
    with pytest.raises(DataError, match="scene a: the left view is 32x16 px, but the right view is 36x16 px"):
        load_pair(scene, 4)


def test_lr_views_of_the_wrong_ratio_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "hr", "a", 16, 32)
    write_pair(tmp_path / "lr", "a", 8, 16)
    (scene,) = find_scenes(tmp_path / "hr", lr_folder=tmp_path / "lr")
    with pytest.raises(DataError, match=r"scene a: at x4 .* 32x16 px needs an LR view of 8x4 px, but a_L\.png is 16x8"):
        load_pair(scene, 4)


def test_half_a_pair_of_lr_paths_is_refused() -> None:
    with pytest.raises(DataError, match="scene a: give the LR paths of both"):
        Scene("a", Path("l.png"), Path("r.png"), lr_left=Path("x.png"))


# --- Crops
def test_crops_have_the_asked_size_and_range(tmp_path: Path) -> None:
    pairs = StereoPairs([write_pair(tmp_path, "a", 24, 40)], 4, crop_px=(16, 32))
    crop = pairs.crop(seeded())
    assert [tuple(view.shape) for view in views(crop)] == [(3, 4, 8)] * 2 + [(3, 16, 32)] * 2
    assert {view.dtype for view in views(crop)} == {torch.float32}
    assert all(view.min() >= 0 and view.max() <= 1 for view in views(crop))


def places(whole: torch.Tensor, part: torch.Tensor) -> list[tuple[int, int]]:
    """Every (top, left) at which `part` lies in `whole`."""
    height, width = part.shape[1:]
    return [
        (top, left)
        for top in range(whole.shape[1] - height + 1)
        for left in range(whole.shape[2] - width + 1)
        if torch.equal(whole[:, top : top + height, left : left + width], part)
    ]


@given(seed=st.integers(0, 2**31))
def test_the_four_images_of_a_crop_show_one_place(aligned: StereoPairs, seed: int) -> None:
    crop, (pair,) = aligned.crop(seeded(seed)), aligned.pairs
    found = [places(to_float(getattr(pair, field)), getattr(crop, field)) for field in FIELDS]
    ((top, left),) = found[0]
    assert found == [[(top, left)]] * 2 + [[(4 * top, 4 * left)]] * 2


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> StereoPairs:
    scene = write_pair(tmp_path_factory.mktemp("aligned"), "a", 24, 40)
    return StereoPairs([scene], 4, crop_px=(8, 16), augment=False)


def test_every_place_is_drawn_to_the_last_row_and_column(aligned: StereoPairs) -> None:
    generator, whole = seeded(), to_float(aligned.pairs[0].lr_left)
    drawn = {places(whole, aligned.crop(generator).lr_left)[0] for _ in range(400)}
    assert drawn == {(top, left) for top in range(5) for left in range(7)}


AUGMENTATIONS = {
    (mirrored, upside_down, channels)
    for mirrored in (False, True)
    for upside_down in (False, True)
    for channels in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
}


def undo(crop: Crop, mirrored: bool, upside_down: bool, channels: tuple[int, ...]) -> list[torch.Tensor]:
    plain = [view[torch.tensor(channels).argsort()] for view in views(crop)]
    if upside_down:
        plain = [view.flip(-2) for view in plain]
    if mirrored:
        plain = [plain[place].flip(-1) for place in (1, 0, 3, 2)]  # the mirrored left view is the new right view
    return plain


def test_augmentation_draws_all_24_forms_and_treats_the_four_images_alike(tmp_path: Path) -> None:
    pairs = StereoPairs([write_pair(tmp_path, "a", 16, 32)], 4, crop_px=(16, 32))
    whole = [to_float(getattr(pairs.pairs[0], field)) for field in FIELDS]
    generator, drawn = seeded(), set()
    for _ in range(300):
        crop = pairs.crop(generator)
        (form,) = [
            form
            for form in AUGMENTATIONS
            if all(torch.equal(a, b) for a, b in zip(undo(crop, *form), whole, strict=True))
        ]
        drawn.add(form)
    assert drawn == AUGMENTATIONS


def test_scenes_are_drawn_in_proportion_to_their_area(tmp_path: Path) -> None:
    small, large = write_pair(tmp_path, "small", 16, 32, seed=1), write_pair(tmp_path, "large", 32, 48, seed=2)
    pairs = StereoPairs([small, large], 4, crop_px=(16, 32), augment=False)
    whole, generator = to_float(pairs.pairs[0].hr_left), seeded()
    share = sum(torch.equal(pairs.crop(generator).hr_left, whole) for _ in range(2000)) / 2000
    assert share == pytest.approx(0.25, abs=0.03)  # three standard deviations


def test_the_generator_decides_everything(tmp_path: Path) -> None:
    scenes = [write_pair(tmp_path, name, 24, 40, seed) for seed, name in enumerate("abc")]
    batches = [StereoPairs(scenes, 4, crop_px=(8, 16)).batch(4, seeded(seed)) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(views(batches[0]), views(batches[1]), strict=True))
    assert not torch.equal(batches[0].hr_left, batches[2].hr_left)


def test_a_batch_is_its_crops_stacked(tmp_path: Path) -> None:
    pairs = StereoPairs([write_pair(tmp_path, "a", 24, 40)], 4, crop_px=(8, 16))
    generator = seeded()
    crops = [pairs.crop(generator) for _ in range(3)]
    for field, batch in zip(FIELDS, views(pairs.batch(3, seeded())), strict=True):
        assert torch.equal(batch, torch.stack([getattr(crop, field) for crop in crops]))


def test_crops_stay_inside_the_clean_rectangle(tmp_path: Path) -> None:
    scenes = [write_pair(tmp_path, name, 24, 40, seed) for seed, name in enumerate("ab")]
    pairs = StereoPairs(scenes, 4, crop_px=(8, 16), crops={"b": (4, 4, 36, 20), "elsewhere": (0, 0, 1, 1)})
    assert [tuple(pair.hr_left.shape) for pair in pairs.pairs] == [(3, 24, 40), (3, 16, 32)]


def test_all_scenes_that_are_too_small_are_named(tmp_path: Path) -> None:
    scenes = [
        write_pair(tmp_path, "low", 15, 40),
        write_pair(tmp_path, "ok", 16, 32),
        write_pair(tmp_path, "thin", 24, 31),
    ]
    with pytest.raises(DataError, match="cannot take crops of 32x16 HR px") as caught:
        StereoPairs(scenes, 4, crop_px=(16, 32))
    assert caught.value.problems == (
        "scene low: 40x12 px can be used, less than one crop",
        "scene thin: 28x24 px can be used, less than one crop",
    )


def test_all_scenes_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    scenes = [Scene(name, tmp_path / f"{name}_L.png", tmp_path / f"{name}_R.png") for name in "ab"]
    with pytest.raises(DataError) as caught:
        StereoPairs(scenes, 4, crop_px=(16, 32))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("crop_px", [(16, 30), (18, 32), (0, 32), (-16, 32)])
def test_crops_of_no_whole_lr_pixels_are_refused(tmp_path: Path, crop_px: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="whole number of x4 LR pixels"):
        StereoPairs([write_pair(tmp_path, "a", 24, 40)], 4, crop_px=crop_px)


def test_no_scenes_are_refused() -> None:
    with pytest.raises(DataError, match="no scenes"):
        StereoPairs([], 4)


def test_empty_batches_are_refused(aligned: StereoPairs) -> None:
    with pytest.raises(DataError, match="at least one crop, got size 0"):
        aligned.batch(0, seeded())


@pytest.mark.real_data
def test_the_training_scenes_load_with_their_clean_rectangles(data_root: Path) -> None:
    folder = data_root / "stereo" / "train"
    scenes = [scene for scene in find_scenes(folder) if scene.name in ("mb2021_pendulum", "mb2006t_Aloe")]
    pairs = StereoPairs(scenes, 4, crops=read_clean_crops(folder))
    assert [(pair.name, tuple(pair.hr_left.shape[1:])) for pair in pairs.pairs] == [
        ("mb2006t_Aloe", (368, 424)),
        ("mb2021_pendulum", (1040, 1920)),
    ]
