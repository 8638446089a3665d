"""Write files and folders in one step: readers never see an incomplete one, even if the writer is killed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".part"
"""Suffix of temporary files and folders: `.NAME.RANDOM.part` beside `NAME`."""


def cache_folder() -> Path:
    """Return the folder for what can be made again: `$XDG_CACHE_HOME/lowpeft`, by default `~/.cache/lowpeft`.

    Raises:
        RuntimeError: There is no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "lowpeft"


@contextlib.contextmanager
def new_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` when the block ends without an error.

    The file gets the default permissions of a new file, whatever the writer set (safetensors sets owner-only).

    Args:
        path: Path of the file.
        durable: Flush the file to the disk, so that it survives a power cut. False for many files that can be made
            again, such as images.

    Raises:
        OSError: The file cannot be written. After this or an error in the block, `path` is unchanged.
    """
    temporary = beside(path)
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)
        if durable:
            fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync(path.parent)


@contextlib.contextmanager
def new_folder(folder: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` to fill; it is renamed to `folder` when the block ends without an error.

    Args:
        folder: Path of the folder.
        durable: See `new_file`.

    Raises:
        OSError: It cannot be written, or `folder` is present and not empty. After this or an error in the block, the
            temporary folder is removed.
    """
    temporary = beside(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        yield temporary
        if durable:
            for path in (*temporary.rglob("*"), temporary):
                fsync(path)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if durable:
        fsync(folder.parent)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, in one step.

    Raises:
        OSError: It cannot be written; an existing file is unchanged.
    """
    with new_file(path) as temporary:
        # Names of files may hold bytes that are no text.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def write_json(path: Path, value: object) -> Path:
    """Write a value as indented JSON, in one step.

    Raises:
        OSError: It cannot be written; an existing file is unchanged.
    """
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def finite_or_text(value: float) -> float | str:
    """Return a figure for JSON: infinity and NaN as text."""
    return value if math.isfinite(value) else str(value)


def leftovers(folder: Path) -> list[Path]:
    """List temporary files and folders that killed runs left in a folder."""
    return sorted(folder.glob(f".*{TEMPORARY}"))


def fsync(path: Path) -> None:
    """Flush a file, or (on POSIX) a folder's entries, to disk; a no-op for folders on other systems."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: Path) -> Path:
    """Return a new temporary path. A long name is shortened, so that it stays within the 255 bytes of file systems."""
    name = os.fsencode(path.name)[:200].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(6)}{TEMPORARY}")
