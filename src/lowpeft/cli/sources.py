"""Options of `lowpeft train` that say where images come from, and the crops and scenes that they select."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Literal

from ..recipes import TrainSettings
from ..restoration.data import LAYOUTS, Crops, Example, Scene, find_scenes, load_example, read_clean_crops, reading
from .common import add_border


def add_sources(sub: argparse.ArgumentParser) -> None:
    """Add the options for training, validation and test images."""
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="stereo pairs to train on, in any of the known layouts")
    source.add_argument(
        "--images", metavar="DIR", help="single images instead, for recipes that exchange nothing between views"
    )
    sub.add_argument(
        "--each-view-twice",
        action="store_true",
        help="train the control: each view of a pair given twice instead of the pair, so with twice as many samples in "
        "a batch; what a stereo adapter gains over it comes from the other view (evaluate --control)",
    )
    sub.add_argument("--data-lr", metavar="DIR", help="LR images of --data or --images, instead of making them")
    add_selection(sub, "--data or --images")
    add_border(sub)
    sub.add_argument(
        "--validate", metavar="DIR", help="scenes to measure during training; the best result is kept in OUT/best"
    )
    sub.add_argument(
        "--test", action="append", default=[], metavar="DIR", help="scenes to measure afterwards; may be repeated"
    )
    sub.add_argument("--test-lr", metavar="DIR", help="LR images of the one --test folder, instead of making them")


def add_selection(sub: argparse.ArgumentParser, of: str) -> None:
    """Add the options that say how a folder is read; `of` is the option that names it."""
    sub.add_argument(
        "--layout", choices=list(LAYOUTS), metavar="ID", help=f"of {of}, where it fits several (docs/data.md)"
    )
    sub.add_argument(
        "--meta-info",
        metavar="FILE",
        help=f"BasicSR's list of the images of {of} to use: NAME.png (H,W,C) in each line",
    )


def say_reading(scenes: Sequence[Scene], scale: int, what: str = "", *, made: str | None = None) -> None:
    """Print on standard error how many scenes are read, and from where; arguments are those of `reading`."""
    print(reading(scenes, scale, what=what, made=made), file=sys.stderr)


def training_crops(options: argparse.Namespace, scale: int, settings: TrainSettings) -> Crops:
    """Return crops of the training scenes."""
    folder, count = options.images or options.data, views(options)
    return Crops(
        find_scenes(
            folder,
            scale=scale,
            lr_folder=options.data_lr,
            views=count,
            layout=options.layout,
            meta_info=options.meta_info,
        ),
        scale,
        crop_px=(settings.crop_height_px, settings.crop_width_px),
        seed=settings.seed,
        clean_crops=read_clean_crops(folder, views=count),
        border=options.border,
    )


def examples_of(
    options: argparse.Namespace, folder: str, scale: int, what: str, *, lr: str | None = None
) -> list[Example]:
    """Load the scenes of a folder, with the same number of views as the training scenes, and say what is read."""
    scenes = find_scenes(folder, scale=scale, lr_folder=lr, views=views(options))
    say_reading(scenes, scale, what)
    return [load_example(scene, scale, border=options.border) for scene in scenes]


def views(options: argparse.Namespace) -> Literal[1, 2]:
    """Return the number of views of the scenes that the options ask for."""
    return 1 if options.images else 2
