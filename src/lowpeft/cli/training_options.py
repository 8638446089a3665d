"""Options of `lowpeft train` for the training settings and what watches a run, and what they select."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from ..errors import LowpeftError
from ..importing import cause, function_named, make_folder_importable
from ..recipes import TrainSettings
from .help import option_group

if TYPE_CHECKING:
    from ..restoration.training.losses import ImageLoss

CROP = ("crop_height_px", "crop_width_px")
"""Training settings that the single option `--crop` sets together."""
_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


def add_watching(sub: argparse.ArgumentParser) -> None:
    """Add the options for what watches a run."""
    group = option_group(sub, "watching")
    group.add_argument(
        "--log-with",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also write the log to experiment trackers, which you install: tensorboard, wandb, mlflow and the others "
        "that accelerate knows",
    )
    group.add_argument(
        "--validation-images",
        type=int,
        default=0,
        metavar="N",
        help="with --validate: write the results on its first N scenes after every measurement, to OUT/validation",
    )
    group.add_argument(
        "--loss-module",
        metavar="MODULE:FUNCTION",
        help="a loss of your own instead of --loss: the function, called without arguments, returns the loss, which "
        "takes output and target (N,C,H,W), values 0..1",
    )


def add_settings(sub: argparse.ArgumentParser) -> None:
    """Add an option for every field of TrainSettings."""
    group = sub.add_argument_group("settings, instead of the recipe's")
    about = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainSettings)}
    for name, kind in get_type_hints(TrainSettings).items():
        if name in CROP:
            continue
        options: dict[str, Any] = {"type": kind, "metavar": _METAVARS.get(kind)}
        if get_origin(kind) is Literal:
            options = {"metavar": "|".join(get_args(kind))}
        elif get_origin(kind) is tuple:
            inner, *rest = get_args(kind)
            metavar = "PATTERN=FACTOR" if inner is str else _METAVARS[inner]
            options = {"type": inner, "nargs": "*" if rest == [...] else 2, "metavar": metavar}
        text = re.sub(r"\w+_\w+", lambda word: _option(word[0]) if word[0] in about else word[0], about[name])
        group.add_argument(_option(name), help=text[:1].lower() + text[1:].replace("%", "%%"), **options)
    group.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="height and width of the HR crop in px")


def _option(name: str) -> str:
    """Return the option of a training setting."""
    return "--" + name.replace("_", "-")


def changed_settings(
    settings: TrainSettings,
    options: argparse.Namespace,
    only_crop: tuple[int, int] | None,
    *,
    of_control: bool = False,
) -> TrainSettings:
    """Return the recipe's settings with the command line's changes.

    Args:
        settings: Settings of the recipe.
        options: Options of the command.
        only_crop: Crop (H, W) without `--crop`.
        of_control: True if the settings are those that a control was trained with: its batch is doubled already.
    """
    names = [f.name for f in dataclasses.fields(settings) if f.name not in CROP]
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    changes |= {name: tuple(value) for name, value in changes.items() if isinstance(value, list)}
    if crop := options.crop or only_crop:
        changes |= dict(zip(CROP, crop, strict=True))
    settings = dataclasses.replace(settings, **changes)
    if options.validate and not settings.validate_every_steps:
        settings = dataclasses.replace(settings, validate_every_steps=settings.save_every_steps or settings.steps)
    if options.each_view_twice:  # the same images in each step
        names = ["batch", "calibration"] if not of_control else [n for n in ("batch", "calibration") if n in changes]
        return dataclasses.replace(settings, **{name: 2 * getattr(settings, name) for name in names})
    return settings


def own_loss(options: argparse.Namespace) -> ImageLoss | None:
    """Import and make the loss that `--loss-module` names; None without it.

    Raises:
        LowpeftError: There is no such module or function, it fails, or it returns nothing that can be called.
    """
    if options.loss_module is None:
        return None
    name: str = options.loss_module
    make_folder_importable()
    make = function_named(name, "a function that makes a loss", "mypackage.losses:perceptual")
    try:
        loss = make()
    except Exception as error:
        raise LowpeftError(f"--loss-module {name} failed: {cause(error)}") from error
    if not callable(loss):
        raise LowpeftError(
            f"--loss-module {name} returned a {type(loss).__name__}: it is called without arguments and must return "
            "the loss, a function of (output, target)"
        )
    return cast("ImageLoss", loss)
