"""Writing a test set in the field's usual layouts: HR and LR views, one complete scene at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ...errors import DataError
from ...storage import leftovers, new_folder, write_json
from ...version import version
from ..images import eight_bit, image_header, read_image, write_image
from .examples import check_degraded, clean_crop_of, load_example, usable_size
from .layouts import LAYOUTS
from .model import USUAL, AnyPath, Example, Loading, Rectangle, Scene

SETTINGS_FILE = "prepared.json"
_WRITTEN = {2: LAYOUTS["ipassr"], 1: LAYOUTS["folders"]}


def prepare(
    scenes: Sequence[Scene],
    out: AnyPath,
    scale: int,
    *,
    loading: Loading = USUAL,
    clean_crops: Mapping[str, Rectangle] | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> int:
    """Write the HR and LR views of scenes: pairs in layout `ipassr`, single images in layout `folders`, as PNG.

    LR views are always made, by `loading.degrade` or MATLAB's bicubic; LR files of the scenes are not read. What
    `loading.degrade` makes is rounded to 8 bits, and its random numbers depend on the scene's name only. The LR views
    of a scene appear all at once, then its HR views. If the process is killed, the same call continues where it
    stopped. `prepared.json` in `out` stores the settings.

    Args:
        scenes: Scenes with the same number of views each.
        out: Folder that is new, empty, or from an earlier call with the same settings. Views of scenes that exist in it
            are compared with those that would be written.
        scale: SR factor.
        loading: How the files are read and the LR views made; see `load_example`.
        clean_crops: Rectangle in HR px to keep of a scene, by scene name.
        advance: Called with each scene's name after it is written or compared.

    Returns:
        Number of scenes of which this call wrote views.

    Raises:
        DataError: There are no scenes, a scene cannot be loaded, `out` cannot be written, or `out` contains other
            files, e.g. a scene of the same name with other views. Problems that file headers show are found for all
            scenes before anything is written.
    """
    if len({len(scene.hr) for scene in scenes}) != 1:
        raise DataError("prepare takes pairs or single images, at least one, and not both at once")
    crops, only_hr = clean_crops or {}, [Scene(scene.name, scene.hr) for scene in scenes]
    settings = {
        "scale": scale,
        "border": loading.border,
        "halve": loading.halve,
        "degrade": None if loading.degrade is None else str(loading.degrade),
        "views": len(scenes[0].hr),
    }
    folder, written = Path(out), 0
    _check(only_hr, scale, loading, crops)
    try:
        _begin(folder, settings)
        for scene in only_hr:
            example = load_example(scene, scale, clean_crop=clean_crop_of(scene, crops), loading=loading)
            written += _write_missing(example, folder, scale)
            advance(scene.name)
        for path in [path for place in (folder, *folder.iterdir()) for path in leftovers(place)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise DataError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return written


def _check(scenes: Sequence[Scene], scale: int, loading: Loading, crops: Mapping[str, Rectangle]) -> None:
    """Raise for scenes that cannot be prepared, judging by their file headers."""
    problems = []
    for scene in scenes:
        try:
            check_degraded(scene, scale, loading.degrade)
            usable_size(scene, scale, clean_crop=clean_crop_of(scene, crops), halve=loading.halve)
            if any(image_header(path).bits > 8 for path in scene.hr):
                raise DataError(f"scene {scene.name}: has 16 bits per sample, but 8-bit files would be written")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("some scenes cannot be prepared, so nothing was written:", problems=problems)


def _begin(folder: Path, settings: Mapping[str, object]) -> None:
    """Make the folder, or check that an earlier call made it with these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    if not path.exists():
        if others := sorted(entry.name for entry in folder.iterdir() if entry not in leftovers(folder)):
            raise DataError(f"{folder} contains {others[0]!r} and was not made by prepare; give a new or empty folder")
        write_json(path, {"lowpeft": version(), **settings})
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differences = [f"{k} was {before.get(k)!r}, is now {v!r}" for k, v in settings.items() if before.get(k) != v]
    except (ValueError, AttributeError):
        raise DataError(f"{path} is damaged; remove {folder}, or give another folder") from None
    if differences:
        raise DataError(f"{folder} was prepared with other settings; give another folder:", problems=differences)


def _write_missing(example: Example, folder: Path, scale: int) -> bool:
    """Write the views of a scene that are not in the folder; return whether there were any.

    Raises:
        DataError: A view in the folder differs; nothing of this scene is written.
    """
    layout = _WRITTEN[len(example.hr)]
    hr, lr = (folder / part.format(scale=scale) for part in layout.folders)
    form = layout.forms[0]
    parts = [  # LR views first, so that each HR view has its LR view
        {place / f"{template.format(name=example.name)}.png": v for template, v in zip(templates, views, strict=True)}
        for place, templates, views in ((lr, form.lr, example.lr), (hr, form.hr, example.hr))
    ]
    present = {path: view for part in parts for path, view in part.items() if path.exists()}
    different = [str(path) for path, view in present.items() if not torch.equal(eight_bit(view), read_image(path))]
    if different:
        message = f"scene {example.name} differs from the one in {folder}; give another folder, or remove these files:"
        raise DataError(message, problems=different)
    for part in parts:
        target = next(iter(part)).parent
        if layout.depth and not target.exists():  # a folder of its own for each scene: it appears with all views
            with new_folder(target, durable=False) as temporary:
                for path, view in part.items():
                    write_image(view, temporary / path.name)
        for path, view in part.items():
            if not path.exists():
                target.mkdir(parents=True, exist_ok=True)
                write_image(view, path)
    return len(present) < 2 * len(example.hr)
