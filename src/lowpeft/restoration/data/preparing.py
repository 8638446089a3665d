"""Writing a test set in the field's usual layouts: HR and LR views, one complete scene at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ...errors import DataError
from ...storage import write_json
from ...version import version
from ..images import Border, read_image, write_image
from .examples import load_example, load_hr, usable_size
from .layouts import LAYOUTS
from .model import AnyPath, Example, Rectangle, Scene

SETTINGS_FILE = "prepared.json"
_UNFINISHED = ".unfinished"
_WRITTEN = {2: LAYOUTS["ipassr"], 1: LAYOUTS["folders"]}


def prepare(
    scenes: Sequence[Scene],
    out: AnyPath,
    scale: int,
    *,
    border: Border = "symmetric",
    halve: bool = False,
    clean_crops: Mapping[str, Rectangle] | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> int:
    """Write the HR and LR views of scenes: pairs in layout `ipassr`, single images in layout `folders`, as PNG.

    LR views are always made by MATLAB's bicubic; LR files of the scenes are not read. Files are moved into `out` only
    after the whole scene is written, HR views last. If the process is killed, the same call continues where it
    stopped. `prepared.json` in `out` stores the settings.

    Args:
        scenes: Scenes with the same number of views each.
        out: Folder that is new, empty, or from an earlier call with the same settings. HR views of scenes that exist
            in it are compared with those that would be written.
        scale: SR factor.
        border: Border of MATLAB's bicubic; see `load_example`.
        halve: True shrinks the HR files by 2 first; see `load_example`.
        clean_crops: Rectangle in HR px to keep of a scene, by scene name.
        advance: Called with each scene's name after it is written or compared.

    Returns:
        Number of scenes that were written by this call.

    Raises:
        DataError: There are no scenes, a scene cannot be loaded, `out` cannot be written, or `out` contains other
            files, e.g. a scene of the same name with other HR views. Problems that file headers show are found for all
            scenes before anything is written.
    """
    if len({len(scene.hr) for scene in scenes}) != 1:
        raise DataError("prepare takes pairs or single images, at least one, and not both at once")
    crops = clean_crops or {}
    settings = {"scale": scale, "border": border, "halve": halve, "views": len(scenes[0].hr)}
    folder, written = Path(out), 0
    _check(scenes, scale, halve, crops)
    try:
        _begin(folder, settings)
        for scene in scenes:
            only_hr, crop = Scene(scene.name, scene.hr), crops.get(scene.name)
            there = _paths(folder, scene.name, settings)
            if all(path.exists() for path in there):
                hr = load_hr(only_hr, scale, clean_crop=crop, border=border, halve=halve)
                if not all(map(torch.equal, hr, map(read_image, there[len(hr) :]))):
                    raise DataError(f"{folder} holds another scene {scene.name} already; give another folder")
            else:
                _write(load_example(only_hr, scale, clean_crop=crop, border=border, halve=halve), folder, settings)
                written += 1
            advance(scene.name)
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return written


def _check(scenes: Sequence[Scene], scale: int, halve: bool, crops: Mapping[str, Rectangle]) -> None:
    """Raise for scenes that cannot be prepared, judging by their file headers."""
    problems = []
    for scene in scenes:
        try:
            usable_size(Scene(scene.name, scene.hr), scale, clean_crop=crops.get(scene.name), halve=halve)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("nothing was written, because not all the scenes can be prepared:", problems=problems)


def _begin(folder: Path, settings: Mapping[str, object]) -> None:
    """Make the folder, or check that an earlier call made it with these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    if not path.exists():
        if others := sorted(entry.name for entry in folder.iterdir()):
            raise DataError(f"{folder} holds {others[0]!r} and was not made by prepare; give a new or an empty folder")
        write_json(path, {"lowpeft": version(), **settings})
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differences = [f"{k}: {before.get(k)!r} there, {v!r} now" for k, v in settings.items() if before.get(k) != v]
    except (ValueError, AttributeError):
        raise DataError(f"{path} is damaged; remove {folder}, or give another folder") from None
    if differences:
        raise DataError(f"{folder} was prepared with other settings; give another folder", problems=differences)


def _paths(folder: Path, name: str, settings: Mapping[str, object]) -> list[Path]:
    """Return the paths of a scene's files: LR views, then HR views."""
    layout = _WRITTEN[2 if settings["views"] == 2 else 1]
    hr, lr = (folder / place.format(scale=settings["scale"]) for place in layout.folders)
    form = layout.forms[0]
    places = [(lr, template) for template in form.lr] + [(hr, template) for template in form.hr]
    return [place / f"{template.format(name=name)}.png" for place, template in places]


def _write(example: Example, folder: Path, settings: Mapping[str, object]) -> None:
    """Write all files to a temporary folder, then move them; HR views last, so that each has its LR views."""
    unfinished = folder / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    paths = _paths(folder, example.name, settings)
    for view, path in zip((*example.lr, *example.hr), paths, strict=True):
        part = unfinished / path.relative_to(folder)
        part.parent.mkdir(parents=True, exist_ok=True)
        write_image(view, part)
    own_folders = settings["views"] == 2
    for path in dict.fromkeys(path.parent if own_folders else path for path in paths):
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        (unfinished / path.relative_to(folder)).replace(path)
