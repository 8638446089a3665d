"""Options of `lowpeft train` that say where images come from, and the crops and scenes that they select."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

from ..errors import LowpeftError
from ..ports.facts import ImageFacts
from ..recipes import TrainSettings
from ..restoration.data import (
    LAYOUTS,
    Crops,
    Example,
    Loading,
    Scene,
    find_scenes,
    load_example,
    read_clean_crops,
    reading,
    spread,
    without_lr,
)
from ..restoration.degradations import PRESETS, STEPS, Degradation, degradation
from .common import add_border, add_white_level, say_depth
from .help import option_group


def add_sources(sub: argparse.ArgumentParser) -> None:
    """Add the options for training, validation and test images."""
    group = option_group(sub, "images")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="stereo pairs to train on, in any of the known layouts")
    source.add_argument(
        "--images", metavar="DIR", help="single images instead, for recipes that exchange nothing between views"
    )
    group.add_argument(
        "--each-view-twice",
        action="store_true",
        help="train the control: each view of a pair given twice instead of the pair, so with twice as many samples in "
        "a batch; what a stereo adapter gains over it comes from the other view (evaluate --control)",
    )
    group.add_argument(
        "--data-lr",
        metavar="DIR",
        help="degraded or LR images of --data or --images, instead of those beside them or of making them",
    )
    add_degrade(sub)
    add_selection(sub, "--data or --images")
    add_border(sub)
    add_white_level(sub)
    group.add_argument(
        "--validate",
        metavar="DIR",
        help="scenes to measure during training, every --validate-every-steps, by default with every checkpoint; the "
        "best result is kept in OUT/best",
    )
    group.add_argument(
        "--test", action="append", default=[], metavar="DIR", help="scenes to measure afterwards; may be repeated"
    )
    group.add_argument(
        "--test-lr", metavar="DIR", help="degraded or LR images of the one --test folder, instead of making them"
    )


def _degradation(text: str) -> Degradation:
    try:
        return degradation(text)
    except LowpeftError as error:  # a ValueError, whose text argparse would leave out
        raise argparse.ArgumentTypeError(str(error)) from error


def add_degrade(sub: argparse.ArgumentParser) -> None:
    """Add the option that makes degraded images from clean ones."""
    steps = "; ".join(f"{name}{':VALUE' * step.valued} ({step.text})" for name, step in STEPS.items())
    chains = "; ".join(f"{name} ({chain.text})" for name, chain in PRESETS.items())
    option_group(sub, "images").add_argument(
        "--degrade",
        metavar="STEPS",
        type=_degradation,
        help="make degraded images from the clean ones, by steps in this order, separated by commas, e.g. noise:25 or "
        f"blur:1.2,down:4,noise:5..10,jpeg:60 (5..10: a value between them for each image). Steps: {steps}. Or by a "
        f"chain: {chains}",
    )


def source_problems(options: argparse.Namespace) -> list[str]:
    """Describe options of `add_sources` that cannot be combined."""
    named = [f"--{name.replace('_', '-')}" for name in ("data_lr", "test_lr") if getattr(options, name)]
    if options.degrade is None or not named:
        return []
    return [f"{' and '.join(named)} names degraded images, and --degrade makes them: give one of the two"]


def source_facts(options: argparse.Namespace) -> dict[str, str | float]:
    """Return the facts about the images that are saved with the result."""
    facts: dict[str, str | float] = {} if options.degrade is None else {"degraded by": str(options.degrade)}
    if options.white_level != Loading().white_level:
        facts["white level"] = options.white_level
    return facts


def add_selection(sub: argparse.ArgumentParser, of: str) -> None:
    """Add the options that say how a folder is read; `of` is the option that names it."""
    group = option_group(sub, "images")
    titles = {
        views: "; ".join(f"{name} ({row.title})" for name, row in LAYOUTS.items() if row.views == views)
        for views in (2, 1)
    }
    group.add_argument(
        "--layout",
        choices=list(LAYOUTS),
        metavar="ID",
        help=f"how the files of {of} are named, where that fits several layouts. Pairs: {titles[2]}. Single images: "
        f"{titles[1]}",
    )
    group.add_argument(
        "--meta-info",
        metavar="FILE",
        help=f"BasicSR's list of the images of {of} to use: NAME.png (H,W,C) in each line",
    )


def say_reading(options: argparse.Namespace, scenes: Sequence[Scene], scale: int, what: str = "") -> None:
    """Print on standard error how many scenes are read, from where, and what seems wrong with their depth.

    Args:
        options: Options of the command; `--degrade` and `--white-level` are used if it has them.
        scenes: As for `reading`.
        scale: As for `reading`.
        what: As for `reading`.
    """
    degrade = getattr(options, "degrade", None)
    print(reading(scenes, scale, what=what, made=degrade and f"made by {degrade}"), file=sys.stderr)
    if hasattr(options, "white_level"):
        say_depth(options, (path for scene in spread(scenes) for path in (*scene.hr[:1], *scene.lr[:1])))


def loading_of(options: argparse.Namespace, channels: int = 3) -> Loading:
    """Return how the options of a command say that scenes are loaded, as images of this number of channels."""
    names = [field.name for field in fields(Loading) if hasattr(options, field.name)]
    return Loading(**{name: getattr(options, name) for name in names} | {"channels": channels})


def find_clean(
    options: argparse.Namespace,
    folder: str,
    scale: int,
    *,
    views: int,
    lr: str | None = None,
    selected: bool = False,
) -> tuple[Scene, ...]:
    """Find the scenes of a folder; with `--degrade`, without the degraded files that lie there.

    Args:
        options: Options of the command.
        folder: Folder of the scenes.
        scale: Scale of the network.
        views: Number of views of a scene.
        lr: Folder of the degraded or LR files.
        selected: True for the folder of which `--layout` and `--meta-info` speak.
    """
    layout, meta_info = (options.layout, options.meta_info) if selected else (None, None)
    scenes = find_scenes(folder, scale=scale, lr_folder=lr, views=views, layout=layout, meta_info=meta_info)
    return scenes if options.degrade is None else without_lr(scenes)


def training_crops(options: argparse.Namespace, facts: ImageFacts, settings: TrainSettings) -> Crops:
    """Return crops of the training scenes."""
    folder, count = options.images or options.data, views(options)
    return Crops(
        find_clean(options, folder, facts.scale, views=count, lr=options.data_lr, selected=True),
        facts.scale,
        crop_px=(settings.crop_height_px, settings.crop_width_px),
        seed=settings.seed,
        clean_crops=read_clean_crops(folder, views=count),
        loading=loading_of(options, facts.channels),
    )


def examples_of(options: argparse.Namespace, facts: ImageFacts, scenes: Sequence[Scene], what: str) -> list[Example]:
    """Load scenes that are measured on, and say what is read."""
    say_reading(options, scenes, facts.scale, what)
    loading = loading_of(options, facts.channels)
    return [load_example(scene, facts.scale, loading=loading) for scene in scenes]


def scenes_of(options: argparse.Namespace, folder: str, scale: int, lr: str | None = None) -> tuple[Scene, ...]:
    """Find the scenes of a folder, with the same number of views as the training scenes."""
    return find_clean(options, folder, scale, views=views(options), lr=lr)


def views(options: argparse.Namespace) -> Literal[1, 2]:
    """Return the number of views of the scenes that the options ask for."""
    return 1 if options.images else 2
