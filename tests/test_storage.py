"""Files and folders appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lowpeft import storage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = storage.write_text(tmp_path / "a.txt", "old")
    with storage.new_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = storage.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError), storage.new_file(path) as temporary:
        temporary.write_text(b"half")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with storage.new_file(tmp_path / "a.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)  # which lets the owner alone read
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / "below" / "run") as temporary:
        storage.write_json(temporary / "a.json", {"ä": [1]})
        assert not (tmp_path / "below" / "run").exists()
    assert json.loads((tmp_path / "below" / "run" / "a.json").read_text(encoding="utf-8")) == {"ä": [1]}
    assert names(tmp_path / "below") == ["run"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), storage.new_folder(tmp_path / "run") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == []


def test_a_folder_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(OSError, match="not empty"), storage.new_folder(tmp_path / "run"):
        pass
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["mine"]


def test_what_killed_runs_left_is_found(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "a.txt", "x")
    (tmp_path / ".b.txt.0123456789ab.part").touch()
    assert [path.name for path in storage.leftovers(tmp_path)] == [".b.txt.0123456789ab.part"]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127])
def test_names_may_be_as_long_as_the_file_system_allows(name: str, tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / name) as temporary:
        (temporary / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]
