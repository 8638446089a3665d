"""Finding scenes in folders: recognise the layout, then group files by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..words import words
from .grouping import Files, grouped
from .layouts import FolderLayout
from .listing import Listing, existing
from .lr_folders import images_of_lr, lr_folder, lr_of_any_layout, refuse_unexplained
from .meta_info import read_meta_info, restrict
from .model import AnyPath, Scene
from .recognition import hr_folder, layout_images, recognise
from .roles import Role, denies, matched, readings, shared, told_apart


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Arguments of `find_scenes`. Unless `lr_may_lack`, either all scenes have LR files or none has."""

    scale: int | None
    lr_folder: AnyPath | None
    views: int
    layout: str | None
    meta_info: AnyPath | None
    lr_may_lack: bool = False


def find_scenes(
    folder: AnyPath,
    *,
    scale: int | None = None,
    lr_folder: AnyPath | None = None,
    views: int = 2,
    layout: str | None = None,
    meta_info: AnyPath | None = None,
) -> tuple[Scene, ...]:
    """Return the scenes of a folder in any of the layouts of `LAYOUTS`, sorted by name.

    Files are grouped by NAME, never by their position in a listing. Hidden files and files that are not images are
    skipped. No image is opened. Where several degraded images belong to each clean one (`LQ/1_1.png`, `LQ/1_2.png` to
    `GT/1.png`), each is a scene, named like the degraded image.

    Args:
        folder: Folder of HR views, parent of folders of HR and LR views, or a folder that contains nothing but such a
            folder.
        scale: SR factor of the LR folder to use, e.g. 4 for `lr_x4` where `lr_x2` is present too. If only other scales
            are present, the scenes have no LR files, and LR views are made from the HR views.
        lr_folder: Folder of LR views that replaces the layout's own. Its files are named like the LR views of any
            layout. Every scene must have LR files there.
        views: 2 for stereo pairs, 1 for single images. With 1, each view of a plain folder of pairs is one image.
        layout: Name of the folder's layout; None recognises it. With a name, folders of images that the layout does not
            have are passed over.
        meta_info: BasicSR's file of names, `NAME.png (H,W,C)` in each line, relative to the folder of HR views: only
            these scenes are returned.

    Raises:
        DataError: A folder is missing or contains no scene, it fits several layouts, folders of images lie beside the
            HR views that the layout does not have, or files are left over, duplicated or without their partner (all
            are listed).
    """
    asked = _Asked(scale=scale, lr_folder=lr_folder, views=views, layout=layout, meta_info=meta_info)
    return _find(Path(folder), asked)


def scenes_with_lr(
    folder: AnyPath,
    *,
    scale: int | None = None,
    lr_folder: AnyPath | None = None,
    views: int = 2,
    layout: str | None = None,
    meta_info: AnyPath | None = None,
) -> tuple[tuple[Scene, ...], tuple[str, ...]]:
    """Return the scenes that have LR files, and the names of those without; arguments are those of `find_scenes`.

    Raises:
        DataError: No scene has LR files, or for the reasons that `find_scenes` lists.
    """
    asked = _Asked(scale=scale, lr_folder=lr_folder, views=views, layout=layout, meta_info=meta_info, lr_may_lack=True)
    scenes = _find(Path(folder), asked)
    if not any(scene.lr for scene in scenes):
        at = "" if scale is None else f" for x{scale}"
        raise DataError(
            f"{folder} contains no LR files{at}; name their folder with lr_folder=, on the command line --lr"
        )
    return tuple(scene for scene in scenes if scene.lr), tuple(scene.name for scene in scenes if not scene.lr)


def _find(given: Path, asked: _Asked) -> tuple[Scene, ...]:
    listing = Listing()
    listed = None if asked.meta_info is None else read_meta_info(Path(asked.meta_info))
    try:
        root, row = recognise(listing, existing(given), asked.views, asked.layout)
        folder = hr_folder(listing, root, row)
        hr = grouped(row, folder, layout_images(listing, folder, row))
        lr = _lr_of(listing, hr, root, row, asked)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or given}: {error.strerror or error}") from None
    _refuse_same_folder(hr, lr, asked)
    all_need_lr = bool(lr.scenes) and not asked.lr_may_lack
    problems = [] if listed is None else restrict(hr, lr, listed, root)
    problems += hr.problems() + lr.problems() + _alone(hr, lr, asked, all_need_lr)
    if problems:
        message = f"not every image in {root} belongs to a scene; remove these files or add their partners:"
        if listed is not None:
            message = f"the list {asked.meta_info} does not fit the images in {root}:"
        raise DataError(message, problems=problems)
    return tuple(Scene(name, hr.paths(name), lr.paths(name), row.name) for name in sorted(hr.scenes))


def _lr_of(listing: Listing, hr: Files, root: Path, row: FolderLayout, asked: _Asked) -> Files:
    """Return the LR views of the HR views, under the same names, and remove them from the HR views if they lie there.

    Raises:
        DataError: For the reasons that `find_scenes` lists.
    """
    beside = grouped(row, hr.folder, hr.others, lr=True)
    if row.lr_folder == "":
        _part(hr, beside)
    if asked.lr_folder is not None:
        lr = lr_of_any_layout(listing, existing(Path(asked.lr_folder)), asked.views)
        return _under_names_of(hr, lr, asked)
    if row.lr_folder != "" and (source := lr_folder(listing, root, row, asked.scale)) is not None:
        return _under_names_of(hr, images_of_lr(listing, source, row), asked)
    if asked.layout is None:
        _part(hr, beside)
    if asked.layout is None and not beside.scenes:
        refuse_unexplained(listing, hr, root, row)
        _refuse_several_degraded(hr, asked)
    return beside


def _refuse_several_degraded(hr: Files, asked: _Asked) -> None:
    """Raise where several degraded images belong to one clean image, e.g. `1_noisy1` and `1_noisy2` to `1_clean`."""
    read = [(name, key, role) for name in hr.scenes for key, role in readings(name)]
    clean = {key for _, key, role in read if role == "clean"}
    several = [name for name, key, role in read if role == "degraded" and re.sub(r"[_-]?\d+$", "", key) in clean]
    if asked.views == 1 and several:
        raise DataError(
            f"several degraded images in {hr.folder} seem to belong to one clean image: put them into two folders, "
            "GT/1.png and LQ/1_1.png, LQ/1_2.png, …; or say that all of them are clean with layout='plain' (--layout "
            "plain):",
            problems=several,
        )


def _part(hr: Files, lr: Files) -> None:
    """Move scenes whose names mark them as degraded from the HR to the LR views, under their common names.

    Raises:
        DataError: A name of a pair has words of clean and of degraded images.
    """
    pairs = told_apart(hr.scenes)
    if not pairs:
        return
    unclear = [
        f"{clean}, {degraded}"
        for clean, degraded in pairs.values()
        if denies(hr.scene_path(clean), "clean") or denies(hr.scene_path(degraded), "degraded")
    ]
    if unclear:
        raise DataError(
            f"images in {hr.folder} cannot be told apart, because a name has words of clean and of degraded images: "
            "put clean and degraded images into folders of their own (GT and LQ), or name the layout (layout='plain', "
            "on the command line --layout plain) if none is degraded:",
            problems=unclear,
        )
    scenes = {key: hr.scenes.pop(clean) for key, (clean, _) in pairs.items()}
    lr.scenes |= {key: hr.scenes.pop(degraded) for key, (_, degraded) in pairs.items()}
    for name in [n for n in hr.scenes if {"degraded"} == {role for _, role in readings(n)}]:
        lr.scenes[name] = hr.scenes.pop(name)
    hr.scenes |= scenes


def _under_names_of(hr: Files, lr: Files, asked: _Asked) -> Files:
    """Give LR views the names of their HR views where both differ only in marks or a scale.

    Where several LR images belong to each HR image, give HR images the names of their LR images instead.
    """
    names = matched(hr.scenes, lr.scenes)
    if asked.views == 1 and len(names) < len(lr.scenes) and (clean := shared(hr.scenes, lr.scenes, scale=asked.scale)):
        hr.scenes = {name: hr.scenes[clean[name]] for name in lr.scenes}
        return lr
    lr.scenes = {names.get(name, name): views for name, views in lr.scenes.items()}
    return lr


def _refuse_same_folder(hr: Files, lr: Files, asked: _Asked) -> None:
    if asked.lr_folder is not None and hr.folder.samefile(lr.folder):
        same = [name for name in hr.scenes if name in lr.scenes and hr.paths(name) == lr.paths(name)]
        if same or not lr.scenes.keys() - hr.scenes.keys():
            named = words(asked.scale)
            raise DataError(
                f"{lr.folder} was given as the {named.degraded} images, but contains the {named.clean} images itself"
            )


def _alone(hr: Files, lr: Files, asked: _Asked, all_need_lr: bool) -> list[str]:
    """Describe the scenes that have views of one sort only."""
    named = words(asked.scale)
    alone = [
        f"{n}: has {named.degraded} views, but no {named.clean} views{_denied(lr, n, 'degraded')}"
        for n in sorted(lr.scenes.keys() - hr.scenes.keys())
    ]
    if all_need_lr:
        lacking = sorted(hr.scenes.keys() - lr.scenes.keys())
        alone += [
            f"{n}: has {named.clean} views, but no {named.degraded} views{_denied(hr, n, 'clean')}" for n in lacking
        ]
    return alone


def _denied(files: Files, name: str, role: Role) -> str:
    other = "degraded" if role == "clean" else "clean"
    return f" (its name has a word of {other} images)" if denies(files.scene_path(name), role) else ""
