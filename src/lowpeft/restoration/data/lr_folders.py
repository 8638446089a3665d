"""Choosing the folder of LR or degraded images, and refusing folders of images that nobody explains."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import DataError
from ..words import words
from .grouping import Files, grouped, single
from .layouts import LAYOUTS, FolderLayout
from .listing import Listing
from .recognition import layout_images
from .roles import DEGRADED_FOLDER, denies, told_apart

_LR_LIKE = re.compile(rf"(?:{DEGRADED_FOLDER})|(?i:lr.*|.*[^a-z]lr(?![a-z0-9]).*)")
"""Pattern of folder names that may contain LR views in any layout, e.g. LR_wild, DIV2K_train_LR_unknown, noisy."""
_HARMLESS = re.compile(
    "(?i)(?:.*[_-])?(?:annotations?|calib|depths?|disp|disparity|disparities|edges?|figures|flow|labels?|masks?|notes|"
    "results|seg|segmentation|thumbnails?)(?![a-z]).*"
)
"""Names of folders that never contain degraded images, and are passed over: `masks`, `disp_occ_0`, `optical_flow`."""


def lr_folder(listing: Listing, root: Path, row: FolderLayout, scale: int | None) -> Path | None:
    """Return the folder of the layout's LR views at a scale, or None if it is missing.

    Raises:
        DataError: There are several, or the only ones have another form than the layout's.
    """
    expression = re.compile(row.lr_folder or "")  # a layout without LR folders matches no name
    fitting, others = [], []
    for name in _lr_like(listing, root, expression, row):
        match = expression.fullmatch(name) or re.fullmatch(DEGRADED_FOLDER, name)
        if match and scale is not None and _scale(match) not in (None, str(scale)):
            continue
        if expression.fullmatch(name) and listing.has_images(root / name, row.depth):
            fitting.append(name)
        elif listing.has_images(root / name) or listing.has_images(root / name, 1):
            others.append(name)
    degraded = words(scale).degraded
    if len(fitting) > 1:
        raise DataError(
            f"{root} contains {degraded} images in {', '.join(fitting)}; give the scale, or name the folder to read "
            "(lr_folder=, on the command line --data-lr or --lr)"
        )
    if others and not fitting:
        raise DataError(
            f"{', '.join(str(root / name) for name in others)} may contain {degraded} images, but not as in "
            f"layout {row.name}; name the folder to read (lr_folder=, on the command line --data-lr or --lr)"
        )
    return root / fitting[0] if fitting else None


def _scale(match: re.Match[str]) -> str | None:
    groups = match.groupdict()
    return groups.get("scale") or groups.get("factor")


def _lr_like(listing: Listing, root: Path, expression: re.Pattern[str], row: FolderLayout) -> list[str]:
    """Return the folders that may contain LR views, by name. DIV2K has one for each scale: LR_bicubic/X4."""
    own = row.fixed_folders or ()
    names = [
        name
        for name in listing.folders(root)
        if (_LR_LIKE.fullmatch(name) or expression.fullmatch(name))
        and name.lower() not in own
        and not (row.hr_folder and re.fullmatch(row.hr_folder, name))
    ]
    found = []
    for name in names:
        scales = [inner for inner in listing.folders(root / name) if re.fullmatch(r"[xX]\d+(?:_\w+)?", inner)]
        found += [f"{name}/{inner}" for inner in scales] or [name]
    return found


def lr_of_any_layout(listing: Listing, folder: Path, views: int) -> Files:
    """Find LR views of any layout in the folder that the user names.

    Raises:
        DataError: There are none.
    """
    if views == 1:
        lr = single(folder, listing.images(folder) if listing.has_images(folder) else listing.images(folder, 1))
        pairs = told_apart(lr.scenes).values()  # with HR views beside them
        if pairs and not any(denies(clean, "clean") or denies(degraded, "degraded") for clean, degraded in pairs):
            lr.scenes = {degraded: lr.scenes[degraded] for _, degraded in pairs}
    else:
        forms = dict.fromkeys(
            form.lr for row in LAYOUTS.values() if row.views == views for form in row.forms if form.lr
        )
        lr = Files(folder, list(forms), [*listing.images(folder), *listing.images(folder, 1)])
    if not lr.scenes:
        names = "pairs are named NAME_lr0 and NAME_lr1, NAME/lr0 and NAME/lr1, or NAME_L and NAME_R"
        raise DataError(f"{folder} contains no LR views" + (f"; {names}" if views == 2 else ""))
    return lr


def refuse_unexplained(listing: Listing, hr: Files, root: Path, row: FolderLayout) -> None:
    """Raise for folders of images beside the HR views that the layout does not have: they may be the degraded images.

    Folders with names of other things (`masks`, `depth`, …), of LR views at other scales, and without images in them
    or in their folders are passed over.

    Raises:
        DataError: There are such folders; all are named.
    """
    if row.name == "kitti":  # raw data with other cameras
        return
    places = [root] if row.hr_folder or row.fixed_folders or not row.depth else []
    if hr.folder != root and not row.depth:
        places.append(hr.folder)
    found = [
        str(place / name)
        for place in places
        for name in listing.folders(place)
        if place / name != hr.folder
        and name.lower() not in (row.fixed_folders or ())
        and not _HARMLESS.fullmatch(name)
        and not re.fullmatch(DEGRADED_FOLDER, name)  # of another scale
        and (listing.has_images(place / name) or listing.has_images(place / name, 1))
    ]
    if found:
        raise DataError(
            f"{hr.folder} was read as layout {row.name}, which does not say what these folders of images are. If one "
            "contains the degraded images, name it (lr_folder=, on the command line --data-lr or --lr); if none does, "
            f"name the layout (layout={row.name!r}, on the command line --layout {row.name}) to pass over them:",
            problems=found,
        )


def images_of_lr(listing: Listing, folder: Path, row: FolderLayout) -> Files:
    """Return the LR views in a layout's LR folder."""
    return grouped(row, folder, layout_images(listing, folder, row), lr=True)
