"""Grouping the images of one folder into scenes by their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .layouts import FolderLayout, pattern, written
from .listing import composed, stem
from .model import SIDES

_Form = tuple[str, ...]


class Files:
    """Images of one folder, grouped into scenes by their names.

    Attributes:
        folder: The folder.
        scenes: By scene name, the files of each view, e.g. `{"0001": [["0001_L.png"], ["0001_R.png"]]}`.
        others: Images that are named like other files of the layout, e.g. LR views beside HR views.
        rest: Images with names that the layout does not have.
    """

    def __init__(
        self, folder: Path, forms: Sequence[_Form], images: Iterable[str], *, others: Sequence[_Form] = ()
    ) -> None:
        self.folder = folder
        self.scenes: dict[str, list[list[str]]] = {}
        self.others: list[str] = []
        self.rest: list[str] = []
        self._templates = [template for form in (*forms, *others) for template in form]
        for image in images:
            if found := named(image, forms):
                name, view = found
                self.scenes.setdefault(name, [[] for _ in forms[0]])[view].append(image)
            else:
                (self.others if named(image, others) else self.rest).append(image)

    def paths(self, name: str) -> tuple[Path, ...]:
        """Return the path of each view of a scene; empty if the scene has none."""
        return tuple(self.folder / files[0] for files in self.scenes.get(name, ()))

    def scene_path(self, name: str) -> str:
        """Return the path of a scene's first file, without suffix, relative to the folder."""
        return stem(next(file for files in self.scenes[name] for file in files))

    def problems(self) -> list[str]:
        """Describe each view with several files or none, and each image with another name."""
        problems = []
        for views in self.scenes.values():
            problems += [f"{file}: is the same view as {files[0]}" for files in views for file in files[1:]]
            first = next(files[0] for files in views if files)
            problems += [f"{first}: has no {side} view" for side, files in zip(SIDES, views, strict=False) if not files]
        names = " or ".join(dict.fromkeys(map(written, self._templates)))
        problems += [f"{image}: is not named {names}" for image in self.rest if "/" not in image]
        if self._templates and all(template.startswith("{name}/") for template in self._templates):
            # A scene's folder may contain other images, e.g. disparities, but only beside views.
            folders = {composed(image.split("/")[0]) for image in self.rest} - self.scenes.keys()
            problems += [f"{folder}: none of its images is named {names}" for folder in sorted(folders)]
        return problems


def single(folder: Path, images: Iterable[str]) -> Files:
    """Group single images with any names: each is a scene, and a file in a subfolder is named `SUBFOLDER_FILE`."""
    files = Files(folder, [], ())
    for image in images:
        files.scenes.setdefault(stem(image).replace("/", "_"), [[]])[0].append(image)
    return files


def named(image: str, forms: Iterable[_Form]) -> tuple[str, int] | None:
    """Return an image's scene and view (0 left, 1 right), or None if its name fits no form."""
    text = stem(image)
    for form in forms:
        for view, template in enumerate(form):
            if match := pattern(template).fullmatch(text):
                return "_s".join(match.groups()), view  # a patch of a scene keeps its number: 7_s012
    return None


def grouped(layout: FolderLayout, folder: Path, images: Iterable[str], *, lr: bool = False) -> Files:
    """Group the HR or LR images of a folder in the way of its layout."""
    if layout.marks:
        return single(folder, images)
    hr_forms, lr_forms = [form.hr for form in layout.forms], [form.lr for form in layout.forms if form.lr]
    if lr:
        return Files(folder, lr_forms, images)
    return Files(folder, hr_forms, images, others=lr_forms if layout.lr_folder == "" else ())
