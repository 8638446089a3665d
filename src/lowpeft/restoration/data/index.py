"""The headers of all image files of a data set, read once and stored, so that later starts need no file but one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from ...checks import is_whole
from ...errors import DataError
from ...storage import cache_folder, new_file
from ...version import version
from ..images import ImageHeader, image_header

STORED_FILES = 2000
"""Least number of files for which an index is stored; the headers of fewer are read in a second."""
THREADS = 8
_PER_TASK = 250

_Key = tuple[int, int]
"""Size of a file in bytes, and the time of its last change in ns: a stored header of another key is not used."""
_Entry = tuple[_Key, ImageHeader]


def read_headers(paths: Sequence[Path], *, folder: Path | None = None) -> dict[Path, ImageHeader | DataError]:
    """Read the headers of image files, several at once; return for each its header, or the error that it raises.

    The headers of a large data set are stored in one file, by path, size and time of change. It is used only if it is
    whole, of this version of lowpeft and Pillow, and of this data set, and is written anew whenever a file was added or
    changed. A place that cannot be written is no error: then nothing is stored.

    Args:
        paths: Files; a path may be given more than once.
        folder: Folder of the stored index; the default is `lowpeft.storage.cache_folder()`.
    """
    unique = list(dict.fromkeys(paths))
    place = _place(unique, folder) if len(unique) >= STORED_FILES else None
    known = {} if place is None else _stored(place)
    parts = [unique[i : i + _PER_TASK] for i in range(0, len(unique), _PER_TASK)]
    with ThreadPoolExecutor(THREADS) as pool:
        read = [each for part in pool.map(lambda part: [_read(path, known) for path in part], parts) for each in part]
    found = dict(zip(unique, read, strict=True))
    entries = {_absolute(path): each for path, each in found.items() if not isinstance(each, DataError)}
    if place is not None and any(known.get(name) != entry for name, entry in entries.items()):
        _store(place, {**known, **entries})
    return {path: each if isinstance(each, DataError) else each[1] for path, each in found.items()}


def _read(path: Path, known: Mapping[str, _Entry]) -> _Entry | DataError:
    try:
        status = path.stat()
        key = status.st_size, status.st_mtime_ns
        stored = known.get(_absolute(path))
        return stored if stored is not None and stored[0] == key else (key, image_header(path))
    except DataError as error:
        return error
    except (OSError, ValueError):  # the reader says what is wrong with the path
        try:
            return (-1, -1), image_header(path)
        except DataError as error:
            return error


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _place(paths: Iterable[Path], folder: Path | None) -> Path | None:
    """Return the file of the index of these images: one for the folder that holds them all; None without a place."""
    try:
        above = os.path.commonpath([_absolute(path.parent) for path in paths])
        name = hashlib.sha256(os.fsencode(above)).hexdigest()[:32]
        return (cache_folder() if folder is None else folder) / "images" / f"{name}.json"
    except (OSError, ValueError, RuntimeError):  # different drives; no home
        return None


def _reader() -> str:
    """Return what must be the same for a stored header to be believed."""
    return f"lowpeft {version()}, Pillow {metadata.version('pillow')}, index 2"


def _stored(place: Path) -> dict[str, _Entry]:
    """Return the stored headers by absolute path; none if the file is missing, damaged or of another program."""
    try:
        digest, _, body = place.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return {}
        content = json.loads(body)
        if content["reader"] != _reader():
            return {}
        return {name: _entry(*row) for name, row in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _entry(size: int, changed: int, height: int, width: int, bits: int, orientation: int) -> _Entry:
    """Return a stored entry; a ValueError if one of its numbers cannot be."""
    whole = all(is_whole(each, least=1) for each in (height, width, orientation))
    if not (whole and bits in (8, 16) and orientation <= 8 and type(size) is type(changed) is type(bits) is int):
        raise ValueError("no header of an image")
    return (size, changed), ImageHeader((height, width), bits, orientation)


def _store(place: Path, entries: Mapping[str, _Entry]) -> None:
    files = {name: (*key, *header.size, header.bits, header.orientation) for name, (key, header) in entries.items()}
    body = json.dumps({"reader": _reader(), "files": files}).encode()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_file(place, durable=False) as temporary:
            temporary.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
