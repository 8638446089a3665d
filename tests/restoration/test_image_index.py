"""The index of headers: every scene is checked at every start, and files are opened at the first one only."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lowpeft.errors import DataError
from lowpeft.restoration.data import Crops, EachViewTwice, Loading, find_scenes, index
from lowpeft.restoration.data.index import read_headers
from lowpeft.restoration.images import write_image
from scene_files import noise, write_pair


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(index, "STORED_FILES", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    paths = [tmp_path / "data" / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        write_image(noise(4 + n, 5), path)
    return paths


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened."""
    seen: list[Path] = []
    read = index.image_header
    monkeypatch.setattr(index, "image_header", lambda path: seen.append(path) or read(path))
    return seen


def stored(files: list[Path]) -> Path:
    (found,) = (files[0].parents[1] / "cache" / "lowpeft" / "images").iterdir()
    return found


def sizes(files: list[Path]) -> list[tuple[int, int]]:
    return [header.size for header in read_headers(files).values()]


def test_files_are_opened_once(files: list[Path], opened: list[Path]) -> None:
    expected = [(4 + n, 5) for n in range(6)]
    assert sizes(files) == expected
    assert sorted(opened) == files
    opened.clear()
    assert sizes(files) == sizes(files[:4]) + expected[4:] == expected
    assert opened == []


def test_files_that_changed_or_came_are_opened_again(files: list[Path], opened: list[Path]) -> None:
    read_headers(files)
    opened.clear()
    write_image(noise(40, 50), files[2])
    os.utime(files[3], ns=(1, 1))
    write_image(noise(8, 8), new := files[0].with_name("new.png"))
    assert sizes([*files, new])[2] == (40, 50)
    assert sorted(opened) == sorted([files[2], files[3], new])


def foreign(path: Path, *row: object) -> bytes:
    body = json.dumps({"reader": index._reader(), "files": {str(path): row}}).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "foreign", "version", "folder"])
def test_a_damaged_or_foreign_index_is_made_anew(files: list[Path], opened: list[Path], damage: str) -> None:
    expected = sizes(files)
    place = stored(files)
    content = place.read_bytes()
    if damage == "folder":
        place.unlink()
        place.mkdir()
    else:
        flipped = content.replace(b", 5, 8, 1]", b", 9, 8, 1]")
        body = content.partition(b"\n")[2].replace(b"Pillow", b"Willow")
        version = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        made = {
            "cut": content[:-9],
            "empty": b"",
            "flip": flipped,
            "foreign": foreign(files[0], "a"),
            "version": version,
        }
        place.write_bytes(made[damage])
    opened.clear()
    assert sizes(files) == expected
    assert sorted(opened) == files


@pytest.mark.parametrize(
    "row", [("x", 5, 8, 1), (4, 5, None, 1), (4, 0, 8, 1), (4, 5, 9, 1), (4, 5, 8, 9), (4, True, 8, 1), (4, 5, 8.0, 1)]
)
def test_a_whole_index_of_impossible_values_is_made_anew(
    files: list[Path], opened: list[Path], row: tuple[object, ...]
) -> None:
    expected = sizes(files)
    status = files[0].stat()
    stored(files).write_bytes(foreign(files[0], status.st_size, status.st_mtime_ns, *row))
    opened.clear()
    assert sizes(files) == expected
    assert sorted(opened) == files


@pytest.mark.parametrize("home", ["read-only", "a file", "none"])
def test_a_place_that_cannot_be_written_is_no_error(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    place = files[0].parents[1] / "place"
    if home == "a file":
        place.touch()
    elif home == "none":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setattr(index, "new_file", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "denied")))
    if home != "none":
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    assert len(read_headers(files)) == 6


def test_small_sets_store_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_image(noise(4, 5), tmp_path / "a.png")
    read_headers([tmp_path / "a.png"])
    assert not (tmp_path / "cache").exists()


def test_every_scene_is_checked_also_with_an_index(files: list[Path]) -> None:
    """Errors are never stored, and sizes are compared with the crop at every start."""
    files[5].write_bytes(b"no image")
    scenes = find_scenes(files[0].parent, views=1)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            Crops(scenes, 2, crop_px=(6, 4))
        assert [line.split(":")[0] for line in caught.value.problems] == ["scene 0", "scene 1", "scene 5"]


# --- In a plain DataLoader
def test_crops_can_be_shuffled_by_a_plain_loader(tmp_path: Path) -> None:
    scenes = [write_pair(tmp_path, name, seed=n) for n, name in enumerate("abcde")]
    crops = Crops(scenes, 4, crop_px=(8, 16))
    for data, count in ((crops, 5), (EachViewTwice(crops), 10)):
        batches = list(DataLoader(data, batch_size=2, shuffle=True))
        assert sum(len(lr) for lr, _ in batches) == count
    drawn = [hr for _, hr in DataLoader(crops, sampler=range(20))]
    assert len({hr.numpy().tobytes() for hr in drawn}) > 15


# --- Deep and grey images
def deep(path: Path, size: tuple[int, int]) -> None:
    values = torch.randint(0, 65536, size, generator=torch.Generator().manual_seed(1))
    Image.frombytes("I;16", size[::-1], values.to(torch.uint16).numpy().tobytes()).save(path)


def test_crops_of_deep_images_are_not_rounded_to_8_bits(tmp_path: Path) -> None:
    deep(tmp_path / "a.png", (16, 16))
    write_image(noise(16, 16), tmp_path / "b.png")
    crops = Crops(find_scenes(tmp_path, views=1), 2, crop_px=(16, 16), augment=False)
    assert crops.deep_scenes == 1
    rounded = [torch.equal(hr, (hr * 255).round() / 255) for _, hr in crops]
    assert sorted(rounded) == [False, True]
    assert all(float(image.min()) >= 0 and float(image.max()) <= 1 for pair in crops for image in pair)


def test_a_deep_and_a_flat_view_of_one_pair_have_one_range(tmp_path: Path) -> None:
    scene = write_pair(tmp_path, "a", 16, 16)
    deep(scene.hr[0], (16, 16))
    lr, hr = Crops([scene], 2, crop_px=(16, 16))[0]
    assert all(0.3 < float(view.mean()) < 0.7 for image in (lr, hr) for view in image)


def test_grey_crops(tmp_path: Path) -> None:
    scene = write_pair(tmp_path, "a", 16, 16)
    crops = Crops([scene], 2, crop_px=(8, 8), loading=Loading(channels=1))
    assert [image.shape for image in crops[0]] == [(2, 1, 4, 4), (2, 1, 8, 8)]
    with pytest.raises(DataError, match="4 channels"):
        Crops([scene], 2, crop_px=(8, 8), loading=Loading(channels=4))
    assert len(pickle.dumps(crops)) < 3000
