"""Recognising the layout of a folder, and the folder in it that contains the HR views."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ...errors import DataError, did_you_mean
from .grouping import named, single
from .layouts import LAYOUTS, FolderLayout
from .listing import Listing
from .roles import CLEAN_FOLDER, DEGRADED_FOLDER, LOW_AND_NORMAL, told_apart

_MOST_SUGGESTIONS = 20
_SPLIT = re.compile(r"(?i)(?:.*[_-])?(?:train|training|test|testing|val|valid|validation|eval)(?:[_-].*)?")
"""Names of folders whose images are never mixed with those beside them."""


def recognise(listing: Listing, root: Path, views: int, layout: str | None) -> tuple[Path, FolderLayout]:
    """Return the folder with the scenes and its layout; the folder is the root, or the only one in it with scenes.

    Raises:
        DataError: The folder fits no layout or several, or there is no layout of that name.
    """
    rows = {row.name: row for row in LAYOUTS.values() if row.views == views}
    if not rows:
        raise DataError(f"views must be 1 (images) or 2 (stereo pairs), not {views!r}")
    if layout is not None:
        if layout not in rows:
            hint = did_you_mean(layout, rows)
            raise DataError(f"no layout of {views}-view scenes is called {layout!r}{hint}; known: {', '.join(rows)}")
        rows = {layout: rows[layout]}
    fitting = _fitting(listing, root, rows.values())
    if not fitting and (inner := _only_folder(listing, root)) is not None:
        fitting = _fitting(listing, inner, rows.values())
        root = inner if fitting else root
    if not fitting:
        raise _nothing_found(listing, root, rows.values())
    if len(fitting) > 1:
        names = ", ".join(f"{row.name} ({row.title})" for row in fitting)
        raise DataError(
            f"{root} fits several layouts: {names}; name one of them with layout= (on the command line, --layout), or "
            "give a folder with one layout"
        )
    return root, fitting[0]


def hr_folder(listing: Listing, root: Path, row: FolderLayout) -> Path:
    """Return the folder of the HR views: the root itself, or one in it.

    Raises:
        DataError: There are several.
    """
    if not row.hr_folder:
        return root
    folders = _hr_folders(listing, root, row)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise DataError(f"{root} contains several folders of HR images: {names}; give one of them, and its LR folder")
    return folders[0]


def layout_images(listing: Listing, folder: Path, row: FolderLayout) -> list[str]:
    """Return the images of a folder at the depth of a layout; a named folder in a scene decides what they are."""
    images = listing.images(folder, row.depth, row.fixed_folders)
    if row.marks and row.lr_folder == "" and row.depth:
        return [image for image in images if _of_scene(image)]
    return list(images)


def _of_scene(image: str) -> bool:
    scene, *roles, _ = image.split("/")
    known = all(re.fullmatch(CLEAN_FOLDER, role) or re.fullmatch(DEGRADED_FOLDER, role) for role in roles)
    return known and _SPLIT.fullmatch(scene) is None


def _fitting(listing: Listing, root: Path, rows: Iterable[FolderLayout]) -> list[FolderLayout]:
    fitting: dict[str, FolderLayout] = {}
    for row in rows:
        if fitting.keys().isdisjoint(row.gives_way_to) and _hr_folders(listing, root, row):
            fitting[row.name] = row
    return list(fitting.values())


def _hr_folders(listing: Listing, root: Path, row: FolderLayout) -> list[Path]:
    """Return the folders with HR views of the layout: the root itself, or folders in it."""
    if not row.hr_folder:
        return [root] if _has_scenes(listing, root, row) else []
    folders = listing.folders(root)
    names = [name for name in folders if re.fullmatch(row.hr_folder, name)]
    low, normal = LOW_AND_NORMAL
    if not names and row.hr_folder == CLEAN_FOLDER and any(map(low.fullmatch, folders)):
        names = list(filter(normal.fullmatch, folders))
    return [root / name for name in names if _has_scenes(listing, root / name, row)]


def _has_scenes(listing: Listing, folder: Path, row: FolderLayout) -> bool:
    if row.marks and row.lr_folder == "":
        return bool(told_apart(single(folder, layout_images(listing, folder, row)).scenes))
    if row.marks:
        return listing.has_images(folder, row.depth)
    forms = [form.hr for form in row.forms]
    return any(named(image, forms) for image in listing.images(folder, row.depth, row.fixed_folders))


def _only_folder(listing: Listing, root: Path) -> Path | None:
    """Return the subfolder of a folder that contains nothing else, unless its name says that it holds LR images."""
    folders = listing.folders(root)
    if len(folders) != 1 or listing.has_images(root) or re.fullmatch(DEGRADED_FOLDER, folders[0]):
        return None
    return root / folders[0]


def _nothing_found(listing: Listing, root: Path, rows: Collection[FolderLayout]) -> DataError:
    """Return the error for a folder without scenes; it suggests subfolders with scenes, or a search for images."""
    inside = [
        f"{root / name} (layout {row.name}: {row.title})"
        for name in itertools.islice(listing.folders(root), _MOST_SUGGESTIONS)
        if not re.fullmatch(DEGRADED_FOLDER, name)
        for row in _fitting(listing, root / name, rows)
    ]
    if inside:
        return DataError(
            f"{root} itself contains no scenes, but folders in it do; give one of them (and if another contains its "
            "degraded images, name that with lr_folder=, on the command line --data-lr or --lr):",
            problems=inside,
        )
    known = [f"{row.name} ({row.title}): {row.shown}" for row in rows]
    count = _single_images(listing, root)
    if count and all(row.views == 2 for row in rows):
        images = f"{count} single image{'s' * (count > 1)}"
        return DataError(
            f"found no pairs in {root}, but {images}. For single images, give views=1 (--images or "
            "--protocol single-image or --views 1). Pairs are found in these layouts (with any image suffix):",
            problems=known,
        )
    return DataError(f"found no scenes in {root}; known layouts (with any image suffix):", problems=known)


def _single_images(listing: Listing, root: Path) -> int:
    """Return the number of images in a folder that fits a layout of single images; 0 if it fits none."""
    rows = _fitting(listing, root, [row for row in LAYOUTS.values() if row.views == 1])
    return sum(len(layout_images(listing, folder, row)) for row in rows for folder in _hr_folders(listing, root, row))
