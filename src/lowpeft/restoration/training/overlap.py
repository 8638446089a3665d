"""Find scenes that are both trained and measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import DataError
from ..data import Scene

SAMPLE_BYTES = 2**16
"""Files of one size are compared by digests of this much of their beginning, middle and end."""


def shared_scenes(training: Iterable[Scene], measured: Sequence[Scene]) -> list[str]:
    """Return the names of the measured scenes of which a clean image is also among the training images.

    Two images are the same if they are one file (also by a link), or if their files have the same content.

    Raises:
        DataError: A file cannot be read.
    """
    files = {path for scene in training for path in scene.hr}
    try:
        known = {_file(path) for path in files}
        sizes: dict[int, list[Path]] = {}
        for path in files:
            sizes.setdefault(path.stat().st_size, []).append(path)
        contents: dict[int, set[str]] = {}

        def is_shared(path: Path) -> bool:
            size = path.stat().st_size
            if _file(path) in known:
                return True
            if size not in sizes:
                return False
            if size not in contents:
                contents[size] = {_content(other, size) for other in sizes[size]}
            return _content(path, size) in contents[size]

        return [scene.name for scene in measured if any(map(is_shared, scene.hr))]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error


def _file(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _content(path: Path, size: int) -> str:
    digest = hashlib.sha256(usedforsecurity=False)
    with path.open("rb") as file:
        for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
            file.seek(max(0, start))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
