"""Stereo scenes on disk, and training crops from them.

    find_scenes(folder) -> Scene (paths) -> load_pair -> Pair (pixels) -> StereoPairs.batch -> Crop (a training batch)

LR views are made once per scene, from the whole view, by MATLAB's bicubic; a crop is then the same rectangle in
LR pixels and, times the scale, in HR pixels, so nothing is ever resampled at a crop's edge.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lowpeft.errors import DataError
from lowpeft.images import IMAGE_SUFFIXES, matlab_downscale, read_image, to_float

Rectangle = tuple[int, int, int, int]
AnyPath = str | os.PathLike[str]

_LAYOUTS = "NAME_L.png with NAME_R.png (any image suffix), or NAME/hr0.png (left) with NAME/hr1.png (right)"


@dataclass(frozen=True)
class Scene:
    """Where one stereo pair lies; the LR paths are None where LR views are to be made from the HR views."""

    name: str
    left: Path
    right: Path
    lr_left: Path | None = None
    lr_right: Path | None = None

    def __post_init__(self) -> None:
        if (self.lr_left is None) != (self.lr_right is None):
            raise DataError(f"scene {self.name}: give the LR paths of both views or of neither")


@dataclass(frozen=True)
class Pair:
    """One loaded scene: LR (3, H, W) and HR (3, scale*H, scale*W), all uint8."""

    name: str
    lr_left: torch.Tensor
    lr_right: torch.Tensor
    hr_left: torch.Tensor
    hr_right: torch.Tensor


@dataclass(frozen=True)
class Crop:
    """The same rectangle of four images, or a batch of them: ([N,] 3, H, W), float32 0..1; HR is `scale` times LR."""

    lr_left: torch.Tensor
    lr_right: torch.Tensor
    hr_left: torch.Tensor
    hr_right: torch.Tensor


# ---------------------------------------------------------------------------------------------------- finding files
def find_scenes(folder: AnyPath, *, lr_folder: AnyPath | None = None) -> tuple[Scene, ...]:
    """The stereo scenes of a folder, sorted by name.

    Views are paired by NAME, never by their place in a listing: `NAME_L.EXT` with `NAME_R.EXT`, and `NAME/hr0.EXT`
    with `NAME/hr1.EXT`. Under `lr_folder` the same names are looked for, in the second layout as `NAME/lr0.EXT` and
    `NAME/lr1.EXT` (it may be `folder` itself). Hidden files and files that are no images are passed over.

    Raises:
        DataError: a folder is missing or holds no scene, or views are left without their partner (all are listed).
    """
    hr_views, problems = _views(Path(folder), ("hr0", "hr1"))
    if not hr_views and not problems:
        raise DataError(f"found no stereo scenes in {folder}; understood are {_LAYOUTS}")
    lr_views: dict[str, tuple[Path, Path]] = {}
    if lr_folder is not None:
        lr_views, lr_problems = _views(Path(lr_folder), ("lr0", "lr1"))
        problems += lr_problems
        problems += [f"{name}: has HR views, but no LR views" for name in sorted(hr_views.keys() - lr_views.keys())]
        problems += [f"{name}: has LR views, but no HR views" for name in sorted(lr_views.keys() - hr_views.keys())]
    if problems:
        raise DataError(
            f"not every view in {folder} belongs to a scene; remove these files or add their partners:",
            problems=problems,
        )
    return tuple(
        Scene(name, *hr_views[name], *lr_views[name]) if lr_views else Scene(name, *hr_views[name])
        for name in sorted(hr_views)
    )


def _views(folder: Path, stems: tuple[str, str]) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """The (left, right) of every complete scene by name, and a line for every image that is in none."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found: dict[str, dict[str, Path]] = {}
    problems = []
    for path in _images(folder):
        name, mark, side = path.stem.rpartition("_")
        if not mark or not name or side not in ("L", "R"):
            problems.append(f"{path.name}: is named neither NAME_L nor NAME_R")
        elif side in found.setdefault(name, {}):
            problems.append(f"{path.name}: is the same view as {found[name][side].name}")
        else:
            found[name][side] = path
    for path in itertools.chain.from_iterable(_images(inner) for inner in sorted(folder.iterdir()) if inner.is_dir()):
        if path.stem in stems:
            side, name = "LR"[stems.index(path.stem)], path.parent.name
            if side in found.setdefault(name, {}):
                problems.append(f"{name}/{path.name}: is the same view as {found[name][side].relative_to(folder)}")
            found[name].setdefault(side, path)
    pairs = {name: (views["L"], views["R"]) for name, views in found.items() if len(views) == 2}
    for name in sorted(found.keys() - pairs.keys()):
        (side, path), *_ = found[name].items()
        missing = "right" if side == "L" else "left"
        problems.append(f"{path.relative_to(folder)}: has no {missing} view")
    return pairs, problems


def _images(folder: Path) -> list[Path]:
    visible = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def read_clean_crops(folder: AnyPath) -> dict[str, Rectangle]:
    """The usable rectangle [x0, y0, x1, y1) in HR px of each scene that `manifest.json` gives a `clean_crop`.

    The manifest is a list of objects with `scene` (the name) and, where needed, `clean_crop`; without a manifest there
    are no such rectangles.

    Raises:
        DataError: the manifest is not of that form.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "scene" in entry for entry in entries):
        raise DataError(f"{path} must be a list of objects, each with a 'scene'")
    crops: dict[str, Rectangle] = {}
    for entry in entries:
        corners = entry.get("clean_crop")
        if corners is None:
            continue
        if not isinstance(corners, list) or [type(corner) for corner in corners] != [int] * 4:
            raise DataError(f"{path}: 'clean_crop' of {entry['scene']} must be [x0, y0, x1, y1] in px, got {corners!r}")
        crops[str(entry["scene"])] = (corners[0], corners[1], corners[2], corners[3])
    return crops


# ---------------------------------------------------------------------------------------------------------- loading
def load_pair(scene: Scene, scale: int, *, clean_crop: Rectangle | None = None) -> Pair:
    """Read a scene, cut it to whole LR pixels, and make its LR views where the scene has none on disk.

    Args:
        scene: the scene to read.
        scale: the SR factor; bottom and right lose what it does not divide.
        clean_crop: keep only this rectangle [x0, y0, x1, y1) in HR px, rounded inwards to whole LR pixels.

    Raises:
        DataError: a file cannot be read, the views differ in size, the LR views are not HR / `scale`, or the
            rectangle does not lie in the image; the scene is named.
    """
    left, right = read_image(scene.left), read_image(scene.right)
    if left.shape != right.shape:
        raise DataError(f"scene {scene.name}: the left view is {_size(left)}, but the right view is {_size(right)}")
    x0, y0, x1, y1 = _whole_lr_pixels(scene.name, left, scale, clean_crop)
    hr_left, hr_right = (view[:, y0 * scale : y1 * scale, x0 * scale : x1 * scale] for view in (left, right))
    if scene.lr_left is None or scene.lr_right is None:
        lr_left, lr_right = (matlab_downscale(view, scale) for view in (hr_left, hr_right))
    else:
        lr_left, lr_right = (
            _read_lr(path, scene.name, left, scale)[:, y0:y1, x0:x1] for path in (scene.lr_left, scene.lr_right)
        )
    return Pair(scene.name, *(view.contiguous() for view in (lr_left, lr_right, hr_left, hr_right)))


def _read_lr(path: Path, name: str, hr: torch.Tensor, scale: int) -> torch.Tensor:
    lr = read_image(path)
    height, width = (side // scale for side in hr.shape[-2:])
    if lr.shape[-2:] != (height, width):
        raise DataError(
            f"scene {name}: at x{scale} an HR view of {_size(hr)} needs an LR view of {width}x{height} px, "
            f"but {path.name} is {_size(lr)}"
        )
    return lr


def _whole_lr_pixels(name: str, view: torch.Tensor, scale: int, clean_crop: Rectangle | None) -> Rectangle:
    """The largest rectangle of whole LR pixels, in LR px, inside the view and `clean_crop`."""
    height, width = view.shape[-2:]
    x0, y0, x1, y1 = clean_crop or (0, 0, width, height)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise DataError(f"scene {name}: the clean rectangle {clean_crop} does not lie in the {_size(view)} view")
    inside = (-(-x0 // scale), -(-y0 // scale), x1 // scale, y1 // scale)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"scene {name}: there is no whole x{scale} LR pixel in {clean_crop or _size(view)}")
    return inside


# ----------------------------------------------------------------------------------------------------------- crops
class StereoPairs:
    """Scenes in memory (uint8, about 6 bytes per HR pixel of one view), and random training crops from them.

    What is drawn depends on the generator alone: the same scenes, settings and generator state give the same crops.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        scale: int,
        *,
        crop_px: tuple[int, int] = (128, 320),
        augment: bool = True,
        crops: Mapping[str, Rectangle] | None = None,
    ) -> None:
        """Load every scene.

        Args:
            scenes: at least one, for instance from `find_scenes`.
            scale: the SR factor.
            crop_px: height and width of a crop in HR px, multiples of `scale`; the default is ASteISR's.
            augment: mirror left to right (which swaps the views, since a mirrored left camera stands on the right),
                top to bottom, and permute R, G and B, the same for all four images of a crop.
            crops: the rectangle in HR px to use of a scene, by its name (see `read_clean_crops`).

        Raises:
            DataError: there are no scenes, the crop does not fit the scale, or scenes cannot be loaded or are smaller
                than the crop (all of them are listed).
        """
        height, width = crop_px
        if min(height, width) < 1 or height % scale or width % scale:
            raise DataError(f"a crop of {width}x{height} HR px is no whole number of x{scale} LR pixels")
        if not scenes:
            raise DataError("there are no scenes to take crops from")
        pairs, problems = [], []
        for scene in scenes:
            try:
                pair = load_pair(scene, scale, clean_crop=(crops or {}).get(scene.name))
            except DataError as error:
                problems.append(str(error))
                continue
            if pair.hr_left.shape[-2] < height or pair.hr_left.shape[-1] < width:
                problems.append(f"scene {scene.name}: {_size(pair.hr_left)} can be used, less than one crop")
            pairs.append(pair)
        if problems:
            raise DataError(f"cannot take crops of {width}x{height} HR px from all the scenes:", problems=problems)
        self.pairs = tuple(pairs)
        self.scale = scale
        self.crop_px = (height, width)
        self._crop_lr = (height // scale, width // scale)
        self._augment = augment
        self._areas = list(itertools.accumulate(pair.lr_left[0].numel() for pair in pairs))

    def crop(self, generator: torch.Generator) -> Crop:
        """One crop; scenes are drawn in proportion to their area, places within a scene evenly."""
        pair = self.pairs[bisect.bisect_right(self._areas, _draw(self._areas[-1], generator))]
        height, width = self._crop_lr
        top = _draw(pair.lr_left.shape[-2] - height + 1, generator)
        left = _draw(pair.lr_left.shape[-1] - width + 1, generator)
        views = ((pair.lr_left, 1), (pair.lr_right, 1), (pair.hr_left, self.scale), (pair.hr_right, self.scale))
        cut = [view[:, top * s : (top + height) * s, left * s : (left + width) * s] for view, s in views]
        if self._augment:
            if _draw(2, generator):
                cut = [cut[view].flip(-1) for view in (1, 0, 3, 2)]
            if _draw(2, generator):
                cut = [view.flip(-2) for view in cut]
            channels = torch.randperm(3, generator=generator)
            cut = [view[channels] for view in cut]
        return Crop(*(to_float(view) for view in cut))

    def batch(self, size: int, generator: torch.Generator) -> Crop:
        """`size` crops, drawn one after the other and stacked: each field is (size, 3, H, W).

        Raises:
            DataError: `size` is below 1.
        """
        if size < 1:
            raise DataError(f"a batch needs at least one crop, got size {size}")
        drawn = [self.crop(generator) for _ in range(size)]
        views = ([crop.lr_left, crop.lr_right, crop.hr_left, crop.hr_right] for crop in drawn)
        return Crop(*(torch.stack(column) for column in zip(*views, strict=True)))


def _draw(below: int, generator: torch.Generator) -> int:
    """A whole number from 0 to `below` - 1, all equally likely."""
    return int(torch.randint(below, (), generator=generator))


def _size(view: torch.Tensor) -> str:
    return f"{view.shape[-1]}x{view.shape[-2]} px"
