"""BasicSR's meta-info files: the names of the images to use, one per line."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import DataError
from .grouping import Files
from .listing import composed, stem

_LINE = re.compile(r"(?P<name>.+?)(?:\s*\(\s*\d+\s*(?:,\s*\d+\s*){1,2}\))?")


def read_meta_info(path: Path) -> tuple[str, ...]:
    """Return the names of a file with `NAME.png (H,W,C)` in each line, in order; sizes are optional and not compared.

    Raises:
        DataError: The file cannot be read, is not text, or contains no name or a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text file of names, as in: 0001_s001.png (480,480,3)") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    matches = [_LINE.fullmatch(line.strip()) for line in lines]
    names = [composed(match["name"].replace("\\", "/").removeprefix("./")) for match in matches if match]
    if not names:
        raise DataError(f"{path} lists no images; give one in each line, as in: 0001_s001.png (480,480,3)")
    seen: set[str] = set()
    if repeated := [name for name in names if name in seen or seen.add(name)]:  # type: ignore[func-returns-value]
        raise DataError(f"{path} lists some images twice:", problems=repeated)
    return tuple(names)


def restrict(hr: Files, lr: Files, listed: tuple[str, ...], root: Path) -> list[str]:
    """Keep the scenes of which a view is listed, and return a line for each name without an HR view or listed twice.

    Args:
        hr: HR views; names are relative to their folder or to `root`, with or without suffix.
        lr: LR views.
        listed: Names.
        root: Folder of the data set.
    """
    above = composed(hr.folder.relative_to(root).as_posix())
    found: dict[str, tuple[list[str], str]] = {}  # scenes, which share the file, and the file
    for scene, views in hr.scenes.items():
        for file in (composed(file) for files in views for file in files):
            for name in (file, stem(file), f"{above}/{file}", f"{above}/{stem(file)}"):
                found.setdefault(name, ([], file))[0].append(scene)
    kept = {scene for name in listed if name in found for scene in found[name][0]}
    for files in (hr, lr):
        files.scenes = {name: views for name, views in files.scenes.items() if name in kept}
        files.rest = []
    problems, first = [], dict[str, str]()
    for name in listed:
        if name not in found:
            problems.append(f"{name}: is listed, but is not there")
        elif (known := first.setdefault(found[name][1], name)) != name:
            problems.append(f"{name}: is listed twice, also as {known}")
    return problems
