"""The line that says what a command reads, and that every command prints it once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowpeft.cli.main import main
from lowpeft.errors import DataError
from lowpeft.restoration.data import Scene, find_scenes, load_example, reading
from lowpeft.restoration.images import matlab_downscale, write_image
from scene_files import noise, touch, write_pair


@pytest.mark.parametrize(
    ("files", "arguments", "line"),
    [
        ("GT/1.png LQ/1.png", {"views": 1, "scale": 1},
         "1 image from GT (layout folders); degraded images read from LQ"),
        ("HR/1.png x4/1.png", {"views": 1, "scale": 4}, "1 image from HR (layout folders); LR read from x4"),
        ("a_L.png a_R.png b_L.png b_R.png", {"scale": 2},
         "2 pairs from . (layout pairs); LR made by MATLAB's bicubic x2"),
        ("1.png", {"views": 1, "scale": 1}, "1 image from . (layout plain); degraded images neither read nor made"),
        ("s/im0.png s/im1.png t/im0.png t/im1.png", {"scale": 2},
         "2 pairs from . (layout middlebury); LR made by MATLAB's bicubic x2"),
        ("a_gt.png a_lq.png", {"views": 1, "scale": 1}, "1 image from . (layout marked); degraded images read from ."),
    ],
)  # fmt: skip
def test_the_line_says_how_many_from_where_and_whether_lr_files_are_read(
    files: str, arguments: dict[str, int], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *files.split())
    monkeypatch.chdir(tmp_path)
    assert reading(find_scenes(".", **arguments), arguments["scale"]) == line


def test_scenes_by_hand_and_other_ways_to_make_images(tmp_path: Path) -> None:
    scenes = [Scene(str(n), (tmp_path / f"{n}.png",)) for n in range(1200)]
    line = reading(scenes, 1, what="training", made="made by noise:25")
    assert line == f"training: 1,200 images from {tmp_path}; degraded images made by noise:25"
    mixed = [scenes[0], Scene("x", (tmp_path / "x.png",), (tmp_path / "lr" / "x.png",))]
    assert reading(mixed, 2).endswith(f"; LR read from {tmp_path / 'lr'}, of 1 made by MATLAB's bicubic x2")


def test_one_file_is_not_both_clean_and_degraded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scene a: .*a\.png is given both"):
        Scene("a", (tmp_path / "a.png",), (tmp_path / "a.png",))


def test_degraded_images_have_the_size_of_the_clean_ones(tmp_path: Path) -> None:
    for folder, width in (("GT", 8), ("LQ", 4)):
        (tmp_path / folder).mkdir()
        write_image(noise(8, width), tmp_path / folder / "1.png")
    (scene,) = find_scenes(tmp_path, views=1, scale=1)
    with pytest.raises(DataError, match=r"clean view of 8x8 px needs a degraded view of 8x8 px, but 1\.png is 4x8"):
        load_example(scene, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with its LR views, and names of a pair that a list leaves out."""
    folder = tmp_path_factory.mktemp("set")
    for name in ("a", "b"):
        write_pair(folder / "HR", name, 16, 144)
        for side in "LR":
            (folder / "LR_x2").mkdir(exist_ok=True)
            write_image(
                matlab_downscale(noise(16, 144, 1000 * (side == "R")), 2), folder / "LR_x2" / f"{name}_{side}.png"
            )
    (folder / "meta_info_set.txt").write_text("a_L.png (16,144,3)\n")
    return folder


@pytest.mark.parametrize(
    ("command", "lr"),
    [
        ("evaluate --bicubic --data {0} --scale 2", "read from {0}/LR_x2"),
        ("evaluate --bicubic --data {0} --scale 4", "made by MATLAB's bicubic x4"),
        ("verify-lr {0} --scale 2", "read from {0}/LR_x2"),
        ("prepare {0} --scale 2 --out {1}", "made by MATLAB's bicubic x2"),
    ],
)
def test_commands_say_once_what_they_read(
    command: str, lr: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command.format(folder, tmp_path / "out").split(), "--meta-info", str(folder / "meta_info_set.txt")]
    assert main(arguments) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "from" in line]
    assert lines == [f"1 pair from {folder}/HR (layout flat); LR {lr.format(folder)}"]


@pytest.mark.parametrize("option", [["--layout", "flat"], ["--meta-info", "{0}/meta_info_set.txt"]])
def test_train_says_what_it_reads(
    option: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--crop", "16", "16", "--steps", "1", "--batch", "1", "--device", "cpu"]
    data = ["--data", str(folder), "--test", str(folder / "LR_x2"), "--out", str(tmp_path / "out")]
    status = main(["train", "spatial", "--weights", "demo", *data, *[part.format(folder) for part in option], *size])
    assert status == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " from " in line]
    count = "1 pair" if "--meta-info" in option else "2 pairs"
    assert lines[0].startswith(f"training: {count} from {folder}/HR (layout flat); LR ")
    assert lines[1].startswith(f"test: 2 pairs from {folder}/LR_x2 (layout pairs); LR made by")
