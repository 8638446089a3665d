"""`lowpeft prepare` and `lowpeft verify-lr`, from Python and from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lowpeft.cli import main
from lowpeft.errors import DataError
from lowpeft.restoration.data import (
    LAYOUTS,
    Loading,
    Match,
    find_scenes,
    load_example,
    prepare,
    preparing,
    scenes_with_lr,
    verify_lr,
)
from lowpeft.restoration.images import matlab_downscale, matlab_halve, mod_crop, read_image, write_image
from scene_files import noise, touch, write_layout, write_pair


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three pairs as raw Flickr1024 has them."""
    for seed, name in enumerate("abc"):
        write_pair(tmp_path / "raw", name, 26, 41, seed)
    return tmp_path / "raw"


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- prepare
@pytest.mark.parametrize("border", ["symmetric", "replicate"])
@pytest.mark.parametrize("halve", [False, True])
def test_prepared_pairs_are_a_test_set(raw: Path, tmp_path: Path, border: str, halve: bool) -> None:
    scenes = find_scenes(raw)
    assert prepare(scenes, tmp_path / "out", 4, loading=Loading(border=border, halve=halve)) == 3
    found = find_scenes(tmp_path / "out", scale=4, layout="ipassr")
    for before, after in zip(scenes, found, strict=True):
        expected = load_example(before, 4, loading=Loading(border=border, halve=halve))
        files = [read_image(path) for path in (*after.lr, *after.hr)]
        assert all(torch.equal(a, b) for a, b in zip(files, (*expected.lr, *expected.hr), strict=True))
    assert verify_lr(found, 4).borders == (border,)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_can_be_prepared(layout: object, tmp_path: Path) -> None:
    write_layout(tmp_path / "in", layout, ("a", "b"))
    arguments = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--scale", "2"]
    assert main([*arguments, "--views", str(layout.views)]) == 0
    found = find_scenes(tmp_path / "out", scale=2, views=layout.views)
    assert [(s.name[0], len(s.lr)) for s in found] == [("a", layout.views), ("b", layout.views)]


def test_the_clean_rectangles_of_the_manifest_are_cut(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (raw / "manifest.json").write_text('[{"scene": "b", "clean_crop": [4, 4, 36, 24]}]')
    assert main(["prepare", str(raw), "--out", str(tmp_path / "out"), "--scale", "4"]) == 0
    printed = capsys.readouterr().out
    assert "3 scenes at x4, 3 written now" in printed
    assert "1 scene" in printed
    sizes = [tuple(read_image(s.hr[0]).shape[1:]) for s in find_scenes(tmp_path / "out")]
    assert sizes == [(24, 40), (20, 32), (24, 40)]


def test_a_second_run_writes_what_is_missing_and_nothing_else(raw: Path, tmp_path: Path) -> None:
    out, scenes = tmp_path / "out", find_scenes(raw)
    prepare(scenes[:1], out, 4)
    (out / "hr" / "a" / "note.txt").touch()
    assert prepare(scenes, out, 4) == 2
    assert (out / "hr" / "a" / "note.txt").exists()
    assert prepare(scenes, out, 4) == 0


@pytest.mark.parametrize("changed", ["pixels", "size", "rectangle"])
def test_another_scene_of_the_same_name_is_refused(changed: str, raw: Path, tmp_path: Path) -> None:
    """Flickr1024's Train and Validation both begin at 0001."""
    out = tmp_path / "out"
    prepare(find_scenes(raw), out, 4)
    before = tree(out)
    other = write_pair(
        tmp_path / "other", "b", 26, 41 if changed == "pixels" else 45, 1 if changed == "rectangle" else 9
    )
    crops = {"b": (0, 0, 36, 24)} if changed == "rectangle" else {}
    with pytest.raises(DataError, match="scene b ") as caught:
        prepare([other], out, 4, clean_crops=crops)
    files = [f"{part}{view}.png" for part in ("lr_x4/b/lr", "hr/b/hr") for view in (0, 1)]
    assert caught.value.problems == tuple(str(out / file) for file in files)
    assert tree(out) == before


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("complete", [True, False])
def test_lr_views_that_differ_are_refused(views: int, complete: bool, raw: Path, tmp_path: Path) -> None:
    """They may be of another program, whatever the HR views are, and whether or not those are present."""
    out, scenes = tmp_path / "out", find_scenes(raw, views=views)
    prepare(scenes, out, 4)
    lr, hr = (out / "lr_x4/b/lr1.png", out / "hr/b") if views == 2 else (out / "LR_x4/b_R.png", out / "HR/b_R.png")
    write_image(read_image(lr).flip(2), lr)
    if not complete:
        shutil.rmtree(hr) if views == 2 else hr.unlink()
    before = tree(out)
    with pytest.raises(DataError) as caught:
        prepare(scenes, out, 4)
    assert caught.value.problems == (str(lr),)
    assert tree(out) == before


def test_views_that_were_removed_are_written_again(raw: Path, tmp_path: Path) -> None:
    out, scenes = tmp_path / "out", find_scenes(raw)
    prepare(scenes, out, 4)
    before = tree(out)
    shutil.rmtree(out / "lr_x4" / "a")
    (out / "hr" / "b" / "hr0.png").unlink()
    assert prepare(scenes, out, 4) == 2
    assert tree(out) == before


@pytest.mark.parametrize("views", [1, 2])
def test_temporary_files_of_killed_runs_are_removed(views: int, raw: Path, tmp_path: Path) -> None:
    out, scenes = tmp_path / "out", find_scenes(raw, views=views)
    touch(out, ".prepared.json.0123456789ab.part")
    prepare(scenes, out, 4)
    before = tree(out)
    touch(out / "hr" if views == 2 else out / "HR", ".a.0123456789ab.part/hr0.png", ".a.png.0123456789ab.part")
    assert prepare(scenes, out, 4) == 0
    assert tree(out) == before
    assert not any(".part" in name for name in before)


def test_a_damaged_image_in_the_folder_is_named(raw: Path, tmp_path: Path) -> None:
    prepare(find_scenes(raw), tmp_path / "out", 4)
    (tmp_path / "out" / "hr" / "b" / "hr1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b/hr1\.png"):
        prepare(find_scenes(raw), tmp_path / "out", 4)


def test_all_scenes_that_cannot_be_prepared_are_named_before_anything_is_written(raw: Path, tmp_path: Path) -> None:
    write_image(noise(26, 40), raw / "a_R.png")
    (raw / "c_L.png").write_text("<html>404</html>")
    with pytest.raises(DataError) as caught:
        prepare(find_scenes(raw), tmp_path / "out", 4)
    assert [line.split(":")[0] for line in caught.value.problems] == ["scene a", "scene c"]
    with pytest.raises(DataError, match="scene b: the scale must be at least 1, not 0"):
        prepare(find_scenes(raw)[1:2], tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_the_rectangles_hold_for_the_views_of_pairs_one_by_one(raw: Path, tmp_path: Path) -> None:
    (raw / "manifest.json").write_text('[{"scene": "b", "clean_crop": [4, 4, 36, 24]}]')
    assert main(["prepare", str(raw), "--out", str(tmp_path / "out"), "--scale", "4", "--views", "1"]) == 0
    sizes = {s.name: tuple(read_image(s.hr[0]).shape[1:]) for s in find_scenes(tmp_path / "out", views=1)}
    assert (sizes["a_L"], sizes["b_L"], sizes["b_R"]) == ((24, 40), (20, 32), (20, 32))


def test_lr_views_that_a_kill_left_alone_are_written_again(raw: Path, tmp_path: Path) -> None:
    """A kill may fall between the two moves of a scene: its LR views are there, its HR views are not."""
    out, scenes = tmp_path / "out", find_scenes(raw)
    prepare(scenes, out, 4)
    before = tree(out)
    shutil.rmtree(out / "hr" / "b")
    with pytest.raises(DataError, match="b: has LR views"):
        find_scenes(out)
    assert prepare(scenes, out, 4) == 1
    assert tree(out) == before


def test_a_scene_appears_whole_or_not_at_all(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever write fails, there is no HR view without its LR views, and the next run goes on."""
    scenes = find_scenes(raw)
    prepare(scenes, tmp_path / "whole", 4)
    for failing in range(12):
        out, calls = tmp_path / f"out{failing}", []

        def full_disk(image: torch.Tensor, path: Path, failing: int = failing, calls: list[Path] = calls) -> None:
            calls.append(path)
            if len(calls) > failing:
                raise OSError(28, "No space left on device", str(path))
            write_image(image, path)

        with monkeypatch.context() as patch:
            patch.setattr(preparing, "write_image", full_disk)
            with pytest.raises(DataError, match="No space left on device"):
                prepare(scenes, out, 4)
        there = [p.name for p in (out / "hr").iterdir()] if (out / "hr").exists() else []
        assert sorted(there) == ["a", "b", "c"][: failing // 4]
        assert all(len(list((out / part / name).iterdir())) == 2 for name in there for part in ("hr", "lr_x4"))
        assert prepare(scenes, out, 4) == 3 - len(there)
        assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scale": 2}, "scale was 4, is now 2"),
        ({"loading": Loading(border="replicate")}, "border was 'symmetric', is now 'replicate'"),
        ({"loading": Loading(halve=True)}, "halve was False, is now True"),
    ],
)
def test_settings_are_not_mixed_in_one_folder(raw: Path, tmp_path: Path, changes: dict, problem: str) -> None:
    prepare(find_scenes(raw), tmp_path / "out", 4)
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match=str(tmp_path / "out")) as caught:
        prepare(find_scenes(raw), tmp_path / "out", **{"scale": 4, **changes})
    assert caught.value.problems == (problem,)
    assert tree(tmp_path / "out") == before


def test_folders_of_others_are_left_alone(raw: Path) -> None:
    before = tree(raw)
    with pytest.raises(DataError, match=r"'a_L\.png'"):
        prepare(find_scenes(raw), raw, 4)
    assert tree(raw) == before


# --- verify-lr
def test_both_borders_are_compared_value_by_value(tmp_path: Path) -> None:
    hr = noise(32, 48)
    lr = matlab_downscale(hr, 4, border="replicate")
    lr[1, 3, 5] += 7 if lr[1, 3, 5] < 128 else -7
    write_image(hr, tmp_path / "a_HR.png")
    write_image(lr, tmp_path / "a_LR.png")
    report = verify_lr(find_scenes(tmp_path, views=1), 4)
    found = report.scenes["a"]["replicate"]
    assert (found.exact, found.values, found.largest_error) == (3 * 8 * 12 - 1, 3 * 8 * 12, 7)
    wrong = int((matlab_downscale(hr, 4) != lr).sum())
    assert report.total("symmetric").exact == 3 * 8 * 12 - wrong
    assert report.borders == ()


def test_one_wrong_value_in_millions_is_not_100_percent() -> None:
    assert str(Match(10**8 - 1, 10**8, 1)) == "99.9999 % (1)"
    assert str(Match(10**8, 10**8, 0)) == "100.0000 % (0)"


def test_small_images_may_match_with_both_borders(tmp_path: Path) -> None:
    write_image(torch.full((3, 16, 16), 9, dtype=torch.uint8), tmp_path / "a_HR.png")
    write_image(torch.full((3, 4, 4), 9, dtype=torch.uint8), tmp_path / "a_LR.png")
    report = verify_lr(find_scenes(tmp_path, views=1), 4)
    assert report.borders == ("symmetric", "replicate")
    assert "border symmetric or replicate " in str(report)


def test_halved_sets_are_compared_with_their_own_border(tmp_path: Path) -> None:
    (tmp_path / "hr").mkdir()
    (tmp_path / "lr").mkdir()
    for side in "LR":
        hr = noise(31, 47, ord(side))
        write_image(hr, tmp_path / "hr" / f"a_{side}.png")
        half = mod_crop(matlab_halve(hr, border="replicate"), 4)
        write_image(matlab_downscale(half, 4, border="replicate"), tmp_path / "lr" / f"a_{side}.png")
    scenes = find_scenes(tmp_path / "hr", lr_folder=tmp_path / "lr")
    assert verify_lr(scenes, 4, halve=True).borders == ("replicate",)


def test_the_command_says_which_border_and_exits_with_0(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare(find_scenes(raw), tmp_path / "out", 4, loading=Loading(border="replicate"))
    assert main(["verify-lr", str(tmp_path / "out"), "--scale", "4"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[-2:] == ["symmetric", "replicate"]
    assert [line.split()[0] for line in printed[1:5]] == ["a", "b", "c", "all"]
    assert printed[4].endswith("100.0000 % (0)")
    assert "border replicate " in printed[5]


def test_files_of_another_resizer_exit_with_1(raw: Path, capsys: pytest.CaptureFixture) -> None:
    """Pillow's bicubic: near, and not the benchmark."""
    lr = raw.parent / "lr"
    lr.mkdir()
    for path in raw.iterdir():
        small = Image.open(path).crop((0, 0, 40, 24)).resize((10, 6), Image.Resampling.BICUBIC)
        small.save(lr / path.name)
    assert main(["verify-lr", str(raw), "--lr", str(lr), "--scale", "4"]) == 1
    assert "neither border" in capsys.readouterr().out


def test_scenes_without_lr_files_are_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(find_scenes(raw)[:2], tmp_path / "out", 4)
    assert main(["verify-lr", str(raw), "--lr", str(tmp_path / "out" / "lr_x4"), "--scale", "4"]) == 0
    assert capsys.readouterr().err.strip().endswith(": c")


def test_without_lr_files_there_is_nothing_to_verify(raw: Path) -> None:
    with pytest.raises(DataError) as caught:
        verify_lr(find_scenes(raw), 4)
    assert [line.split(":")[0] for line in caught.value.problems] == ["scene a", "scene b", "scene c"]
    with pytest.raises(DataError, match=f"{raw} .* x4"):
        scenes_with_lr(raw, scale=4)


@pytest.mark.real_data
def test_the_archive_of_kitti_2015_is_matlabs_with_the_symmetric_border(data_root: Path) -> None:
    stereo = data_root / "stereo"
    scenes, without = scenes_with_lr(stereo / "test", lr_folder=stereo / "test_lr_x4_matlab")
    assert (len(scenes), len(without)) == (20, 5)
    report = verify_lr(scenes, 4)
    assert report.borders == ("symmetric",)
    assert str(report.total("symmetric")) == "100.0000 % (0)"
    assert str(report.total("replicate")).startswith("99.2")


@pytest.mark.real_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_set5_files_are_matlabs_with_the_replicated_border(data_root: Path, scale: int) -> None:
    scenes = find_scenes(data_root / "single" / "Set5" / f"x{scale}", scale=scale, views=1)
    assert verify_lr(scenes, scale).borders == ("replicate",)


# --- Bad input, from the command line
def hr_files(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"a_{side}.png" for side in "LR"]
    for path, size in zip(paths, sizes, strict=True):
        write_image(noise(*size), path)
    return paths


def unpaired(folder: Path) -> None:
    hr_files(folder, (16, 32), (16, 32))[1].rename(folder / "b_R.png")


def sizes_differ(folder: Path) -> None:
    hr_files(folder, (16, 32), (16, 36))


def wrong_ratio(folder: Path) -> None:
    hr_files(folder / "HR", (16, 32), (16, 32))
    hr_files(folder / "LR_x4", (8, 16), (8, 16))


def float_samples(folder: Path) -> None:
    left, _ = hr_files(folder, (16, 32), (16, 32))
    Image.new("F", (32, 16)).save(left, format="TIFF")


def corrupt(folder: Path) -> None:
    _, right = hr_files(folder, (16, 32), (16, 32))
    right.write_bytes(right.read_bytes()[:-300])


def no_image(folder: Path) -> None:
    hr_files(folder, (16, 32), (16, 32))[0].write_text("<html>404</html>")


def too_small(folder: Path) -> None:
    hr_files(folder, (3, 32), (3, 32))


def empty(folder: Path) -> None:
    touch(folder, "readme.txt")


BAD = [
    (unpaired, ("a_L.png: has no right view", "b_R.png: has no left view")),
    (sizes_differ, ("scene a: ", "32x16 px", "36x16 px")),
    (float_samples, ("scene a: ", "a_L.png", "32 bits (float")),
    (corrupt, ("scene a: ", "a_R.png")),
    (no_image, ("scene a: ", "a_L.png")),
    (too_small, ("scene a: ",)),
    (empty, ("pairs (raw Flickr1024",)),
]


@pytest.mark.parametrize(("make", "words"), BAD, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_bad_input_exits_with_2_and_says_why(
    command: str, make: object, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    if command == "prepare":
        arguments = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--scale", "4"]
    else:
        arguments = ["train", "stereo", "--weights", "demo", "--data", str(tmp_path / "in")]
        arguments += ["--out", str(tmp_path / "out"), "--crop", "16", "32", "--steps", "1", "--device", "cpu"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"lowpeft {command}: " in message
    assert [word for word in words if word not in message] == []
    assert "Traceback" not in message


def test_lr_views_of_the_wrong_ratio_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wrong_ratio(tmp_path)
    assert main(["verify-lr", str(tmp_path), "--scale", "4"]) == 2
    message = capsys.readouterr().err
    assert [word for word in ("scene a: ", "32x16 px", "8x4 px", "a_L.png", "16x8 px") if word not in message] == []


def test_a_place_that_cannot_be_written_is_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        assert main(["prepare", str(raw), "--out", str(out), "--scale", "4"]) == 2
        assert str(out) in capsys.readouterr().err


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    for side in "LR":
        Image.effect_noise((32, 16), 50).save(tmp_path / f"a_{side}.png")
    example = load_example(find_scenes(tmp_path)[0], 4)
    assert all(view.shape[0] == 3 and torch.equal(view[0], view[2]) for view in (*example.lr, *example.hr))
