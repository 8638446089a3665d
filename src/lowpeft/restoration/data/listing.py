"""Reading folders: their subfolders and images, each folder once."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Container, Iterator
from pathlib import Path

from ...errors import DataError
from ..images import IMAGE_SUFFIXES

_SUFFIXES = tuple(IMAGE_SUFFIXES)
PASSED_OVER = frozenset({"__MACOSX", "$RECYCLE.BIN", "Thumbs.db"})


class Listing:
    """Names in folders. Each folder is read once; no file is opened. Hidden names and `__MACOSX` are left out."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, folder: Path | str) -> list[str]:
        """Return the names of a folder's subfolders, sorted."""
        return self._names(folder)[0]

    def images(self, folder: Path | str, depth: int = 0, only: Container[str] | None = None) -> Iterator[str]:
        """Yield the images `depth` levels below a folder, sorted, relative to it.

        Lazy: there may be 49,020 subfolders. With `only`, subfolders with other names in small letters are skipped.
        """
        if not depth:
            yield from self._names(folder)[1]
            return
        for name in self.folders(folder):
            if only is None or name.lower() in only:
                yield from (f"{name}/{image}" for image in self.images(f"{folder}/{name}", depth - 1))

    def has_images(self, folder: Path | str, depth: int = 0) -> bool:
        """Return whether there are images `depth` levels below a folder."""
        return next(self.images(folder, depth), None) is not None

    def _names(self, folder: Path | str) -> tuple[list[str], list[str]]:
        key = os.fspath(folder)
        if key not in self._read:
            folders, images = [], []
            with os.scandir(key) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or name in PASSED_OVER:
                        continue
                    if entry.is_dir():
                        folders.append(name)
                    elif name.lower().endswith(_SUFFIXES):
                        images.append(name)  # also a broken link, which fails when it is read
            self._read[key] = sorted(folders), sorted(images)
        return self._read[key]


def existing(folder: Path) -> Path:
    """Return the folder.

    Raises:
        DataError: There is none.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return folder


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), so that names that look the same are the same."""
    return unicodedata.normalize("NFC", name)


def stem(image: str) -> str:
    """Return a path without its suffix, in composed form."""
    return composed(image.rpartition(".")[0])
