"""Loading one scene: cut it to whole LR pixels, check sizes, and make missing LR views."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ...errors import DataError
from ...ports.layouts import Size
from ..degradations import Degradation
from ..images import Border, image_size, matlab_downscale, matlab_halve, mod_crop, read_image, to_float
from ..words import words
from .layouts import MARKED
from .listing import composed
from .model import USUAL, AnyPath, Example, Loading, Rectangle, Scene, px

Views = tuple[Tensor, ...]


def load_example(
    scene: Scene,
    scale: int,
    *,
    clean_crop: Rectangle | None = None,
    loading: Loading = USUAL,
) -> Example:
    """Read a scene, cut it to whole LR pixels, and make its LR views if it has no LR files.

    They are made by `loading.degrade`, the same at every call for scenes of this name, or by MATLAB's bicubic.

    Args:
        scene: The scene to read.
        scale: SR factor; rows at the bottom and columns at the right are cut to multiples of it.
        clean_crop: Rectangle of the HR files to keep, rounded inwards to whole LR pixels; None keeps all.
        loading: How the files are read and the LR views made.

    Raises:
        DataError: A file cannot be read, the views differ in size, the LR views are not HR / `scale`, the rectangle is
            not inside the image, the degradation is for another scale, or nothing degrades the views (at scale 1); the
            scene is named.
    """
    lr, hr = read_views(scene, scale, clean_crop=clean_crop, loading=loading)
    if not lr and loading.degrade is not None:
        lr = loading.degrade.views(hr, scale, "scene", scene.name)
    elif not lr:
        lr = bicubic_views(hr, scale, border=loading.border)
    return Example(scene.name, lr, hr)


def read_views(
    scene: Scene,
    scale: int,
    *,
    clean_crop: Rectangle | None = None,
    loading: Loading = USUAL,
) -> tuple[Views, Views]:
    """Return the LR views of a scene, none if they are to be made, and its HR views, as `load_example` reads them.

    Raises:
        DataError: As for `load_example`.
    """
    if loading.degrade is not None:
        scene = Scene(scene.name, scene.hr)
    read = partial(read_image, channels=loading.channels, white_level=loading.white_level)
    halve = loading.halve
    try:
        check_degraded(scene, scale, loading.degrade)
        hr, lr = (_of_one_depth(list(map(read, paths))) for paths in (scene.hr, scene.lr))
        x0, y0, x1, y1 = _kept(scene, list(map(_size, hr)), list(map(_size, lr)), scale, clean_crop, halve)
        if clean_crop is not None:
            step = 2 * scale if halve else scale
            hr = [v[:, y0 * step : y1 * step, x0 * step : x1 * step] for v in hr]
        if halve:
            hr = [matlab_halve(v, border=loading.border) for v in hr]
        hr = [mod_crop(v, scale) for v in hr]
        lr = [v[:, y0:y1, x0:x1] for v in lr]
    except DataError as error:
        raise _of_scene(scene, error) from None
    return tuple(v.contiguous() for v in lr), tuple(v.contiguous() for v in hr)


def bicubic_views(hr: Sequence[Tensor], scale: int, *, border: Border) -> Views:
    """Return LR views by MATLAB's bicubic; those of deep views are clipped to 0..1, as files of them would be."""
    views = (matlab_downscale(view, scale, border=border) for view in hr)
    return tuple(view.clamp(0, 1) if view.is_floating_point() else view for view in views)


def check_degraded(scene: Scene, scale: int, degrade: Degradation | None) -> None:
    """Check that something makes the degraded views of a scene different from the clean ones.

    Raises:
        DataError: Nothing does, or the degradation is for another scale.
    """
    if degrade is not None:
        degrade.check(scale)
    elif scale == 1 and not scene.lr:
        raise DataError(
            "a network of scale 1 needs degraded images, and there are none: name their folder (lr_folder=, on the "
            "command line --data-lr or --lr), or make them, for example with degrade=degradation('noise:25') "
            "(--degrade noise:25)"
        )


def usable_size(
    scene: Scene,
    scale: int,
    *,
    clean_crop: Rectangle | None = None,
    halve: bool = False,
    size_of: Callable[[Path], Size] = image_size,
) -> Size:
    """Return height and width of the HR views that `load_example` would give, from the sizes that `size_of` gives.

    Raises:
        DataError: For the reasons that `load_example` lists, except damage after a header.
    """
    try:
        hr, lr = ([size_of(path) for path in paths] for paths in (scene.hr, scene.lr))
        x0, y0, x1, y1 = _kept(scene, hr, lr, scale, clean_crop, halve)
    except DataError as error:
        raise _of_scene(scene, error) from None
    return (y1 - y0) * scale, (x1 - x0) * scale


def _kept(
    scene: Scene,
    hr: Sequence[Size],
    lr: Sequence[Size],
    scale: int,
    clean_crop: Rectangle | None,
    halve: bool,
) -> Rectangle:
    """Check the sizes of a scene's files against each other, and return the rectangle to keep, in LR px."""
    if scale < 1:
        raise DataError(f"the scale must be at least 1, not {scale}")
    if len(set(hr)) > 1:
        raise DataError(f"the left view is {px(hr[0])}, but the right view is {px(hr[1])}")
    height, width = (-(-side // 2) for side in hr[0]) if halve else hr[0]
    whole = (height // scale, width // scale)
    for size, path in zip(lr, scene.lr, strict=True):
        if size != whole:
            made = f"{px(hr[0])}, halved," if halve else px(hr[0])
            named = words(scale)
            raise DataError(
                f"at x{scale} the {named.clean} view of {made} needs a {named.degraded} view of {px(whole)}, but "
                f"{path.name} is {px(size)}"
            )
    if clean_crop is None:
        kept = (0, 0, whole[1], whole[0])
    else:
        x0, y0, x1, y1 = clean_crop
        if not (0 <= x0 < x1 <= hr[0][1] and 0 <= y0 < y1 <= hr[0][0]):
            raise DataError(f"the clean_crop {clean_crop} is not inside the view of {px(hr[0])}")
        step = 2 * scale if halve else scale  # side of one LR pixel in px of the HR files
        kept = (-(-x0 // step), -(-y0 // step), x1 // step, y1 // step)  # rounded inwards, at x4: 3..37 gives 1..9
    if kept[0] >= kept[2] or kept[1] >= kept[3]:
        raise DataError(f"{clean_crop or px(hr[0])} contains no whole LR pixel at x{scale}")
    return kept


def _of_one_depth(views: list[Tensor]) -> list[Tensor]:
    """Return views as they are; as float views 0..1 if one of them is deep."""
    return [to_float(view) for view in views] if any(view.is_floating_point() for view in views) else views


def _of_scene(scene: Scene, error: DataError) -> DataError:
    return DataError(f"scene {scene.name}: {error.message}", problems=error.problems)


def _size(view: Tensor) -> Size:
    return view.shape[-2], view.shape[-1]


def clean_crop_of(scene: Scene, crops: Mapping[str, Rectangle] | None) -> Rectangle | None:
    """Return the usable rectangle of a scene by its name, or by that of its clean image, which several may share."""
    crops = crops or {}
    return crops.get(scene.name, crops.get(composed(scene.hr[0].stem)) if len(scene.hr) == 1 else None)


def read_clean_crops(folder: AnyPath, *, views: int = 2) -> dict[str, Rectangle]:
    """Read the usable rectangles [x0, y0, x1, y1) in HR px, by scene name, from `manifest.json`.

    The manifest is a list of objects with `scene` (the name) and optionally `clean_crop`. Return an empty dict if
    there is no manifest.

    Args:
        folder: Folder that contains the manifest.
        views: Same value as for `find_scenes`. With 1, NAME_L and NAME_R of a pair are separate scenes, and the
            rectangle of NAME also applies to both.

    Raises:
        DataError: The manifest has another form or cannot be read.
    """
    path = Path(folder) / "manifest.json"
    try:
        if not path.exists():  # as `find_scenes` takes a folder that holds nothing but the one with the scenes
            inner = [each for each in Path(folder).iterdir() if each.is_dir()] if Path(folder).is_dir() else []
            path = inner[0] / path.name if len(inner) == 1 else path
        if not path.exists():
            return {}
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "scene" in entry for entry in entries):
        raise DataError(f"{path} must be a list of objects, each with a 'scene'")
    crops: dict[str, Rectangle] = {}
    for entry in entries:
        corners = entry.get("clean_crop")
        if corners is None:
            continue
        if not isinstance(corners, list) or [type(corner) for corner in corners] != [int] * 4:
            raise DataError(f"{path}: 'clean_crop' of {entry['scene']} must be [x0, y0, x1, y1] in px, not {corners!r}")
        x0, y0, x1, y1 = corners
        name = composed(str(entry["scene"]))
        names = [name, *(template.format(name=name) for template in MARKED.hr)] if views == 1 else [name]
        crops |= dict.fromkeys(names, (x0, y0, x1, y1))
    return crops
