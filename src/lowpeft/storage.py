"""Write files and folders in one step: a reader, or a run that is killed, never leaves half of one under its name."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".part"
"""Suffix of what is being written; `.NAME.RANDOM.part` beside `NAME`."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` when the block ends without an error.

    The file gets the permissions of any new file, whatever the writer gave it (safetensors lets the owner alone read).

    Raises:
        OSError: The file cannot be written, or an error of the block; `path` is then unchanged.
    """
    temporary = _beside(path)
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` to fill; it takes that name when the block ends without an error.

    Raises:
        OSError: It cannot be written, `folder` is present and not empty, or an error of the block; nothing is left.
    """
    temporary = _beside(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            fsync(path)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(folder.parent)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, in one step.

    Raises:
        OSError: It cannot be written; what was there is unchanged.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: object) -> Path:
    """Write a value as indented JSON, in one step.

    Raises:
        OSError: As for `write_text`.
    """
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def leftovers(folder: Path) -> list[Path]:
    """List temporary files and folders that killed runs left in a folder."""
    return sorted(folder.glob(f".*{TEMPORARY}"))


def fsync(path: Path) -> None:
    """Flush a file, or (on POSIX) a folder's entries, to the disk."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
