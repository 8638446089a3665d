"""Folders as people have them: which scenes are found in each, or what is said. All files are empty: none is opened."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest

from lowpeft.errors import DataError
from lowpeft.restoration.data import find_scenes
from scene_files import touch


class Found(NamedTuple):
    """A folder whose scenes are found: files, arguments, and by name the files of each scene, HR before LR."""

    files: str
    scenes: dict[str, str]
    views: int = 1
    scale: int = 1


FOUND = {
    # Clean and degraded images in two folders
    "LQ GT": Found("GT/1.png LQ/1.png", {"1": "GT/1.png LQ/1.png"}),
    "small letters": Found("gt/1.png lq/1.png", {"1": "gt/1.png lq/1.png"}),
    "Rain13K": Found("input/1.jpg target/1.jpg", {"1": "target/1.jpg input/1.jpg"}),
    "MIT Adobe": Found("inputs/1.tif targets/1.tif", {"1": "targets/1.tif inputs/1.tif"}),
    "LOL": Found("low/2.png high/2.png", {"2": "high/2.png low/2.png"}),
    "LOL v2, renamed": Found("Low/low01.png GT/normal01.png", {"normal01": "GT/normal01.png Low/low01.png"}),
    "no at the end of a word": Found("piano_rain/1.png GT/1.png", {"1": "GT/1.png piano_rain/1.png"}),
    "sharp": Found("blur/1.png sharp/1.png", {"1": "sharp/1.png blur/1.png"}),
    "blurry": Found("blurry/1.png sharp/1.png", {"1": "sharp/1.png blurry/1.png"}),
    "noisy clean": Found("noisy/1.png clean/1.bmp", {"1": "clean/1.bmp noisy/1.png"}),
    "Rain100": Found(
        "rain/rain-001.png norain/norain-001.png", {"norain-001": "norain/norain-001.png rain/rain-001.png"}
    ),
    "Rain100, one clean name": Found("rainy/rain-1.png norain/1.png", {"1": "norain/1.png rainy/rain-1.png"}),
    "hazy clear": Found("hazy/1.png clear/1.png", {"1": "clear/1.png hazy/1.png"}),
    "haze groundtruth": Found("haze/1.png groundtruth/1.png", {"1": "groundtruth/1.png haze/1.png"}),
    "degraded": Found("HR/1.png degraded/1.png", {"1": "HR/1.png degraded/1.png"}),
    "realLR": Found("HR/1.png realLR/1.png", {"1": "HR/1.png realLR/1.png"}, scale=4),
    "low_res": Found("HR/1.png low_res/1.png", {"1": "HR/1.png low_res/1.png"}, scale=4),
    "a split's prefix": Found("train_blur/1.png train_sharp/1.png", {"1": "train_sharp/1.png train_blur/1.png"}),
    "only a split": Found("train/input/1.png train/target/1.png", {"1": "train/target/1.png train/input/1.png"}),
    "LQ at x4": Found("GT/1.png LQ/1.png", {"1": "GT/1.png LQ/1.png"}, scale=4),
    # A scale in names
    "LR_x4": Found("HR/1.png LR_x4/1x4.png LR_x2/1x2.png", {"1": "HR/1.png LR_x4/1x4.png"}, scale=4),
    "x4": Found("HR/1.png x4/1.png x2/1.png", {"1": "HR/1.png x4/1.png"}, scale=4),
    "X4 with names": Found("HR/1.png X4/1x4.png", {"1": "HR/1.png X4/1x4.png"}, scale=4),
    "bicubic/x4": Found("HR/1.png bicubic/x4/1.png bicubic/x2/1.png", {"1": "HR/1.png bicubic/x4/1.png"}, scale=4),
    "BasicSR's sub-images": Found(
        "DIV2K_train_HR_sub/1_s001.png DIV2K_train_LR_bicubic/X4_sub/1_s001.png",
        {"1_s001": "DIV2K_train_HR_sub/1_s001.png DIV2K_train_LR_bicubic/X4_sub/1_s001.png"},
        scale=4,
    ),
    "only another scale": Found("HR/1.png LR_x2/1.png", {"1": "HR/1.png"}, scale=4),
    # Folders of scenes
    "GoPro": Found(
        "G1/blur/7.png G1/sharp/7.png G1/blur_gamma/7.png G2/blur/7.png G2/sharp/7.png",
        {"G1_7": "G1/sharp/7.png G1/blur/7.png", "G2_7": "G2/sharp/7.png G2/blur/7.png"},
    ),
    "REDS": Found(
        "train_blur/000/7.png train_sharp/000/7.png", {"000_7": "train_sharp/000/7.png train_blur/000/7.png"}
    ),
    "SIDD": Found("s/1_NOISY_010.PNG s/1_GT_010.PNG", {"s_1_010": "s/1_GT_010.PNG s/1_NOISY_010.PNG"}),
    # Both in one folder
    "rain and norain": Found("rain-001.png norain-001.png", {"001": "norain-001.png rain-001.png"}),
    "_LR _HR": Found("001_LR.png 001_HR.png", {"001": "001_HR.png 001_LR.png"}, scale=4),
    "_LR4, of RealSR": Found("C_1_LR4.png C_1_HR.png", {"C_1": "C_1_HR.png C_1_LR4.png"}, scale=4),
    "_lq _gt": Found("a_lq.png a_gt.png", {"a": "a_gt.png a_lq.png"}),
    "_input _target": Found("a_input.png a_target.png", {"a": "a_target.png a_input.png"}),
    "_noisy _clean": Found("a_noisy.png a_clean.png", {"a": "a_clean.png a_noisy.png"}),
    "_blur _sharp": Found("a_blur.png a_sharp.png", {"a": "a_sharp.png a_blur.png"}),
    "_rain _clean": Found("a_rain.png a_clean.png", {"a": "a_clean.png a_rain.png"}),
    "prefixes": Found("noisy_a.png clean_a.png", {"a": "clean_a.png noisy_a.png"}),
    "mark of one only": Found("a.png a_noisy.png", {"a": "a.png a_noisy.png"}),
    "scale of one only": Found("a.png ax4.png", {"a": "a.png ax4.png"}, scale=4),
    "a scale after digits": Found("0801.png 0801x4.png", {"0801": "0801.png 0801x4.png"}, scale=4),
    "resolutions are no scales": Found(
        "a_640.png a_640x480.png a_16.png a_16x9.png", {f"a_{n}": f"a_{n}.png" for n in (16, "16x9", 640, "640x480")}
    ),
    "denied words of files": Found("a.png a_not_noisy.png", {"a": "a.png", "a_not_noisy": "a_not_noisy.png"}),
    "words in the folder of a scene": Found(
        "low_a/sharp/1.png low_a/blur/1.png", {"low_a_1": "low_a/sharp/1.png low_a/blur/1.png"}
    ),
    # Words that mean nothing alone
    "words in names": Found(
        "clear_sky.png low_tide.png", {"clear_sky": "clear_sky.png", "low_tide": "low_tide.png"}
    ),
    "harmless folders": Found(
        "HR/1.png masks/1.png disp_occ_0/1.png __MACOSX/HR/1.png .git/1.png codes/train.py", {"1": "HR/1.png"}, scale=4
    ),
    # Pairs
    "im0 im1": Found("Adi/im0.png Adi/im1.png Adi/disp0.png", {"Adi": "Adi/im0.png Adi/im1.png"}, views=2),
    "view1 view5": Found("Art/view1.png Art/view3.png Art/view5.png", {"Art": "Art/view1.png Art/view5.png"}, views=2),
    "left right": Found("left/1.png right/1.png", {"1": "left/1.png right/1.png"}, views=2),
    "Left Right, marked": Found("Left/1_L.PNG Right/1_R.PNG", {"1": "Left/1_L.PNG Right/1_R.PNG"}, views=2),
    "left right in scenes": Found("s/left.png s/right.png", {"s": "s/left.png s/right.png"}, views=2),
    "_l _r": Found("a_l.png a_r.PNG", {"a": "a_l.png a_r.PNG"}, views=2),
    "_left _right": Found("a_left.jpg a_right.jpg", {"a": "a_left.jpg a_right.jpg"}, views=2),
    "left_ right_": Found("left_a.png right_a.png", {"a": "left_a.png right_a.png"}, views=2),
    "KITTI": Found(
        "image_2/0_10.PNG image_3/0_10.Png image_0/0_10.png",
        {"0": "image_2/0_10.PNG image_3/0_10.Png"},
        views=2,
    ),
    "degraded pairs": Found(
        "GT/a_L.png GT/a_R.png noisy/a_L.png noisy/a_R.png",
        {"a": "GT/a_L.png GT/a_R.png noisy/a_L.png noisy/a_R.png"},
        views=2,
    ),
    "degraded pairs in one folder": Found(
        "a_L.png a_R.png a_noisy_L.png a_noisy_R.png",
        {"a": "a_L.png a_R.png a_noisy_L.png a_noisy_R.png"},
        views=2,
    ),
    "LR of sides": Found(
        "HR/left/1.png HR/right/1.png LR_x4/left/1.png LR_x4/right/1.png",
        {"1": "HR/left/1.png HR/right/1.png LR_x4/left/1.png LR_x4/right/1.png"},
        views=2,
        scale=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_folders_as_people_have_them(case: str, tmp_path: Path) -> None:
    row = FOUND[case]
    touch(tmp_path, *row.files.split())
    found = find_scenes(tmp_path, views=row.views, scale=row.scale)
    shown = {s.name: " ".join(path.relative_to(tmp_path).as_posix() for path in (*s.hr, *s.lr)) for s in found}
    assert shown == row.scenes


class Refused(NamedTuple):
    """A folder that is refused: files, words of the error in order, and the arguments."""

    files: str
    words: tuple[str, ...]
    views: int = 1
    scale: int = 1


REFUSED = {
    "unknown name": Refused("HR/1.png wet/1.png", ("degraded", "--data-lr", "--layout folders", "wet"), scale=4),
    "unknown names of folder and files": Refused("HR/1.png wet/figure.png", ("--data-lr", "wet"), scale=4),
    "unknown name of sides": Refused("left/1.png right/1.png wet/1.png", ("--layout sides", "wet"), views=2),
    "every unknown name": Refused("HR/1.png wet/1.png mist/1.png", ("mist", "wet"), scale=4),
    "unknown name beside pairs": Refused("a_L.png a_R.png wet/a_L.png wet/a_R.png", ("--data-lr", "wet"), views=2),
    "another layout beside pairs": Refused("HR/a_L.png HR/a_R.png wet/a/lr0.png wet/a/lr1.png", ("wet",), views=2),
    "inside plain images": Refused("1.png noisy/1.png", ("noisy", "--data-lr")),
    "inside a clean folder": Refused("GT/1.png GT/wet/1.png", ("GT/wet",)),
    "several degraded": Refused("GT/1.png blur/1.png noisy/1.png", ("blur, noisy", "--data-lr")),
    "several of one scale": Refused("HR/1.png LR_x4/1.png bicubic/X4/1.png", ("LR_x4, bicubic/X4",), scale=4),
    "several clean": Refused("GT/1.png HR/1.png LQ/1.png", ("GT, HR",)),
    "two folders of no known name": Refused("A/1.png B/1.png", ("A (layout plain", "B (layout plain")),
    "two splits": Refused("train/GT/1.png test/GT/1.png", ("test (layout folders", "train (layout folders")),
    "two splits of both": Refused(
        "train/input/1.png train/target/1.png test/input/1.png test/target/1.png",
        ("test (layout folders", "train (layout folders"),
    ),
    "only degraded": Refused("LQ/1.png", ("no scenes",)),
    "without partner": Refused("GT/1.png GT/2.png LQ/1.png LQ/3.png", ("3: has degraded views", "2: has clean views")),
    "without partner at x4": Refused("GT/1.png GT/2.png LQ/1.png", ("2: has HR views, but no LR views",), scale=4),
    "left over in one folder": Refused("a_gt.png a_lq.png b_lq.png c.png", ("b_lq: has degraded", "c: has clean")),
    "several degraded of one": Refused("a_gt.png a_noisy.png a_blur.png", ("a_", "has degraded views, but no clean")),
    "ambiguous marks": Refused("rain/rain-1.png norain/clean-1.png norain/gt-1.png", ("rain-1: has degraded",)),
    "words of both roles": Refused(
        "low_noise_1.png high_noise_1.png", ("cannot be told apart", "high_noise_1, low_noise_1")
    ),
    "words of both roles in one name": Refused("low_1_noisy.png low_1_clean.png", ("low_1_clean, low_1_noisy",)),
    "folders of scenes of both roles": Refused(
        "low_a/sharp/1.png low_a/blur/1.png high_a/sharp/1.png high_a/blur/1.png", ("cannot be told apart",)
    ),
    "a scale in two folders is no resolution": Refused(
        "HR/a_640.png LR/a_640x480.png", ("a_640x480: has", "a_640: has"), scale=4
    ),
    "a denied word of a degraded folder": Refused("GT/1.png not_blurred/1.png", ("--data-lr", "not_blurred")),
    "a denied word of a clean folder": Refused("not_clean/1.png noisy/1.png", ("not_clean (layout plain",)),
    "results of a method": Refused("clean/1.png denoised_input/1.png", ("--data-lr", "denoised_input")),
    "results that look clean": Refused("restored_GT/1.png LQ/1.png", ("restored_GT (layout plain",)),
    "maps of normals": Refused("input/1.png normal/1.png rgb/1.png", ("normal (layout plain", "rgb (layout plain")),
    "marks against the folders": Refused(
        "clean/rain-1.png noisy/norain-1.png", ("norain-1: has degraded", "a word of clean images", "\n  - rain-1: has")
    ),
    "one side": Refused("left/1.png right/2.png", ("left/1.png: has no right", "right/2.png: has no left"), views=2),
    "scene without partner": Refused("s/im0.png s/im1.png t/im0.png", ("t/im0.png: has no right view",), views=2),
    "several exposures of a clean image": Refused(
        "1_noisy1.png 1_noisy2.png 1_clean.png", ("several degraded", "1_noisy1", "1_noisy2")
    ),
    "nothing": Refused("notes.txt", ("no scenes", "folders", "plain")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_not_understood_are_refused_whole(case: str, tmp_path: Path) -> None:
    row = REFUSED[case]
    touch(tmp_path, *row.files.split())
    with pytest.raises(DataError) as caught:
        find_scenes(tmp_path, views=row.views, scale=row.scale)
    text = str(caught.value).replace(str(tmp_path), "")
    places = [text.find(word) for word in row.words]
    assert -1 not in places, text
    assert places == sorted(places), text


def test_a_layout_that_is_named_passes_over_other_folders(tmp_path: Path) -> None:
    touch(tmp_path, "HR/1.png", "wet/1.png")
    (scene,) = find_scenes(tmp_path, views=1, layout="folders")
    assert (scene.lr, scene.layout) == ((), "folders")


def test_the_degraded_folder_that_is_named_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "HR/norain-1.png", "wet/rain-1.png")
    (scene,) = find_scenes(tmp_path, views=1, lr_folder=tmp_path / "wet")
    assert scene.lr == (tmp_path / "wet" / "rain-1.png",)


def test_a_plain_layout_that_is_named_keeps_marked_images_apart(tmp_path: Path) -> None:
    touch(tmp_path, "rain.png", "clear.png")
    assert [s.name for s in find_scenes(tmp_path, views=1, layout="plain")] == ["clear", "rain"]


@pytest.mark.parametrize("place", ["", "GT"])
def test_the_clean_folder_is_not_its_own_degraded_one(place: str, tmp_path: Path) -> None:
    touch(tmp_path, "GT/1.png", "GT/2.png")
    with pytest.raises(DataError, match="GT was given as the degraded images"):
        find_scenes(tmp_path / place, views=1, scale=1, lr_folder=tmp_path / "GT")


def test_names_may_differ_in_words_without_a_role_where_the_folders_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "Normal/normal01.png", "Low/low01.png")
    (scene,) = find_scenes(tmp_path / "Normal", views=1, lr_folder=tmp_path / "Low")
    assert scene.lr == (tmp_path / "Low" / "low01.png",)


def test_names_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    touch(tmp_path, f"GT/{names[1]}.png", f"LQ/{names[0]}.png")
    (tmp_path / "meta.txt").write_text(names[1], encoding="utf-8")
    for meta_info in (None, tmp_path / "meta.txt"):
        (scene,) = find_scenes(tmp_path, views=1, meta_info=meta_info)
        assert (scene.name, scene.hr[0].stem, scene.lr[0].stem) == (names[0], names[1], names[0])
    touch(tmp_path, f"GT/{names[0]}.png")
    with pytest.raises(DataError, match="is the same view as"):
        find_scenes(tmp_path, views=1)


# --- Meta-info files
def test_a_meta_info_file_chooses_the_scenes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{n}.png" for folder in ("GT", "LQ") for n in "abc"), "GT/alone.png")
    (tmp_path / "meta_info_x.txt").write_text("c.png (480,480,3)\na.png (480, 480, 3)\n\n")
    found = find_scenes(tmp_path, views=1, meta_info=tmp_path / "meta_info_x.txt")
    assert [(s.name, s.lr) for s in found] == [(n, (tmp_path / "LQ" / f"{n}.png",)) for n in "ac"]


@pytest.mark.parametrize("lines", ["GT/a.png", "a", "./a.png (1,2)", "GT/a", "\ufeffa.png"])
def test_names_of_a_meta_info_file_may_have_a_folder_or_no_suffix(lines: str, tmp_path: Path) -> None:
    touch(tmp_path, "GT/a.png", "GT/b.png")
    (tmp_path / "meta.txt").write_text(lines, encoding="utf-8")
    assert [s.name for s in find_scenes(tmp_path, views=1, meta_info=tmp_path / "meta.txt")] == ["a"]


def test_a_view_of_a_pair_in_a_meta_info_file_chooses_the_pair(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "b_L.png", "b_R.png")
    (tmp_path / "meta.txt").write_text("b_R.png (1,1,3)")
    assert [s.name for s in find_scenes(tmp_path, meta_info=tmp_path / "meta.txt")] == ["b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a.png\nz.png (1,1,3)\ny.png\n", r"meta.txt(?s:.*)z.png: is listed(?s:.*)y.png: is listed"),
        (b"a.png\na.png\n", r"twice(?s:.*)a\.png"),
        (b"a.png\nGT/a.png\na\n", r"GT/a.png: is listed twice, also as a.png(?s:.*)a: is listed twice"),
        (b"b.png\n", "b: has HR views, but no LR views"),
        (b"\n\n", "lists no images"),
        (b"\xff\xfe\x00", "not a text file"),
        (None, "cannot read"),
    ],
)
def test_a_meta_info_file_is_checked(text: bytes | None, words: str, tmp_path: Path) -> None:
    touch(tmp_path, "GT/a.png", "GT/b.png", "LQ/a.png")
    if text is not None:
        (tmp_path / "meta.txt").write_bytes(text)
    with pytest.raises(DataError, match=words):
        find_scenes(tmp_path, views=1, meta_info=tmp_path / "meta.txt")
