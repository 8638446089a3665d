"""Types of the data package: a scene on disk (`Scene`), in memory (`Example`), and how it is loaded (`Loading`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ...checks import plain_whole
from ...errors import DataError
from ...ports.layouts import Size
from ..degradations import Degradation
from ..images import Border, check_channels, check_white_level

Thing = TypeVar("Thing")
AnyPath = str | os.PathLike[str]
Rectangle = tuple[int, int, int, int]
"""Rectangle [x0, y0, x1, y1) in px: the top left pixel (x0, y0) is inside, the bottom right (x1, y1) is outside."""

SIDES = ("left", "right")
LOOKED_AT = 8
"""Number of scenes of a data set whose pixels are looked at in advance, evenly spaced."""


@dataclass(frozen=True)
class Scene:
    """Paths of a scene's files.

    Attributes:
        name: Name of the scene, unique within its folder.
        hr: Files of the HR views: one image, or left and right.
        lr: Files of the LR views in the same order; empty if LR views are to be made from the HR views.
        layout: Name of the folder layout in which the files were found; empty if they were given.
    """

    name: str
    hr: tuple[Path, ...]
    lr: tuple[Path, ...] = ()
    layout: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.hr) not in (1, 2):
            raise DataError(f"scene {self.name}: give 1 HR file, or 2 (left, right), not {len(self.hr)}")
        if len(self.lr) not in (0, len(self.hr)):
            raise DataError(
                f"scene {self.name}: give {len(self.hr)} LR files, one per HR file, or none, not {len(self.lr)}"
            )
        if same := [path for path in self.lr if path in self.hr]:
            raise DataError(f"scene {self.name}: {same[0]} is given both as an HR (clean) and as an LR (degraded) file")


@dataclass(frozen=True)
class Example:
    """A scene in memory.

    Attributes:
        name: Name of the scene.
        lr: One tensor (C,H,W) per view, RGB or grey, all of one size: uint8 0..255, or float 0..1 from deep files, of
            deep HR views, or degraded.
        hr: One tensor (C,scale*H,scale*W) per view, RGB or grey: uint8 0..255, or float32 0..1 from deep files.
    """

    name: str
    lr: tuple[Tensor, ...]
    hr: tuple[Tensor, ...]

    def __repr__(self) -> str:
        views = ", ".join(
            f"{name}={len(images)} of {'x'.join(map(str, image.shape))} {str(image.dtype).removeprefix('torch.')}"
            for name, images in (("lr", self.lr), ("hr", self.hr))
            for image in images[:1]
        )
        return f"Example({self.name!r}, {views})"

    @property
    def deep(self) -> bool:
        """True if the HR files have 16 bits per sample, so that the HR views are float images."""
        return any(view.is_floating_point() for view in self.hr)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How the files of scenes are read, and their missing LR views made.

    Attributes:
        border: Pixels that MATLAB's bicubic assumes beyond the edge; see `matlab_downscale`.
        halve: True shrinks the HR files by 2 first (`matlab_halve`) and uses the result as HR, which is the field's
            rule for Middlebury. LR files must match the halved HR views.
        degrade: Degradation that makes the LR views; LR files are not read then.
        channels: 3 for RGB, or 1 for grey; see `lowpeft.restoration.images.read_image`.
        white_level: Value of white in files of 16 bits, 1..65535; 4095 for data of 12 bits.

    Raises:
        DataError: `channels` or `white_level` is not as above.
    """

    border: Border = "symmetric"
    halve: bool = False
    degrade: Degradation | None = None
    channels: int = 3
    white_level: int = 65535

    def __post_init__(self) -> None:
        check_channels(self.channels)
        check_white_level(self.white_level)


USUAL = Loading()
"""How scenes are loaded if nothing else is said."""


def without_lr(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """Return scenes without their LR files; of several with the same HR files, the first."""
    first: dict[tuple[Path, ...], Scene] = {}
    for scene in scenes:
        first.setdefault(scene.hr, replace(scene, lr=()))
    return tuple(first.values())


def spread(things: Sequence[Thing]) -> list[Thing]:
    """Return up to `LOOKED_AT` evenly spaced things, e.g. scenes."""
    return [things[n] for n in sorted({n * len(things) // LOOKED_AT for n in range(LOOKED_AT)})] if things else []


def px(size: Size) -> str:
    """Return the text `WIDTHxHEIGHT px` for a size (height, width)."""
    return f"{size[1]}x{size[0]} px"


def as_whole(value: object, what: str) -> int:
    """Return an integer of any library as Python's, so that equal numbers give equal draws.

    Raises:
        DataError: The value is none.
    """
    whole = plain_whole(value)
    if whole is None:
        raise DataError(f"{what} must be a whole number, not {value!r}")
    return whole
