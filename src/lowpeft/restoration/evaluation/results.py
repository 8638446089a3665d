"""Restored images of a measurement on disk, written scene by scene and read again for the page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ...errors import DataError
from ..data import Example
from ..data.model import SIDES
from ..images import make_folder, read_image, write_image
from ..inference.network import Views

IMAGES = "images"
"""Folder within that of the reports for restored images, in one folder for each method."""

WORKING, REPORTS = ".measuring", (".json", ".md", ".html")


def working_folder(folder: Path) -> Path:
    """Return the folder, within that of the reports, in which a measurement is made; see `finish`."""
    return folder / WORKING


def finish(folder: Path) -> None:
    """Put images, reports and page, which are complete, from the working folder in the place of earlier ones.

    Raises:
        DataError: A file cannot be moved; the working folder stays.
    """
    made = working_folder(folder)
    images = [path for path in (made / IMAGES).rglob("*") if path.is_file()]
    reports = [path for path in made.iterdir() if path.suffix in REPORTS]
    targets = {path: folder / path.relative_to(made) for path in (*images, *reports)}
    if folders := [target for target in targets.values() if target.is_dir()]:
        raise DataError(f"cannot write {folders[0]}: there is a folder of this name")
    try:
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    shutil.rmtree(made, ignore_errors=True)


def folder_name(method: str) -> str:
    """Return the name of the folder for a method's images."""
    return method.replace(" ", "-")


def result_paths(folder: Path, method: str, scene: str, views: int) -> tuple[Path, ...]:
    """Return the files of a scene's restored views: NAME.png, or NAME_left.png and NAME_right.png.

    Args:
        folder: Folder of the reports.
        method: Name of the method.
        scene: Name of the scene.
        views: Number of views.
    """
    inside = folder / IMAGES / folder_name(method)
    if views == 1:
        return (inside / f"{scene}.png",)
    return tuple(inside / f"{scene}_{side}.png" for side in SIDES)


def write_results(folder: Path, example: Example, results: Mapping[str, Views]) -> None:
    """Write the results of each method for one scene.

    Raises:
        DataError: A file cannot be written.
    """
    for method, views in results.items():
        paths = result_paths(folder, method, example.name, len(views))
        make_folder(paths[0].parent)
        for path, view in zip(paths, views, strict=True):
            write_image(view, path)


def read_results(folder: Path, method: str, example: Example) -> Views:
    """Read what `write_results` wrote: uint8.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    paths = result_paths(folder, method, example.name, len(example.hr))
    return tuple(read_image(path, channels=len(view)) for path, view in zip(paths, example.hr, strict=True))
