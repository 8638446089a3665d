"""Finding the images to enhance: files, folders and patterns, and the views that belong together."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ...errors import DataError
from ..data import LAYOUTS
from ..data.grouping import named
from ..data.listing import PASSED_OVER
from ..data.model import SIDES
from ..images import IMAGE_SUFFIXES
from .settings import FileSettings

STEREO_SUFFIXES = frozenset({".jps", ".mpo"})
"""Suffixes of files that contain both views of a scene."""
SUFFIXES = IMAGE_SUFFIXES | STEREO_SUFFIXES | {".gif"}
"""Suffixes of the images that are taken from folders and patterns."""

_LEVELS = (2, 1)
"""Parts of a path that name a view: `left/a`, then `a_L`."""


@dataclass(frozen=True)
class Source:
    """File to enhance.

    Attributes:
        path: The file.
        below: Its folder, relative to the folder or pattern that was given; results keep it.
    """

    path: Path
    below: PurePath


Job = tuple[Source, ...]
"""Files that go through the network together: an image, the two views of a scene, or one file with both."""


def find_jobs(
    inputs: Sequence[str | os.PathLike[str]], settings: FileSettings, *, views: int, without: Path
) -> tuple[list[Job], list[str]]:
    """Find the images to enhance.

    Args:
        inputs: Files, folders and patterns.
        settings: Whether subfolders are searched, and whether files contain two views side by side.
        views: Number of views that the model takes, 1 or 2.
        without: Folder of the results, which is not searched if it lies in a folder that is.

    Returns:
        The jobs, and a line for each file whose partner is missing or not unique.

    Raises:
        DataError: An input does not exist, or is a folder or pattern without images; all are listed.
    """
    sources, problems = [], []
    for given in inputs:
        found, problem = _found(os.fspath(given), settings.recursive, views, without)
        sources += found
        problems += problem
    if problems:
        raise DataError("these inputs cannot be enhanced:", problems=problems)
    once = list({source.path: source for source in sources}.values())
    if views == 1 or settings.side_by_side is not None:
        return [(source,) for source in once], []
    if len(sources) == len(inputs) == 2 and not any(s.path.suffix.lower() in STEREO_SUFFIXES for s in sources):
        return [tuple(sources)], []
    return _paired(once)


def _found(text: str, recursive: bool, views: int, without: Path) -> tuple[list[Source], list[str]]:
    """Return the files of one input, and what is wrong with it."""
    path = Path(text)
    if path.is_dir():
        sources = list(_in_folder(path, recursive, views, without))
        more = "" if recursive else " (--recursive takes those in its subfolders)"
        return sources, [] if sources else [f"the folder {path} contains no images{more}"]
    if os.path.lexists(path) or not glob.has_magic(text):
        return [Source(path, PurePath())], [] if os.path.lexists(path) else [f"there is no image file {path}"]
    plain = Path(*_before_magic(path.parts))
    try:
        matches = sorted(plain.glob(str(path.relative_to(plain))))
    except ValueError as error:
        return [], [f"{text} is no pattern: {error}"]
    sources = [Source(m, m.parent.relative_to(plain)) for m in matches if _is_image(m) and not m.is_dir()]
    return sources, [] if sources else [f"no image matches the pattern {text}"]


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def _in_folder(folder: Path, recursive: bool, views: int, without: Path) -> Iterator[Source]:
    """Yield the images of a folder, and of all below it if `recursive`. Links to folders are not followed.

    For two views one level below is searched in any case, for the folders of a scene or side.
    """
    excluded = without.resolve()
    for here, folders, files in os.walk(folder):
        below = PurePath(here).relative_to(folder)
        deeper = recursive or (views > 1 and not below.parts)
        folders[:] = sorted(
            name
            for name in folders
            if deeper
            and not name.startswith(".")
            and name not in PASSED_OVER
            and Path(here, name).resolve() != excluded
        )
        for name in sorted(files):
            source = Source(Path(here, name), below)
            in_layout = recursive or not below.parts or _view_of(source, _LEVELS[:1]) is not None
            if _is_image(source.path) and in_layout:
                yield source


def _view_of(source: Source, levels: Sequence[int] = _LEVELS) -> tuple[tuple[str, ...], int] | None:
    """Return the scene of a file, as its folder and name, and which view it is; None if its name does not tell."""
    forms = [form for row in LAYOUTS.values() if row.views == len(SIDES) for form in row.forms]
    templates = [views for form in forms for views in (form.hr, form.lr) if views]
    parts = source.path.parts
    for level in levels:
        if len(parts) >= level and (found := named("/".join(parts[-level:]), templates)):
            return (*parts[:-level], found[0]), found[1]
    return None


def _paired(sources: list[Source]) -> tuple[list[Job], list[str]]:
    """Group files into pairs by their names; those that are named otherwise may contain both views."""
    scenes: dict[tuple[str, ...], tuple[list[Source], list[Source]]] = {}
    jobs: list[Job] = []
    problems = []
    for source in sources:
        view = None if source.path.suffix.lower() in STEREO_SUFFIXES else _view_of(source)
        if view is None:
            jobs.append((source,))
        else:
            scenes.setdefault(view[0], ([], []))[view[1]].append(source)
    for sides in scenes.values():
        first = next(source.path for side in sides for source in side)
        missing = [name for name, side in zip(SIDES, sides, strict=True) if not side]
        double = [f"{s.path}: is the same view as {side[0].path}" for side in sides for s in side[1:]]
        problems += [f"{first}: has no {side} view" for side in missing] + double
        if not missing and not double:
            jobs.append((sides[0][0], sides[1][0]))
    return jobs, problems
