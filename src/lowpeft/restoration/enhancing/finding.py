"""Finding the images to enhance: files, folders and patterns, and the views that belong together."""

from __future__ import annotations

import functools
import glob
import os
import stat
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
        by_name: True if the file itself was given, not a folder or pattern.
    """

    path: Path
    below: PurePath
    by_name: bool = False


Job = tuple[Source, ...]
"""Files that go through the network together: an image, the two views of a scene, or one file with both."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What inputs contain.

    Attributes:
        jobs: The images to enhance.
        failures: A line for each file whose partner is missing or not unique.
        files: All images, also those that are left out or fail.
        left_out: Images that are named as the results of others.
    """

    jobs: list[Job]
    failures: list[str]
    files: list[Path]
    left_out: list[Path]


def find_jobs(
    inputs: Sequence[str | os.PathLike[str]], settings: FileSettings, *, views: int, out: Path, mark: str
) -> Found:
    """Find the images to enhance.

    Args:
        inputs: Files, folders and patterns.
        settings: Whether subfolders are searched, and whether files contain two views side by side.
        views: Number of views that the model takes, 1 or 2.
        out: Folder of the results. Images in it are not taken if it lies in a folder or pattern that is searched.
        mark: End of the results' names. Images of folders and patterns that are named as the results of others are
            left out.

    Raises:
        DataError: An input does not exist, or is a folder or pattern without images; all are listed.
    """
    sources, problems = [], []
    for given in inputs:
        found, problem = _found(os.fspath(given), settings.recursive, views, out)
        sources += found
        problems += problem
    if problems:
        raise DataError("these inputs cannot be enhanced:", problems=problems)
    once = list({source.path: source for source in sources}.values())
    results = _named_as_results(once, views, out, mark)
    kept = [source for source in once if source not in results]
    jobs: list[Job]
    failures: list[str]
    if views == 1 or settings.side_by_side is not None:
        jobs, failures = [(source,) for source in kept], []
    elif len(sources) == len(inputs) == 2 and not any(s.path.suffix.lower() in STEREO_SUFFIXES for s in sources):
        jobs, failures = [tuple(sources)], []
    else:
        jobs, failures = _paired(kept)
    return Found(
        jobs=jobs, failures=failures, files=[s.path for s in once], left_out=[s.path for s in once if s in results]
    )


def _named_as_results(sources: Sequence[Source], views: int, out: Path, mark: str) -> set[Source]:
    """Return the files of folders and patterns that are named as the result of another one, whatever their suffix."""
    real = functools.cache(os.path.realpath)
    sides = ["", *(f"_{side}" for side in SIDES)] if views > 1 else [""]
    results = {
        (real(out / source.below), f"{name}{side}_{mark}")
        for source in sources
        for name in (source.path.stem, source.path.name)
        for side in sides
    }
    return {s for s in sources if not s.by_name and (real(s.path.parent), s.path.stem) in results}


def _found(text: str, recursive: bool, views: int, out: Path) -> tuple[list[Source], list[str]]:
    """Return the files of one input, and what is wrong with it."""
    path = Path(text)
    if path.is_dir():
        sources = list(_in_folder(path, recursive, views, out))
        more = "" if recursive else " (--recursive takes those in its subfolders)"
        return sources, [] if sources else [f"the folder {path} contains no images{more}"]
    if os.path.lexists(path) or not glob.has_magic(text):
        return [Source(path, PurePath(), by_name=True)], [] if os.path.lexists(path) else [
            f"there is no image file {path}"
        ]
    plain = Path(*_before_magic(path.parts))
    try:
        matches = sorted(plain.glob(str(path.relative_to(plain))))
    except ValueError as error:
        return [], [f"{text} is no pattern: {error}"]
    excluded = _excluded(out, plain)
    sources = [
        Source(match, match.parent.relative_to(plain))
        for match in matches
        if _is_image(match) and (excluded is None or not match.parent.resolve().is_relative_to(excluded))
    ]
    return sources, [] if sources else [f"no image matches the pattern {text} (the folder of the results left out)"]


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _excluded(out: Path, searched: Path) -> Path | None:
    """Return the folder of the results if it lies in the folder that is searched, else None."""
    resolved, top = out.resolve(), searched.resolve()
    return resolved if resolved != top and resolved.is_relative_to(top) else None


def _is_image(path: Path) -> bool:
    """Return whether a path is named as an image and is a file; what cannot be asked fails when it is read."""
    if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # e.g. a broken link
        return True


def _in_folder(folder: Path, recursive: bool, views: int, out: Path) -> Iterator[Source]:
    """Yield the images of a folder, and of all below it if `recursive`. Links to folders are not followed.

    For two views one level below is searched in any case, for the folders of a scene or side.
    """
    excluded = _excluded(out, folder)
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
