"""Finding scenes: which layout a folder has, and which files belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowpeft.errors import DataError
from lowpeft.restoration.data import LAYOUTS, FolderLayout, Scene, find_scenes, load_example, scenes_with_lr
from lowpeft.restoration.images import write_image
from scene_files import noise, touch, write_layout

EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
NAMED = pytest.mark.parametrize(
    "layout", [row for row in LAYOUTS.values() if "{part}" not in row.forms[0].hr[0]], ids=lambda row: row.name
)
"""Layouts whose scenes have the names that their files are written with."""
PAIRS = [layout for layout in LAYOUTS.values() if layout.views == 2]


def relative(scenes: tuple[Scene, ...], folder: Path) -> dict[str, list[str]]:
    """The files of scenes, HR before LR, as a table."""
    return {s.name: [path.relative_to(folder).as_posix() for path in (*s.hr, *s.lr)] for s in scenes}


# --- Layouts
EXAMPLES = {
    "patches": ["000001/hr0.png", "000001/hr1.png", "000001/lr0.png", "000001/lr1.png"],
    "ipassr": ["hr/cones/hr0.png", "hr/cones/hr1.png", "lr_x4/cones/lr0.png", "lr_x4/cones/lr1.png"],
    "flat, NTIRE": ["HR/0001_L.png", "HR/0001_R.png", "LR_x4/0001_L.png", "LR_x4/0001_R.png"],
    "flat, sub-images": [f"{folder}_patch/0001_2_3_{side}.png" for folder in ("HR", "LR") for side in "LR"],
    "flat": ["hr/7_hr0.png", "hr/7_hr1.png", "lr_x4/7_lr0.png", "lr_x4/7_lr1.png"],
    "flat, marked": ["hr/7_L.png", "hr/7_R.png", "lr_x4/7_L.png", "lr_x4/7_R.png"],
    "flat, parts": ["hr/7_L_s012.png", "hr/7_R_s012.png", "lr_x4/7_L_s012.png", "lr_x4/7_R_s012.png"],
    "pairs": ["0001_L.png", "0001_R.png"],
    "flat-sides": [f"{folder}/{side}/7.png" for folder in ("HR", "LR_x4") for side in ("left", "right")],
    "middlebury": ["Aloe/view1.png", "Aloe/view5.png"],
    "sides": ["left/7.png", "right/7.png"],
    "kitti, 2012": ["colored_0/000000_10.png", "colored_1/000000_10.png"],
    "kitti, 2015": ["image_2/000000_10.png", "image_3/000000_10.png"],
    "folders": ["HR/0001.png", "LR_x4/0001.png"],
    "folders, BasicSR": ["GTmod12/baby.png", "LRbicx4/baby.png"],
    "folders, DIV2K": ["DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X4/0001x4.png"],
    "clips": ["train_sharp/000/00000000.png", "train_sharp_bicubic/X4/000/00000000.png"],
    "scenes": ["GOPR0372_07_00/sharp/000047.png", "GOPR0372_07_00/blur/000047.png"],
    "marked": ["img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png"],
    "marked-scenes": ["0001_001_S6/0001_GT_SRGB_010.PNG", "0001_001_S6/0001_NOISY_SRGB_010.PNG"],
    "plain": ["kodim01.png"],
}
NAMES = {
    "patches": "000001",
    "ipassr": "cones",
    "flat, sub-images": "0001_2_3",
    "flat, NTIRE": "0001",
    "flat": "7",
    "flat-sides": "7",
    "sides": "7",
    "middlebury": "Aloe",
    "clips": "000_00000000",
    "scenes": "GOPR0372_07_00_000047",
    "marked-scenes": "0001_001_S6_0001_SRGB_010",
    "flat, parts": "7_s012",
    "kitti": "000000",
    "folders, BasicSR": "baby",
    "marked": "img_001_SRF_4",
    "plain": "kodim01",
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_the_layouts_of_the_field_are_recognised(case: str, tmp_path: Path) -> None:
    """File by file as the archives and scripts of the field have them, not as the table says."""
    row = case.partition(",")[0]
    touch(tmp_path, *EXAMPLES[case])
    found = find_scenes(tmp_path, scale=4, views=LAYOUTS[row].views)
    name = NAMES.get(case, NAMES.get(row, "0001"))
    assert relative(found, tmp_path) == {name: EXAMPLES[case]}


def test_every_layout_has_an_example() -> None:
    assert {case.partition(",")[0] for case in EXAMPLES} == LAYOUTS.keys()


@NAMED
def test_what_the_table_says_can_be_written_and_loaded(layout: FolderLayout, tmp_path: Path) -> None:
    names = ("b", "a_1", "LOLLI_L")
    write_layout(tmp_path, layout, names)
    scenes = find_scenes(tmp_path, scale=4, views=layout.views)
    assert [s.name for s in scenes] == sorted(names)
    assert {len(s.lr) for s in scenes} == {0 if layout.lr_folder is None else layout.views}
    for scene in scenes:
        example = load_example(scene, 4)
        assert [tuple(v.shape) for v in (*example.lr, *example.hr)] == [(3, 6, 10)] * layout.views + [
            (3, 24, 40)
        ] * layout.views


@NAMED
def test_the_files_shown_are_of_the_layout(layout: FolderLayout, tmp_path: Path) -> None:
    touch(tmp_path, *layout.shown.split("; or ")[0].split(", "))
    assert [s.name for s in find_scenes(tmp_path, views=layout.views)] == ["NAME"]


@EVERY_LAYOUT
def test_a_layout_that_is_named_is_not_guessed(layout: FolderLayout, tmp_path: Path) -> None:
    write_layout(tmp_path, layout, ("a",))
    assert find_scenes(tmp_path, views=layout.views, layout=layout.name) == find_scenes(tmp_path, views=layout.views)


@pytest.mark.parametrize(
    ("files", "layouts"),
    [
        (["a_L.png", "a_R.png", "b/hr0.png", "b/hr1.png"], ("patches", "pairs")),
        (["hr/a/hr0.png", "hr/a/hr1.png", "hr/b_L.png", "hr/b_R.png"], ("ipassr", "flat")),
        (["a_L.png", "a_R.png", "colored_0/0_10.png", "colored_1/0_10.png"], ("pairs", "kitti")),
    ],
)
def test_a_folder_of_several_layouts_is_refused_unless_one_is_named(
    files: list[str], layouts: tuple[str, str], tmp_path: Path
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=r" \(.*\), ".join(layouts)):
        find_scenes(tmp_path)
    for layout in layouts:
        assert len(find_scenes(tmp_path, layout=layout)) == 1


def test_unknown_layouts_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'markd' \(did you mean 'marked'.*\); known: folders, clips"):
        find_scenes(tmp_path, views=1, layout="markd")
    with pytest.raises(DataError, match=r"'plain'.*; known: patches, ipassr"):
        find_scenes(tmp_path, layout="plain")


@pytest.mark.parametrize("names", [("a.png", "b.png", "c.jpg"), ("HR/a.png", "HR/b.png", "HR/c.png", "masks/a.png")])
def test_single_images_where_pairs_are_searched_are_counted(names: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=r"\b3\b.*views=1.*--images") as caught:
        find_scenes(tmp_path)
    assert len(caught.value.problems) == len(PAIRS)
    assert len(find_scenes(tmp_path, views=1)) == 3


@pytest.mark.parametrize("layout", PAIRS, ids=lambda layout: layout.name)
def test_a_folder_one_too_high_says_which_to_give(layout: FolderLayout, tmp_path: Path) -> None:
    write_layout(tmp_path / "Train", layout, ("a",))
    write_layout(tmp_path / "Test", layout, ("b",))
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    found = [f"{tmp_path / split} (layout {layout.name}: {layout.title})" for split in ("Test", "Train")]
    # An `hr` or `HR_patch` folder lies in the splits, not here.
    assert list(caught.value.problems) == found


# --- Scales and LR folders
SEVERAL_SCALES = [
    ("lr_x{}", ["hr/a/hr0.png", "hr/a/hr1.png"], ["a/lr0.png", "a/lr1.png"]),
    ("LR_x{}", ["HR/a_L.png", "HR/a_R.png"], ["a_L.png", "a_R.png"]),
    ("LR_bicubic/X{}", ["HR/a.png"], ["a.png"]),
]


@pytest.mark.parametrize(("lr", "hr_files", "lr_files"), SEVERAL_SCALES)
def test_the_scale_chooses_among_lr_folders(lr: str, hr_files: list[str], lr_files: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *hr_files, *(f"{lr.format(scale)}/{file}" for scale in (2, 4) for file in lr_files))
    views = len(hr_files)
    for scale in (2, 4):
        (scene,) = find_scenes(tmp_path, scale=scale, views=views)
        assert scene.lr == tuple(tmp_path / lr.format(scale) / file for file in lr_files)
    (scene,) = find_scenes(tmp_path, scale=3, views=views)
    assert scene.lr == ()
    with pytest.raises(DataError, match=f"{lr.format(2)}, {lr.format(4)}"):
        find_scenes(tmp_path, views=views)


def test_a_lone_lr_folder_is_taken_without_a_scale(tmp_path: Path) -> None:
    touch(tmp_path, "HR/a_L.png", "HR/a_R.png", "LR_x4/a_L.png", "LR_x4/a_R.png")
    assert find_scenes(tmp_path)[0].lr[1] == tmp_path / "LR_x4" / "a_R.png"


@pytest.mark.parametrize("files", [["HR/a_L.png", "HR/a_R.png"], ["a_L.png", "a_R.png"]])
def test_lr_views_in_a_folder_of_another_name_are_not_passed_over(files: list[str], tmp_path: Path) -> None:
    """Or a network would be trained on other LR images than those that its user sees."""
    touch(tmp_path, *files, "LR_wild/a_L.png", "LR_wild/a_R.png")
    with pytest.raises(DataError, match="LR_wild"):
        find_scenes(tmp_path)
    assert find_scenes(tmp_path, lr_folder=tmp_path / "LR_wild")[0].lr[0] == tmp_path / "LR_wild" / "a_L.png"


@pytest.mark.parametrize(
    ("views", "files", "place"),
    [
        (2, ["hr/a/hr0.png", "hr/a/hr1.png", "lr_x4/a_lr0.png", "lr_x4/a_lr1.png"], "lr_x4"),
        (2, ["HR/a_L.png", "HR/a_R.png", "LR_x4/a/lr0.png", "LR_x4/a/lr1.png"], "LR_x4"),
        (1, ["DIV2K_train_HR/1.png", "DIV2K_train_LR_unknown/1.png"], "DIV2K_train_LR_unknown"),
        (1, ["DIV2K_train_HR/1.png", "DIV2K_train_LR_mild/X4/1.png"], "DIV2K_train_LR_mild/X4"),
    ],
    ids=["flat", "nested", "unknown", "mild"],
)
def test_lr_views_of_another_form_are_not_passed_over(views: int, files: list[str], place: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=place):
        find_scenes(tmp_path, scale=4, views=views)


def test_lr_views_of_another_form_matter_only_at_the_scale_that_is_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "HR/a_L.png", "HR/a_R.png", "LR_x4/a/lr0.png", "lr1e-4/loss.png")
    with pytest.raises(DataError, match="lr1e-4"):
        find_scenes(tmp_path, scale=2)
    touch(tmp_path, "LR_x2/a_L.png", "LR_x2/a_R.png")
    assert find_scenes(tmp_path, scale=2)[0].lr[0] == tmp_path / "LR_x2" / "a_L.png"


@pytest.mark.parametrize(
    ("views", "hr_files", "lr_files"),
    [
        (2, ["a_L.png", "a_R.png"], ["a_L.bmp", "a_R.bmp"]),
        (2, ["a_L.png", "a_R.png"], ["a/lr0.png", "a/lr1.png"]),
        (2, ["a/hr0.png", "a/hr1.png"], ["a/lr0.png", "a/lr1.png"]),
        (2, ["image_2/a_10.png", "image_3/a_10.png"], ["a_lr0.png", "a_lr1.png"]),
        (1, ["a.png"], ["a.png"]),
        (1, ["a.png"], ["ax4.png"]),
        (1, ["a_HR.png"], ["a_LR.png"]),
    ],
)
def test_lr_folders_that_are_named_may_be_of_any_layout(
    views: int, hr_files: list[str], lr_files: list[str], tmp_path: Path
) -> None:
    touch(tmp_path / "one", *hr_files)
    touch(tmp_path / "two", *lr_files)
    (scene,) = find_scenes(tmp_path / "one", lr_folder=tmp_path / "two", views=views)
    assert (scene.name[0], scene.lr) == ("a", tuple(tmp_path / "two" / file for file in lr_files))


def test_an_lr_image_keeps_its_own_name_where_an_hr_image_has_it_too(tmp_path: Path) -> None:
    touch(tmp_path, "HR/a.png", "HR/ax4.png", "LR_x4/a.png", "LR_x4/ax4.png")
    found = relative(find_scenes(tmp_path, views=1), tmp_path)
    assert found == {"a": ["HR/a.png", "LR_x4/a.png"], "ax4": ["HR/ax4.png", "LR_x4/ax4.png"]}


def test_two_lr_images_of_one_hr_image_are_not_both_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "HR/a.png", "LR_x4/a.png", "LR_x4/ax4.png")
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path, views=1)
    assert caught.value.problems == ("ax4: has LR views, but no HR views",)


def test_scenes_without_lr_files_can_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "hr", "a_L.png", "a_R.png", "b_L.png", "b_R.png")
    touch(tmp_path / "lr", "b_L.png", "b_R.png")
    scenes, without = scenes_with_lr(tmp_path / "hr", lr_folder=tmp_path / "lr")
    assert ([s.name for s in scenes], without) == (["b"], ("a",))
    with pytest.raises(DataError, match="x4"):
        scenes_with_lr(tmp_path / "hr", scale=4)


def test_several_hr_folders_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "DIV2K_train_HR/1.png", "DIV2K_valid_HR/2.png")
    with pytest.raises(DataError, match="DIV2K_train_HR, DIV2K_valid_HR"):
        find_scenes(tmp_path, views=1)


# --- Names
def test_an_l_within_a_name_is_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "LOLLI_L_L.png", "LOLLI_L_R.png")
    (scene,) = find_scenes(tmp_path)
    assert (scene.name, scene.hr[1].name) == ("LOLLI_L", "LOLLI_L_R.png")


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "._a_L.png", "manifest.json", "notes/readme.txt", "notes/figure.png")
    assert [scene.name for scene in find_scenes(tmp_path)] == ["a"]


def test_only_the_first_frames_of_kitti_are_taken(tmp_path: Path) -> None:
    touch(tmp_path, *(f"image_{camera}/000003_{frame}.png" for camera in (2, 3) for frame in (10, 11)))
    assert [s.name for s in find_scenes(tmp_path)] == ["000003"]


def test_pairs_are_of_one_name_even_where_listings_would_pair_others(tmp_path: Path) -> None:
    """Second by second, the folders below hold other scenes."""
    touch(tmp_path, "hr/b/hr0.png", "hr/b/hr1.png", "hr/a/hr0.png", "hr/a/hr1.png")
    touch(tmp_path, "lr_x4/a/lr1.png", "lr_x4/a/lr0.png", "lr_x4/b/lr1.png", "lr_x4/b/lr0.png")
    found = relative(find_scenes(tmp_path), tmp_path)
    assert found == {
        n: [f"hr/{n}/hr0.png", f"hr/{n}/hr1.png", f"lr_x4/{n}/lr0.png", f"lr_x4/{n}/lr1.png"] for n in "ab"
    }


def test_the_views_of_pairs_can_be_taken_one_by_one(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png")
    assert [s.name for s in find_scenes(tmp_path, views=1)] == ["a_L", "a_R"]


SCENE_NAMES = st.text("abLR_01 ", min_size=1, max_size=6).filter(lambda name: name == name.strip())


@given(names=st.sets(SCENE_NAMES, min_size=1, max_size=5))
def test_every_pair_that_is_written_is_found(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    folder = tmp_path_factory.mktemp("scenes")
    touch(folder, *(f"{name}_{side}.png" for name in names for side in "LR"))
    assert [(scene.name, scene.hr[1].name) for scene in find_scenes(folder)] == [
        (name, f"{name}_R.png") for name in sorted(names)
    ]


# --- What is left over
@pytest.mark.parametrize(
    ("files", "problems"),
    [
        (["a_L.png", "b_R.png", "c_L.png", "c_R.png"], ["a_L.png: has no right view", "b_R.png: has no left view"]),
        (["a/hr1.png"], ["a/hr1.png: has no left view"]),
        (["image_2/0_10.png", "image_3/1_10.png"], ["image_2/0_10.png: has no right", "image_3/1_10.png: has no left"]),
        (["a_L.png", "a_R.png", "left.png"], ["left.png: is not named NAME_L or NAME_R"]),
        (["a_L.png", "a_R.png", "_L.png"], ["_L.png: is not named NAME_L or NAME_R"]),
        (["a_L.jpg", "a_L.png", "a_R.png"], ["a_L.png: is the same view as a_L.jpg"]),
        (["colored_0/1_10.png", "colored_1/1_10.png", "image_2/1_10.png"], ["image_2/1_10.png: is the same view as"]),
        (["a/hr0.png", "a/hr1.png", "a/lr0.png"], ["a/lr0.png: has no right view"]),
        (["a/hr0.png", "a/hr1.png", "b/lr0.png", "b/lr1.png"], ["b: has LR views, but", "a: has HR views, but"]),
        (["a/hr0.png", "a/lr0.png", "a/lr1.png"], ["a/hr0.png: has no right view"]),
        (["hr/a_hr0.png", "hr/a_hr1.png", "hr/a_lr0.png"], ["a_lr0.png: is not named NAME_L or NAME_R or NAME_hr0"]),
        (["hr/a/hr0.png", "hr/a/hr1.png", "hr/b/disp.png"], ["b: none of its images is named NAME/hr0 or NAME/hr1"]),
        (["a/hr0.png", "a/hr1.png", "b/0.png", "b/1.png"], ["b: none of its images is named NAME/hr0 or NAME/hr1"]),
    ],
)
def test_views_without_a_partner_are_all_listed(tmp_path: Path, files: list[str], problems: list[str]) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path)
    found = caught.value.problems
    assert len(found) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(found, problems, strict=True))


def test_single_images_without_a_partner_are_all_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a_HR.png", "a_LR.png", "b_HR.png", "c_LR.png", "d.png")
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path, views=1)
    assert caught.value.problems == (
        "c_LR: has LR views, but no HR views",
        "b_HR: has HR views, but no LR views",
        "d: has HR views, but no LR views",
    )


def test_missing_and_superfluous_lr_views_are_all_listed(tmp_path: Path) -> None:
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    touch(hr, "a_L.png", "a_R.png", "b_L.png", "b_R.png")
    touch(lr, "b_L.png", "b_R.png", "c_L.png", "c_R.png")
    with pytest.raises(DataError) as caught:
        find_scenes(hr, lr_folder=lr)
    assert caught.value.problems == ("c: has LR views, but no HR views", "a: has HR views, but no LR views")


@pytest.mark.parametrize("views", [1, 2])
def test_an_empty_folder_says_what_is_understood(views: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        find_scenes(tmp_path, views=views)
    assert [line.split()[0] for line in caught.value.problems] == [i for i, r in LAYOUTS.items() if r.views == views]


def test_other_numbers_of_views_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"views .* 3"):
        find_scenes(tmp_path, views=3)


def test_lr_folders_without_lr_views_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "b/c/d/lr0.png")
    with pytest.raises(DataError, match=f"{tmp_path / 'b'} .*NAME_lr0"):
        find_scenes(tmp_path, lr_folder=tmp_path / "b")


def test_images_beside_the_views_of_a_scene_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "hr/a/hr0.png", "hr/a/hr1.png", "hr/a/disp0.png")
    assert [scene.name for scene in find_scenes(tmp_path)] == ["a"]


def test_links_to_nothing_are_scenes_that_cannot_be_read(tmp_path: Path) -> None:
    """A disk that is not mounted makes no scene go away."""
    for name in ("a_L.png", "a_R.png", "b_L.png", "b_R.png"):
        write_image(noise(4, 4), tmp_path / name) if name < "b" else (tmp_path / name).symlink_to(tmp_path / "gone")
    _, broken = find_scenes(tmp_path)
    with pytest.raises(DataError, match=r"scene b: .*b_L\.png"):
        load_example(broken, 2)


@pytest.mark.parametrize("place", ["nowhere", "a_L.png"])
def test_what_is_no_folder_is_named(place: str, tmp_path: Path) -> None:
    write_image(noise(4, 4), tmp_path / "a_L.png")
    with pytest.raises(DataError, match=str(tmp_path / place)):
        find_scenes(tmp_path / place)


@pytest.mark.parametrize(("hr", "lr"), [(0, 0), (3, 0), (2, 1), (1, 2)])
def test_scenes_have_one_or_two_views_and_as_many_lr_files_or_none(hr: int, lr: int) -> None:
    with pytest.raises(DataError, match="scene a: "):
        Scene("a", (Path("x.png"),) * hr, (Path("y.png"),) * lr)


@pytest.mark.real_data
def test_the_real_sets_are_recognised(data_root: Path) -> None:
    stereo, single = data_root / "stereo", data_root / "single"
    assert [len(find_scenes(stereo / name)) for name in ("train", "test")] == [42, 25]
    assert [len(find_scenes(single / "Set5" / f"x{s}", scale=s, views=1)) for s in (2, 3, 4)] == [5] * 3
    assert [len(find_scenes(single / name, views=1)) for name in ("Kodak24", "BSDS500/train")] == [24, 200]
