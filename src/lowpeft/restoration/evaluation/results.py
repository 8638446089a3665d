"""Restored images of a measurement on disk, written scene by scene and read again for the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..data import Example
from ..data.model import SIDES
from ..images import make_folder, read_image, write_image
from ..inference.network import Views

IMAGES = "images"
"""Folder within that of the reports for restored images, in one folder for each method."""


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
