"""What the data package speaks of: a scene on disk, and a scene in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ...errors import DataError

AnyPath = str | os.PathLike[str]
Views = Literal[1, 2]
Rectangle = tuple[int, int, int, int]
"""[x0, y0, x1, y1) in px: the corner at the top left is inside, the one at the bottom right is not."""

SIDES = ("left", "right")


@dataclass(frozen=True)
class Scene:
    """Where a scene lies.

    Attributes:
        name: Unique within its folder.
        hr: The files of its HR views: one image, or left and right.
        lr: Those of its LR views in the same order; empty where LR views are to be made from the HR views.
    """

    name: str
    hr: tuple[Path, ...]
    lr: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if len(self.hr) not in (1, 2):
            raise DataError(f"scene {self.name}: has 1 view or 2 (left, right), not {len(self.hr)}")
        if self.lr and len(self.lr) != len(self.hr):
            raise DataError(f"scene {self.name}: give the LR files of all its {len(self.hr)} views, or of none")


@dataclass(frozen=True)
class Example:
    """A scene in memory.

    Attributes:
        name: Of the scene.
        lr: One uint8 (3,H,W) for each view, 0..255, RGB, all of one size.
        hr: One uint8 (3,scale*H,scale*W) for each view.
    """

    name: str
    lr: tuple[Tensor, ...]
    hr: tuple[Tensor, ...]


def px(size: tuple[int, int]) -> str:
    """Height and width as people write a size: `WIDTHxHEIGHT px`."""
    return f"{size[1]}x{size[0]} px"
