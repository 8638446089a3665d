"""Finding scenes in folders: recognise the layout, then group files by name."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError, did_you_mean
from ..images import IMAGE_SUFFIXES
from .layouts import LAYOUTS, PLAIN, SUFFIXED, FolderLayout, pattern, written
from .model import SIDES, AnyPath, Scene, Views

_MOST_SUGGESTIONS = 20
_LR_LIKE = re.compile(r"(?i)lr.*|.*[^a-z]lr(?![a-z0-9]).*")
"""Pattern of folder names that may contain LR views in any layout, e.g. LR_wild, DIV2K_train_LR_unknown."""


# ------------------------------------------------------------------------------------------------------------- API
def find_scenes(
    folder: AnyPath,
    *,
    scale: int | None = None,
    lr_folder: AnyPath | None = None,
    views: Views = 2,
    layout: str | None = None,
) -> tuple[Scene, ...]:
    """Return the scenes of a folder in any of the layouts of `LAYOUTS`, sorted by name.

    Files are grouped by NAME, never by their position in a listing. Hidden files and files that are not images are
    skipped. No image is opened.

    Args:
        folder: Folder of HR views, or parent of folders of HR and LR views.
        scale: SR factor of the LR folder to use, e.g. 4 for `lr_x4` where `lr_x2` is present too. If only other scales
            are present, the scenes have no LR files, and LR views are made from the HR views.
        lr_folder: Folder of LR views that replaces the layout's own. Its files are named like the LR views of any
            layout. Every scene must have LR files there.
        views: 2 for stereo pairs, 1 for single images. With 1, each view of a plain folder of pairs is one image.
        layout: Name of the folder's layout; None recognises it.

    Raises:
        DataError: A folder is missing or contains no scene, it fits several layouts, or files are left over,
            duplicated or without their partner (all are listed).
    """
    hr, lr, problems = _read(Path(folder), scale, lr_folder, views, layout)
    if lr is not None:
        problems += [f"{name}: has HR views, but no LR views" for name in sorted(hr.scenes.keys() - lr.names)]
    return _scenes(Path(folder), hr, lr, problems)


def scenes_with_lr(
    folder: AnyPath,
    *,
    scale: int | None = None,
    lr_folder: AnyPath | None = None,
    views: Views = 2,
    layout: str | None = None,
) -> tuple[tuple[Scene, ...], tuple[str, ...]]:
    """Return the scenes that have LR files, and the names of those without; arguments are those of `find_scenes`.

    Raises:
        DataError: No scene has LR files, or for the reasons that `find_scenes` lists.
    """
    hr, lr, problems = _read(Path(folder), scale, lr_folder, views, layout)
    if lr is None:
        at = "" if scale is None else f" for x{scale}"
        raise DataError(f"{folder} holds no LR files{at}; name the folder that does")
    missing = sorted(hr.scenes.keys() - lr.names)
    hr.scenes = {name: paths for name, paths in hr.scenes.items() if name not in set(missing)}
    return _scenes(Path(folder), hr, lr, problems), tuple(missing)


def _scenes(root: Path, hr: _Found, lr: _Found | None, problems: list[str]) -> tuple[Scene, ...]:
    if problems:
        message = f"not every image in {root} belongs to a scene; remove these files or add their partners:"
        raise DataError(message, problems=problems)
    return tuple(Scene(name, hr.scenes[name], lr.scenes[name] if lr else ()) for name in sorted(hr.scenes))


def _read(
    root: Path, scale: int | None, lr_folder: AnyPath | None, views: Views, layout: str | None
) -> tuple[_Found, _Found | None, list[str]]:
    """Return the HR files, the LR files (None if there are none), and the problems found in both."""
    try:
        row = _recognise(_existing(root), views, layout)
        place = _hr_place(root, row)
        listing = tuple(_listing(place, row.depth, row.fixed_folders))
        hr = _collect(place, listing, [f.hr for f in row.forms], known=[f.lr for f in row.forms if row.lr_folder == ""])
        lr: _Found | None = None
        if lr_folder is not None:
            lr = _explicit_lr(_existing(Path(lr_folder)), views)
        elif row.lr_folder == "":
            lr = _collect(place, listing, [f.lr for f in row.forms], known=None)
        elif (at := _lr_place(root, row, scale)) is not None:
            lr = _collect(at, _listing(at, row.depth), [f.lr for f in row.forms])
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror or error}") from None
    if lr is None or (row.lr_folder == "" and lr_folder is None and not lr.names):
        return hr, None, hr.problems
    if views == 1:
        lr.drop_scale(hr.names)
    alone = sorted(lr.scenes.keys() - hr.names)
    return hr, lr, [*hr.problems, *lr.problems, *(f"{name}: has LR views, but no HR views" for name in alone)]


# ------------------------------------------------------------------------------------------------ which layout it is
def _recognise(root: Path, views: Views, layout: str | None) -> FolderLayout:
    rows = [row for row in LAYOUTS.values() if row.views == views]
    if layout is not None:
        known = {row.name: row for row in rows}
        if layout not in known:
            hint = did_you_mean(layout, known)
            raise DataError(f"no layout of {views}-view scenes is called {layout!r}{hint}; known: {', '.join(known)}")
        rows = [known[layout]]
    fitting = _fitting(root, rows)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise _nothing_found(root, rows)
    found = ", ".join(f"{row.name} ({row.title})" for row in fitting)
    raise DataError(f"{root} fits several layouts: {found}; say which it is, or give a folder that holds one of them")


def _fitting(root: Path, rows: Sequence[FolderLayout]) -> list[FolderLayout]:
    fitting = [row for row in rows if any(_fits(place, row) for place in _hr_places(root, row))]
    ids = {row.name for row in fitting}
    return [row for row in fitting if ids.isdisjoint(row.gives_way_to)]


def _fits(place: Path, row: FolderLayout) -> bool:
    """Return whether any image in the folder is named like an HR view of the layout."""
    listing = _listing(place, row.depth, row.fixed_folders)
    return any(_named(path, form.hr) for path in listing for form in row.forms)


def _nothing_found(root: Path, rows: Sequence[FolderLayout]) -> DataError:
    """Return the error for a folder without scenes; it suggests subfolders that contain scenes."""
    inside = []
    for name in itertools.islice(_folders(root), _MOST_SUGGESTIONS):
        inside += [f"{root / name} (layout {row.name}: {row.title})" for row in _fitting(root / name, rows)]
    if inside:
        return DataError(f"{root} itself holds no scenes, but folders in it do; give one of them:", problems=inside)
    understood = [f"{row.name} ({row.title}): {row.shown}" for row in rows]
    return DataError(f"found no scenes in {root}; understood are (any image suffix):", problems=understood)


def _hr_places(root: Path, row: FolderLayout) -> list[Path]:
    if not row.hr_folder:
        return [root]
    return [root / name for name in _folders(root) if re.fullmatch(row.hr_folder, name)]


def _hr_place(root: Path, row: FolderLayout) -> Path:
    places = [place for place in _hr_places(root, row) if _fits(place, row)]
    if len(places) > 1:
        names = ", ".join(place.name for place in places)
        raise DataError(f"{root} holds several folders of HR images: {names}; give one of them, and its LR folder")
    return places[0]


def _lr_place(root: Path, row: FolderLayout, scale: int | None) -> Path | None:
    """Return the folder of the layout's LR views at a scale, or None if it is missing."""
    names = [name for name in _folders(root) if _LR_LIKE.fullmatch(name) or _lr_scale(row, name) is not None]
    # DIV2K has one subfolder per scale: LR_bicubic/X4.
    deeper = [f"{name}/{inner}" for name in names for inner in _folders(root / name) if re.fullmatch(r"[xX]\d+", inner)]
    names = [name for name in names if not any(place.startswith(f"{name}/") for place in deeper)]
    fitting, strange = [], []
    for name in [*names, *deeper]:
        found = _lr_scale(row, name)
        if found and scale is not None and found != str(scale):
            continue
        if found is not None and _has_images(root / name, row.depth):
            fitting.append(name)
        elif any(_has_images(root / name, depth) for depth in (0, 1)):
            strange.append(name)
    if len(fitting) > 1:
        raise DataError(f"{root} holds LR views in {', '.join(fitting)}; give the scale, or name the LR folder")
    if strange and not fitting:
        raise DataError(
            f"{root / strange[0]} may hold LR views, but not as layout {row.name} has them; name it as LR folder"
        )
    return root / fitting[0] if fitting else None


def _has_images(place: Path, depth: int) -> bool:
    return next(_listing(place, depth), None) is not None


def _lr_scale(row: FolderLayout, name: str) -> str | None:
    """Return the scale in the name of an LR folder ("" if the name has none), or None for any other folder."""
    match = None if row.lr_folder is None else re.fullmatch(row.lr_folder, name)
    return None if match is None else match.groupdict().get("scale") or ""


def _explicit_lr(place: Path, views: Views) -> _Found:
    """Find LR views of any layout in the folder that the user names."""
    flat = tuple(_listing(place, 0))
    if views == 1:
        suffixed = any(pattern(SUFFIXED.lr[0]).fullmatch(_stem(path)) for path in flat)
        found = _collect(place, flat, [(SUFFIXED if suffixed else PLAIN).lr], known=[SUFFIXED.hr])
    else:
        forms = dict.fromkeys(form for row in LAYOUTS.values() if row.views == views for form in row.forms)
        found = _collect(place, (*flat, *_listing(place, 1)), [form.lr for form in forms if form.lr])
    if not found.names:
        raise DataError(
            f"{place} holds no LR views; pairs are named NAME_lr0 and NAME_lr1, NAME/lr0 and NAME/lr1, or NAME_L and "
            "NAME_R"
        )
    return found


# ----------------------------------------------------------------------------------------- which files go together
@dataclass
class _Found:
    """The views in one folder.

    Attributes:
        scenes: Files of every complete scene, by its name.
        names: Names of all scenes, complete or not.
        problems: One line for each file that is left over and each view that is missing.
    """

    scenes: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def drop_scale(self, known: set[str]) -> None:
        """Rename LR scenes to their HR names where only a scale suffix differs, e.g. 0001x4 to 0001."""
        for name in sorted(self.names - known):
            short = re.sub(r"[xX]\d+$", "", name)
            if short in known - self.names:
                self.scenes[short] = self.scenes.pop(name)
                self.names = self.names - {name} | {short}


def _collect(
    place: Path,
    listing: Iterable[str],
    forms: Sequence[tuple[str, ...]],
    *,
    known: Sequence[tuple[str, ...]] | None = (),
) -> _Found:
    """Group the files of a folder into scenes.

    Args:
        place: The folder.
        listing: Paths of its images, relative to it.
        forms: Accepted file names: each form has one template per view.
        known: Forms of other files that belong to the layout and are ignored here; None ignores any other file.
    """
    found = _Found()
    views: dict[str, list[str | None]] = {}
    others: set[str] = set()  # folders that contain images with other names
    nested = all(template.startswith("{name}/") for form in forms for template in form)
    for path in listing:
        for form in forms:
            if named := _named(path, form):
                break
        else:
            if known is not None and not any(_named(path, form) for form in known):
                if "/" not in path:
                    templates = dict.fromkeys(t for form in (*forms, *known) for t in form)
                    found.problems.append(f"{path}: is not named {' or '.join(map(written, templates))}")
                elif nested:  # a scene's folder may contain other images, e.g. disparities, but only beside views
                    others.add(path.split("/")[0])
            continue
        name, side = named
        paths = views.setdefault(name, [None] * len(forms[0]))
        if paths[side] is not None:
            found.problems.append(f"{path}: is the same view as {paths[side]}")
        paths[side] = paths[side] or path
    for name, paths in views.items():
        there = tuple(path for path in paths if path is not None)
        if len(there) == len(paths):
            found.scenes[name] = tuple(place / path for path in there)
        else:
            found.problems.append(f"{there[0]}: has no {SIDES[paths.index(None)]} view")
    found.problems += [
        f"{folder}: none of its images is named {' or '.join(written(t) for form in forms for t in form)}"
        for folder in sorted(others - views.keys())
    ]
    found.names = set(views)
    return found


def _named(path: str, form: tuple[str, ...]) -> tuple[str, int] | None:
    """Return a file's scene and view (0 left, 1 right) by a form, or None if its name does not match."""
    stem = _stem(path)
    for side, template in enumerate(form):
        if match := pattern(template).fullmatch(stem):
            return "_s".join(match.groups()), side
    return None


# --------------------------------------------------------------------------------------------------------- listings
def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return folder


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _listing(folder: Path | str, depth: int, only: Container[str] | None = None) -> Iterator[str]:
    """Yield the images `depth` levels below a folder, sorted, relative to it. Lazy: there may be 49,020 subfolders.

    With `only`, other subfolders are skipped.
    """
    for entry in _visible(folder):
        if depth and (only is None or entry.name in only) and entry.is_dir():
            yield from (f"{entry.name}/{path}" for path in _listing(entry.path, depth - 1))
        elif not depth and _is_image(entry.name) and not entry.is_dir():  # a broken link fails when it is read
            yield entry.name


def _is_image(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES


def _stem(path: str) -> str:
    """Return an image's path without its suffix."""
    return path.rpartition(".")[0]
