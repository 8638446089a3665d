"""Finding scenes in folders: recognise the layout, then group files by name."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from pathlib import Path

from ...errors import DataError, did_you_mean
from ..images import IMAGE_SUFFIXES
from .layouts import LAYOUTS, PLAIN, SUFFIXED, FolderLayout, pattern, written
from .model import SIDES, AnyPath, Scene

_Form = tuple[str, ...]
_SUFFIXES = tuple(IMAGE_SUFFIXES)
_MOST_SUGGESTIONS = 20
_LR_LIKE = re.compile(r"(?i)lr.*|.*[^a-z]lr(?![a-z0-9]).*")
"""Pattern of folder names that may contain LR views in any layout, e.g. LR_wild, DIV2K_train_LR_unknown."""


def find_scenes(
    folder: AnyPath,
    *,
    scale: int | None = None,
    lr_folder: AnyPath | None = None,
    views: int = 2,
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
    return _find(Path(folder), scale, lr_folder, views, layout, lr_may_lack=False)


def scenes_with_lr(
    folder: AnyPath,
    *,
    scale: int | None = None,
    lr_folder: AnyPath | None = None,
    views: int = 2,
    layout: str | None = None,
) -> tuple[tuple[Scene, ...], tuple[str, ...]]:
    """Return the scenes that have LR files, and the names of those without; arguments are those of `find_scenes`.

    Raises:
        DataError: No scene has LR files, or for the reasons that `find_scenes` lists.
    """
    scenes = _find(Path(folder), scale, lr_folder, views, layout, lr_may_lack=True)
    if not any(scene.lr for scene in scenes):
        at = "" if scale is None else f" for x{scale}"
        raise DataError(
            f"{folder} contains no LR files{at}; name their folder with lr_folder=, on the command line --lr"
        )
    return tuple(scene for scene in scenes if scene.lr), tuple(scene.name for scene in scenes if not scene.lr)


def _find(
    root: Path, scale: int | None, lr_folder: AnyPath | None, views: int, layout: str | None, *, lr_may_lack: bool
) -> tuple[Scene, ...]:
    """Return all scenes. Unless `lr_may_lack`, either all have LR files or none has."""
    try:
        row = _recognise(_existing(root), views, layout)
        folder, lr_forms = _hr_folder(root, row), [form.lr for form in row.forms]
        images, hr_forms = _images(folder, row.depth, row.fixed_folders), [form.hr for form in row.forms]
        hr = _Files(folder, hr_forms, images, others=lr_forms if row.lr_folder == "" else ())
        if lr_folder is not None:
            lr = _lr_of_any_layout(_existing(Path(lr_folder)), views)
        elif row.lr_folder != "" and (source := _lr_folder(root, row, scale)) is not None:
            lr = _Files(source, lr_forms, _images(source, row.depth))
        else:
            lr = _Files(folder, lr_forms, hr.others)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror or error}") from None
    if views == 1:
        lr.drop_scale(hr.scenes)
    problems = hr.problems() + lr.problems()
    problems += [f"{name}: has LR views, but no HR views" for name in sorted(lr.scenes.keys() - hr.scenes.keys())]
    if lr.scenes and not lr_may_lack:
        problems += [f"{name}: has HR views, but no LR views" for name in sorted(hr.scenes.keys() - lr.scenes.keys())]
    if problems:
        message = f"not every image in {root} belongs to a scene; remove these files or add their partners:"
        raise DataError(message, problems=problems)
    return tuple(Scene(name, hr.paths(name), lr.paths(name)) for name in sorted(hr.scenes))


def _recognise(root: Path, views: int, layout: str | None) -> FolderLayout:
    rows = {row.name: row for row in LAYOUTS.values() if row.views == views}
    if not rows:
        raise DataError(f"views must be 1 (images) or 2 (stereo pairs), not {views!r}")
    if layout is not None:
        if layout not in rows:
            hint = did_you_mean(layout, rows)
            raise DataError(f"no layout of {views}-view scenes is called {layout!r}{hint}; known: {', '.join(rows)}")
        rows = {layout: rows[layout]}
    fitting = _fitting(root, rows.values())
    if not fitting:
        raise _nothing_found(root, rows.values())
    if len(fitting) > 1:
        names = ", ".join(f"{row.name} ({row.title})" for row in fitting)
        raise DataError(
            f"{root} fits several layouts: {names}; name one of them with layout= (on the command line, `prepare` and "
            "`verify-lr` have --layout), or give a folder with one layout"
        )
    return fitting[0]


def _fitting(root: Path, rows: Iterable[FolderLayout]) -> list[FolderLayout]:
    fitting = [row for row in rows if _hr_folders(root, row)]
    names = {row.name for row in fitting}
    return [row for row in fitting if names.isdisjoint(row.gives_way_to)]


def _hr_folders(root: Path, row: FolderLayout) -> list[Path]:
    """Return the folders with HR views of the layout: the root itself, or folders in it."""
    names = [name for name in _folders(root) if re.fullmatch(row.hr_folder, name)] if row.hr_folder else [""]
    forms = [form.hr for form in row.forms]
    return [
        root / name
        for name in names
        if any(_named(image, forms) for image in _images(root / name, row.depth, row.fixed_folders))
    ]


def _hr_folder(root: Path, row: FolderLayout) -> Path:
    folders = _hr_folders(root, row)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise DataError(f"{root} contains several folders of HR images: {names}; give one of them, and its LR folder")
    return folders[0]


def _nothing_found(root: Path, rows: Collection[FolderLayout]) -> DataError:
    """Return the error for a folder without scenes; it suggests subfolders with scenes, or a search for images."""
    inside = [
        f"{root / name} (layout {row.name}: {row.title})"
        for name in itertools.islice(_folders(root), _MOST_SUGGESTIONS)
        for row in _fitting(root / name, rows)
    ]
    if inside:
        return DataError(f"{root} itself contains no scenes, but folders in it do; give one of them:", problems=inside)
    known = [f"{row.name} ({row.title}): {row.shown}" for row in rows]
    count = _single_images(root)
    if count and all(row.views == 2 for row in rows):
        images = f"{count} single image{'s' * (count > 1)}"
        return DataError(
            f"found no pairs in {root}, but {images}. For single images, call find_scenes(folder, views=1); on the "
            "command line, give `train` --images, `evaluate` --protocol single-image, `prepare` and `verify-lr` "
            "--views 1. Pairs are found in these layouts (with any image suffix):",
            problems=known,
        )
    return DataError(f"found no scenes in {root}; known layouts (with any image suffix):", problems=known)


def _single_images(root: Path) -> int:
    """Return the number of HR images in a folder that fits a layout of single images; 0 if it fits none."""
    for row in _fitting(root, [row for row in LAYOUTS.values() if row.views == 1]):
        forms = [form.hr for form in row.forms]
        return sum(
            _named(i, forms) is not None for folder in _hr_folders(root, row) for i in _images(folder, row.depth)
        )
    return 0


def _lr_folder(root: Path, row: FolderLayout, scale: int | None) -> Path | None:
    """Return the folder of the layout's LR views at a scale, or None if it is missing."""
    expression = re.compile(row.lr_folder or "")  # a layout without LR folders matches no name
    fitting, others = [], []
    for name in _lr_like(root, expression):
        match = expression.fullmatch(name)
        found_scale = match.groupdict().get("scale") if match else None
        if found_scale and scale is not None and found_scale != str(scale):
            continue
        if match and _has_images(root / name, row.depth):
            fitting.append(name)
        elif _has_images(root / name, 0) or _has_images(root / name, 1):
            others.append(name)
    if len(fitting) > 1:
        raise DataError(f"{root} contains LR views in {', '.join(fitting)}; give the scale, or name the LR folder")
    if others and not fitting:
        raise DataError(
            f"{root / others[0]} may contain LR views, but not as in layout {row.name}; name it as LR folder"
        )
    return root / fitting[0] if fitting else None


def _lr_like(root: Path, expression: re.Pattern[str]) -> list[str]:
    """Return the folders that may contain LR views, by name. DIV2K has one for each scale: LR_bicubic/X4."""
    names = [name for name in _folders(root) if _LR_LIKE.fullmatch(name) or expression.fullmatch(name)]
    scales = {name: [f for f in _folders(root / name) if re.fullmatch(r"[xX]\d+", f)] for name in names}
    plain = [name for name in names if not scales[name]]
    return plain + [f"{name}/{folder}" for name in names for folder in scales[name]]


def _lr_of_any_layout(folder: Path, views: int) -> _Files:
    """Find LR views of any layout in the folder that the user names."""
    images = list(_images(folder, 0))
    if views == 1:
        lr = _Files(folder, [SUFFIXED.lr], images, others=[SUFFIXED.hr])
        if not lr.scenes:
            lr = _Files(folder, [PLAIN.lr], images)
    else:
        forms = dict.fromkeys(
            form.lr for row in LAYOUTS.values() if row.views == views for form in row.forms if form.lr
        )
        lr = _Files(folder, list(forms), [*images, *_images(folder, 1)])
    if not lr.scenes:
        raise DataError(
            f"{folder} contains no LR views; pairs are named NAME_lr0 and NAME_lr1, NAME/lr0 and NAME/lr1, or NAME_L "
            "and NAME_R"
        )
    return lr


class _Files:
    """Images of one folder, grouped into scenes by their names.

    Attributes:
        scenes: By scene name, the files of each view, e.g. `{"0001": [["0001_L.png"], ["0001_R.png"]]}`.
        others: Images that are named like other files of the layout, e.g. LR views beside HR views.
        rest: Images with names that the layout does not have.
    """

    def __init__(
        self, folder: Path, forms: Sequence[_Form], images: Iterable[str], *, others: Sequence[_Form] = ()
    ) -> None:
        self.scenes: dict[str, list[list[str]]] = {}
        self.others: list[str] = []
        self.rest: list[str] = []
        self._folder, self._templates = folder, [template for form in (*forms, *others) for template in form]
        for image in images:
            if named := _named(image, forms):
                name, view = named
                self.scenes.setdefault(name, [[] for _ in forms[0]])[view].append(image)
            else:
                (self.others if _named(image, others) else self.rest).append(image)

    def paths(self, name: str) -> tuple[Path, ...]:
        """Return the path of each view of a scene; empty if the scene has none."""
        return tuple(self._folder / files[0] for files in self.scenes.get(name, ()))

    def drop_scale(self, known: Container[str]) -> None:
        """Give scenes their known names where only a scale suffix differs, e.g. 0001x4 becomes 0001."""
        for name in sorted(self.scenes):
            short = re.sub(r"[xX]\d+$", "", name)
            if name not in known and short in known and short not in self.scenes:
                self.scenes[short] = self.scenes.pop(name)

    def problems(self) -> list[str]:
        """Describe each view with several files or none, and each image with another name."""
        problems = []
        for views in self.scenes.values():
            problems += [f"{file}: is the same view as {files[0]}" for files in views for file in files[1:]]
            first = next(files[0] for files in views if files)
            problems += [f"{first}: has no {side} view" for side, files in zip(SIDES, views, strict=False) if not files]
        names = " or ".join(dict.fromkeys(map(written, self._templates)))
        problems += [f"{image}: is not named {names}" for image in self.rest if "/" not in image]
        if all(template.startswith("{name}/") for template in self._templates):
            # A scene's folder may contain other images, e.g. disparities, but only beside views.
            folders = {image.split("/")[0] for image in self.rest} - self.scenes.keys()
            problems += [f"{folder}: none of its images is named {names}" for folder in sorted(folders)]
        return problems


def _named(image: str, forms: Iterable[_Form]) -> tuple[str, int] | None:
    """Return an image's scene and view (0 left, 1 right), or None if its name fits no form."""
    stem = image.rpartition(".")[0]
    for form in forms:
        for view, template in enumerate(form):
            if match := pattern(template).fullmatch(stem):
                return "_s".join(match.groups()), view  # a patch of a scene keeps its number: 7_s012
    return None


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return folder


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _images(folder: Path | str, depth: int, only: Container[str] | None = None) -> Iterator[str]:
    """Yield the images `depth` levels below a folder, sorted, relative to it. Lazy: there may be 49,020 subfolders.

    With `only`, other subfolders are skipped.
    """
    for entry in _visible(folder):
        if depth and (only is None or entry.name in only) and entry.is_dir():
            yield from (f"{entry.name}/{image}" for image in _images(entry.path, depth - 1))
        elif not depth and entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir():
            yield entry.name  # also a broken link, which fails when it is read


def _has_images(folder: Path, depth: int) -> bool:
    return next(_images(folder, depth), None) is not None
