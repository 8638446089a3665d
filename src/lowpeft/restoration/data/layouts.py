"""Table of the folder layouts that are recognised. Searching, `--help` and the documentation all read it.

Each row gives the folders of the HR and LR views and the templates of their file names. Templates are paths without
suffix; `{name}` is the scene's name, `{part}` the number of a patch of it. E.g. `{name}/hr0` matches `0001/hr0.png`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ...errors import DataError
from ...registry import Registry
from .roles import CLEAN_FOLDER, DEGRADED_FOLDER


@dataclass(frozen=True, kw_only=True)
class Form:
    """One naming of files: a template for each view, left first."""

    hr: tuple[str, ...]
    lr: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """One row of the table.

    Attributes:
        name: Name of the layout, as `--layout` takes it.
        title: Data sets or projects that use it.
        views: Number of views of each scene.
        hr_folder: Regular expression for the name of the HR folder; empty if the folder itself contains the HR views.
        lr_folder: Regular expression for the names of LR folders, with optional groups `scale` or `factor`; empty if
            the LR views are in the HR folder, None if the layout has no LR views.
        forms: Accepted file names in these folders; with `marks`, examples.
        marks: True if images have any names and belong together by them: the same name in two folders, or names that
            differ only in the marks of `roles.py`, e.g. `noisy` and `clean`.
        gives_way_to: Names of earlier layouts that take precedence over this one in a folder that fits both.
        folders: Prefixes of HR and LR paths, e.g. `HR/` and `LR_x{scale}/`, for display and for writing by `prepare`.
    """

    name: str
    title: str
    views: int
    hr_folder: str = ""
    lr_folder: str | None = None
    forms: tuple[Form, ...]
    marks: bool = False
    gives_way_to: tuple[str, ...] = ()
    folders: tuple[str, str] = ("", "")

    @property
    def depth(self) -> int:
        """Number of folder levels between the HR or LR folder and its files; 0 if it contains them directly."""
        return self.forms[0].hr[0].count("/")

    @property
    def fixed_folders(self) -> frozenset[str] | None:
        """Names of the subfolders of the HR folder in small letters, e.g. `image_2`; None if scenes name them."""
        tops = frozenset(t.split("/")[0].lower() for form in self.forms for t in form.hr)
        return None if any("{" in top for top in tops) else tops

    @property
    def shown(self) -> str:
        """Example paths in one line, e.g. `hr/NAME/hr0.png, hr/NAME/hr1.png`."""
        lines = []
        for form in self.forms:
            names = [f"{self.folders[0]}{t}" for t in form.hr]
            if self.lr_folder is not None:
                names += [f"{self.folders[1]}{t}" for t in form.lr]
            lines.append(", ".join(f"{n}.png" for n in names))
        return "; or ".join(map(written, lines))


def written(template: str) -> str:
    """Return a template with example values filled in, e.g. `NAME/hr0`."""
    return template.format(name="NAME", part="001", scale=4)


@functools.cache
def pattern(template: str) -> re.Pattern[str]:
    """Return the regular expression of a template; it matches a whole relative path without suffix, in any case."""
    groups = {"name": "[^/]+", "part": r"\d+"}
    parts = re.split(r"\{(\w+)\}", template)
    text = [f"(?P<{p}>{groups[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts)]
    return re.compile("".join(text), re.IGNORECASE)


NESTED = Form(hr=("{name}/hr0", "{name}/hr1"), lr=("{name}/lr0", "{name}/lr1"))
NUMBERED = Form(hr=("{name}_hr0", "{name}_hr1"), lr=("{name}_lr0", "{name}_lr1"))


def _alike(left: str, right: str) -> Form:
    return Form(hr=(left, right), lr=(left, right))


MARKED = _alike("{name}_L", "{name}_R")
MARKED_PARTS = _alike("{name}_L_s{part}", "{name}_R_s{part}")
SPELLED = _alike("{name}_left", "{name}_right")
SPELLED_FIRST = _alike("left_{name}", "right_{name}")
IN_SCENES = (
    _alike("{name}/im0", "{name}/im1"),
    _alike("{name}/view1", "{name}/view5"),
    _alike("{name}/left", "{name}/right"),
)
IN_SIDES = (
    _alike("left/{name}_L", "right/{name}_R"),
    _alike("left/{name}_left", "right/{name}_right"),
    _alike("left/{name}", "right/{name}"),
)
KITTI_2012 = Form(hr=("colored_0/{name}_10", "colored_1/{name}_10"))
KITTI_2015 = Form(hr=("image_2/{name}_10", "image_3/{name}_10"))
SUFFIXED = Form(hr=("{name}_HR",), lr=("{name}_LR",))
PLAIN = Form(hr=("{name}",), lr=("{name}",))
CLIPS = Form(hr=("{name}/{part}",), lr=("{name}/{part}",))
SHARP_BLUR = Form(hr=("{name}/sharp/{part}",), lr=("{name}/blur/{part}",))
SIDD = Form(hr=("{name}/{part}_GT",), lr=("{name}/{part}_NOISY",))

LAYOUTS = Registry(
    "folder layout",
    FolderLayout(name="patches", title="patches of iPASSR and NAFSSR", views=2, lr_folder="", forms=(NESTED,)),
    FolderLayout(
        name="ipassr",
        title="test sets of iPASSR, NAFSSR, CVHSSR, ASteISR",
        views=2,
        hr_folder=CLEAN_FOLDER,
        lr_folder=DEGRADED_FOLDER,
        forms=(NESTED, *IN_SCENES),
        folders=("hr/", "lr_x{scale}/"),
    ),
    FolderLayout(
        name="flat",
        title="NTIRE; flat files of SwinFIRSSR; sub-images of SCGLANet and ASteISR (HR_patch, LR_patch)",
        views=2,
        hr_folder=CLEAN_FOLDER,
        lr_folder=DEGRADED_FOLDER,
        forms=(MARKED, NUMBERED, MARKED_PARTS, SPELLED, SPELLED_FIRST),
        folders=("HR/", "LR_x{scale}/"),
    ),
    FolderLayout(
        name="flat-sides",
        title="left and right views in folders of their own, beside LR views",
        views=2,
        hr_folder=CLEAN_FOLDER,
        lr_folder=DEGRADED_FOLDER,
        forms=IN_SIDES,
        folders=("HR/", "LR_x{scale}/"),
    ),
    FolderLayout(
        name="pairs",
        title="raw Flickr1024, and any plain folder of pairs",
        views=2,
        forms=(MARKED, MARKED_PARTS, SPELLED, SPELLED_FIRST),
    ),
    FolderLayout(name="middlebury", title="raw Middlebury, and other folders of scenes", views=2, forms=IN_SCENES),
    FolderLayout(name="sides", title="left and right views in folders of their own", views=2, forms=IN_SIDES),
    FolderLayout(name="kitti", title="raw KITTI 2012 or 2015", views=2, forms=(KITTI_2012, KITTI_2015)),
    FolderLayout(
        name="folders",
        title="single images, HR and LR, or clean and degraded, in folders of their own (DIV2K, Set5, LOL, …)",
        views=1,
        hr_folder=CLEAN_FOLDER,
        lr_folder=DEGRADED_FOLDER,
        forms=(PLAIN,),
        marks=True,
        folders=("HR/", "LR_x{scale}/"),
    ),
    FolderLayout(
        name="clips",
        title="the same, in a folder for each clip (REDS)",
        views=1,
        hr_folder=CLEAN_FOLDER,
        lr_folder=DEGRADED_FOLDER,
        forms=(CLIPS,),
        marks=True,
        gives_way_to=("folders",),
        folders=("HR/", "LR_x{scale}/"),
    ),
    FolderLayout(
        name="scenes",
        title="folders of clean and degraded images in a folder for each scene (GoPro)",
        views=1,
        lr_folder="",
        forms=(SHARP_BLUR,),
        marks=True,
        gives_way_to=("folders", "clips"),
    ),
    FolderLayout(
        name="marked",
        title="single images, HR and LR, or clean and degraded, told apart by their names",
        views=1,
        lr_folder="",
        forms=(SUFFIXED,),
        marks=True,
    ),
    FolderLayout(
        name="marked-scenes",
        title="the same, in a folder for each scene (SIDD)",
        views=1,
        lr_folder="",
        forms=(SIDD,),
        marks=True,
        gives_way_to=("folders", "clips", "marked", "scenes"),
    ),
    FolderLayout(
        name="plain",
        title="any plain folder of single images",
        views=1,
        forms=(PLAIN,),
        marks=True,
        gives_way_to=("marked",),
    ),
    error=DataError,
)
"""Layouts that are recognised; `register` adds one."""
