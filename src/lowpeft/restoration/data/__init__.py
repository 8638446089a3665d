"""Data: find and load scenes in the field's folder layouts, cut training crops, make and verify LR images, check pairs.

find_scenes(folder) -> Scene (paths) -> load_example -> Example (pixels), or Crops (training samples)
"""

from __future__ import annotations

from .control import EachViewTwice
from .crops import Crops
from .examples import load_example, read_clean_crops
from .finding import find_scenes, scenes_with_lr
from .layouts import LAYOUTS, FolderLayout
from .model import USUAL, Example, Loading, Rectangle, Scene, spread, without_lr
from .pair_report import PairReport, check_pairs
from .pairs import PairCheck, check_pair
from .preparing import prepare
from .reading import reading
from .verifying import LRReport, Match, verify_lr

__all__ = [
    "LAYOUTS",
    "USUAL",
    "Crops",
    "EachViewTwice",
    "Example",
    "FolderLayout",
    "LRReport",
    "Loading",
    "Match",
    "PairCheck",
    "PairReport",
    "Rectangle",
    "Scene",
    "check_pair",
    "check_pairs",
    "find_scenes",
    "load_example",
    "prepare",
    "read_clean_crops",
    "reading",
    "scenes_with_lr",
    "spread",
    "verify_lr",
    "without_lr",
]
