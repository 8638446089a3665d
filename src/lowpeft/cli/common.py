"""Options and helpers that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..backbones.checkpoints import Choice, which_weights
from ..backbones.opening import load_backbone
from ..backbones.own import with_facts
from ..core.attachment.record import Memory
from ..core.files.loading import load_adapter
from ..core.observation.describe import image_facts
from ..core.operations.optimizing import optimize
from ..errors import LowpeftError
from ..kinds import AdapterConfig, ParallaxConfig
from ..ports.facts import Backbone
from ..recipes import bundled
from ..restoration.data import USUAL, Loading, Rectangle, Scene, check_pairs
from ..restoration.images import check_channels, depth_remark, read_image
from ..restoration.inference import Tiling, strips_remark
from .help import Formatter, description, option_group
from .networks import (
    add_network,
    demo_network,
    has_network,
    network_name,
    overrides,
    own_network,
    take_base_of_adapter,
)

Model = TypeVar("Model")


def new_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a sub-command; its help begins with a one-line description and the examples."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=description(text, examples),
        formatter_class=Formatter,
    )
    sub.set_defaults(run=run, parser=sub, figures=None)
    return sub


def add_weights(sub: argparse.ArgumentParser) -> None:
    """Add the options that select the frozen network and its weights."""
    group = option_group(sub, "network")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint of the frozen network (.pth, .pt, .safetensors), 'demo' for the built-in one, or "
        "'timm:NAME' for one of timm, which gives features",
    )
    add_raw_weights(sub)
    group.add_argument(
        "--allow-half",
        action="store_true",
        help="open weights of half precision, which were rounded, as float32 instead of refusing them",
    )
    group.add_argument(
        "--task", metavar="NAME", help="of a network for several tasks, the one to keep: sr_x4 (EDT), 2_x4 (IPT), …"
    )
    add_network(sub)


def add_raw_weights(sub: argparse.ArgumentParser) -> None:
    """Add the option that selects the weights of the last step instead of the averaged ones (EMA)."""
    option_group(sub, "network").add_argument(
        "--raw-weights",
        action="store_true",
        help="where the file has averaged weights (EMA) and those of the last step, take the latter",
    )


def add_adapter(sub: argparse.ArgumentParser, *, required: bool = False, more: str = "") -> None:
    """Add the options that select a saved adapter."""
    group = option_group(sub, "adapter")
    group.add_argument(
        "--adapter", required=required, metavar="DIR", help=f"adapter folder, or a Hub repository owner/name{more}"
    )
    group.add_argument("--revision", metavar="NAME", help="commit, tag or branch of the Hub repository")
    group.add_argument(
        "--subfolder", metavar="PATH", help="folder of the adapter in the Hub repository, as in x4/noise"
    )
    group.add_argument(
        "--force", action="store_true", help="attach the adapter though it was made for another base, if it fits"
    )


def refuse_without_adapter(options: argparse.Namespace) -> None:
    """Raise for adapter options without `--adapter`.

    Raises:
        LowpeftError: An adapter option was given without `--adapter`; the first is named.
    """
    for name in ("revision", "subfolder", "force") if options.adapter is None else ():
        if getattr(options, name):
            raise LowpeftError(f"--{name} needs an adapter: give --adapter")


def adapted(options: argparse.Namespace, base: Backbone) -> nn.Module:
    """Return the network with the adapter that `--adapter` names."""
    hub = {"revision": options.revision, "subfolder": options.subfolder}
    return load_adapter(base, options.adapter, **hub, force=options.force)


def weights_facts(options: argparse.Namespace, base: Backbone) -> dict[str, str]:
    """Return facts for reports and model cards: the checkpoint's file name, and which of its weights were loaded.

    They never contain `--network`: adapter files do not name code.
    """
    which = which_weights(base.notes)
    file = {"base weights": Path(options.weights).name} if options.weights else {}
    return {**file, **({} if which is None else {"weights": which})}


def add_border(sub: argparse.ArgumentParser) -> None:
    """Add the option for the border with which LR images are made."""
    option_group(sub, "images").add_argument(
        "--border",
        default="symmetric",
        choices=("symmetric", "replicate"),
        help="padding beyond the edge for MATLAB's bicubic, which makes LR images (default: %(default)s; NTIRE's files "
        "use replicate)",
    )


def add_white_level(sub: argparse.ArgumentParser) -> None:
    """Add the option that says which value of 16-bit files is white."""
    option_group(sub, "images").add_argument(
        "--white-level",
        type=int,
        default=USUAL.white_level,
        metavar="N",
        help="value of white in files of 16 bits, e.g. 4095 for data of 12 bits (default: %(default)s)",
    )


def say_depth(options: argparse.Namespace, paths: Iterable[Path]) -> None:
    """Print on standard error if 16-bit files seem to use fewer bits than `--white-level` says."""
    if remark := depth_remark(paths, options.white_level):
        print(remark, file=sys.stderr)


def say_strips(options: argparse.Namespace, models: Iterable[object]) -> None:
    """Print on standard error if `--memory-mb` may run a network in strips that differ from the whole image."""
    remarks = (strips_remark(model) for model in models if options.memory_mb is not None)
    if remark := next(filter(None, remarks), ""):
        print(remark, file=sys.stderr)


def add_device(sub: argparse.ArgumentParser, *, mps: bool = False) -> None:
    """Add the option that selects the device; with `mps`, also Apple's GPU."""
    apple, untested = (", else mps", ", mps (Apple's GPU, untested)") if mps else ("", "")
    option_group(sub, "speed and memory").add_argument(
        "--device",
        default="auto",
        help=f"auto (default: cuda if available{apple}, else cpu), cpu, cuda, cuda:1, …{untested}",
    )


def add_optimize(sub: argparse.ArgumentParser, *, default: str) -> None:
    """Add the options of `lowpeft.optimize`.

    Args:
        sub: Parser of the command.
        default: What blocks keep for backward if the user does not say; "none" for no optimisation.
    """
    group = option_group(sub, "speed and memory")
    group.add_argument(
        "--optimize",
        default=default,
        choices=("none", *get_args(Memory)),
        help="run frozen layers faster and with less memory; results change by rounding only. keep: nothing is "
        "computed twice; rebuild: less memory in training, a few products are computed twice; checkpoint: least "
        "memory, each block runs twice (default: %(default)s)",
    )
    group.add_argument("--channels-last", action="store_true", help="with --optimize: lay out images channels last")


def optimized(options: argparse.Namespace, model: Model) -> Model:
    """Optimise a network as the options ask, and return it.

    Raises:
        LowpeftError: `--channels-last` was given without an optimisation.
    """
    if options.optimize != "none":
        optimize(model, options.optimize, options.channels_last)
    elif options.channels_last:
        raise LowpeftError("--channels-last is part of an optimisation: give --optimize keep, rebuild or checkpoint")
    return model


def optimised_facts(options: argparse.Namespace) -> dict[str, str]:
    """Return the fact for reports and model cards that the network was optimised; none if it was not."""
    if options.optimize == "none":
        return {}
    return {"optimised": options.optimize + ", channels last" * options.channels_last}


def add_inference(sub: argparse.ArgumentParser, *, without_limit: str = "") -> None:
    """Add the options for inference on whole images; `without_limit` says what is done without `--memory-mb`."""
    group = option_group(sub, "speed and memory")
    group.add_argument(
        "--ensemble",
        action="store_true",
        help="mean of several passes: 6 for stereo models (flips that swap the views, colours permuted), 8 for others",
    )
    group.add_argument(
        "--memory-mb",
        type=float,
        metavar="N",
        help="run in full-width strips that need at most N MB beyond what the process or the GPU already uses; on the "
        f"CPU that includes the results{without_limit}",
    )


def add_views(sub: argparse.ArgumentParser, right: str = "") -> None:
    """Add the arguments for a pair of views, or one image, and the option that says how they are read."""
    sub.add_argument("left", help="left view, or the only image")
    sub.add_argument("right", nargs="?", help=f"right view, of the same size{right}")
    add_white_level(sub)


def view_paths(options: argparse.Namespace) -> list[str]:
    """Return the files of the views, or of the only image."""
    return [options.left] if options.right is None else [options.left, options.right]


def read_views(options: argparse.Namespace, base: Backbone) -> list[Tensor]:
    """Read the files of the views, or of the only image, for a network, and say what seems wrong with their depth."""
    channels, paths = image_channels(base), view_paths(options)
    images = [read_image(path, channels=channels, white_level=options.white_level) for path in paths]
    say_depth(options, map(Path, paths))
    return images


def warn_of_pairs(
    scenes: Sequence[Scene],
    scale: int,
    *,
    loading: Loading,
    clean_crops: Mapping[str, Rectangle] | None = None,
    adapters: Iterable[AdapterConfig] = (),
) -> None:
    """Print what is wrong with a sample of the pairs on standard error; do nothing without scikit-image.

    Args:
        scenes: As for `check_pairs`.
        scale: As for `check_pairs`.
        loading: As for `check_pairs`.
        clean_crops: As for `check_pairs`.
        adapters: Configs of the adapters; the disparities that they search are compared with the pairs'.
    """
    if find_spec("skimage") is None:
        return
    ranges = [config.disparities for config in adapters if isinstance(config, ParallaxConfig)]
    searched = (max(least for least, _ in ranges), min(most for _, most in ranges)) if ranges else None
    report = check_pairs(scenes, scale, loading=loading, clean_crops=clean_crops, searched=searched)
    if report.warning:
        print(report.warning, file=sys.stderr)


def network_scale(options: argparse.Namespace, base: Backbone) -> int:
    """Return the network's scale.

    Raises:
        LowpeftError: `--scale` asks for another one.
    """
    scale = image_facts(base).scale
    if options.scale not in (None, scale):
        raise LowpeftError(f"--scale {options.scale} was asked for, but {network_name(options)} is a x{scale} network")
    return scale


def image_channels(base: Backbone) -> int:
    """Return the channels of the images that a network takes: 3, or 1 for grey.

    Raises:
        DataError: It takes another number, so image files cannot be read for it.
        PlanError: The network does not take and return images.
    """
    channels = image_facts(base).channels
    check_channels(channels)
    return channels


def tiling(options: argparse.Namespace) -> Tiling:
    """Return the tiling that `--memory-mb` selects."""
    return Tiling(memory_mb=options.memory_mb)


def add_recipe(sub: argparse.ArgumentParser, *, optional: str | None = None) -> None:
    """Add the options for a recipe, the network to adapt, and changes of the recipe's fields.

    Args:
        sub: Parser of the command.
        optional: What replaces the recipe, as the end of a sentence; None if the recipe is required.
    """
    sub.add_argument(
        "recipe",
        nargs=None if optional is None else "?",
        help=f"a bundled recipe ({', '.join(bundled())}) or a path to a .toml recipe{optional or ''}",
    )
    add_weights(sub)
    group = option_group(sub, "recipe")
    group.add_argument(
        "--budget",
        metavar="SHARE",
        help="share of trained parameters, e.g. 1%%: chooses the rank, width or share that comes nearest to it",
    )
    add_set(
        group,
        "change a field of the recipe's adapters: every=1, rank=8, spatial.reduction=8, "
        "stereo.target='[\"stage=0\"]', train_also='[\"conv_last\"]'; may be repeated",
    )


def add_set(sub: argparse.ArgumentParser | argparse._ArgumentGroup, text: str) -> None:
    """Add the option that changes fields, which `overrides` parses."""
    sub.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)


def backbone(options: argparse.Namespace, *, quiet: bool = False) -> Backbone:
    """Load the network that `--weights` and `--network` select, and print which of a file's weights were loaded.

    Args:
        options: Parsed options of the command.
        quiet: True prints nothing, for commands that print the network's notes themselves.
    """
    if not has_network(options) or (options.weights is None and getattr(options, "adapter", None) is not None):
        take_base_of_adapter(options)
    choice: Choice = "raw" if options.raw_weights else "ema"
    facts = overrides(options.network_fact, option="--network-fact scale=4")
    if options.network is not None:
        base = own_network(options, choice, facts)
    elif options.network_set:
        raise LowpeftError("--network-set is for a network of your own: give --network MODULE:FUNCTION")
    elif options.weights == "demo":
        base = with_facts(demo_network(options), facts)
    else:
        file = load_backbone(options.weights, task=options.task, weights=choice, allow_half=options.allow_half)
        base = with_facts(file, facts)
    if (which := which_weights(base.notes)) is not None and not quiet:
        print(f"weights: {which}", file=sys.stderr)
    return base


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `adapt` that `--set` and `--budget` give."""
    budget = options.budget
    if budget is None:
        return overrides(options.set)
    return {**overrides(options.set), "budget": int(budget) if budget.isdecimal() else budget}


def device(name: str, *, mps: bool = False) -> torch.device:
    """Return the device that `--device` names; with `mps`, `auto` takes Apple's GPU where there is no CUDA.

    Raises:
        LowpeftError: The device cannot be used on this machine.
    """
    if name == "auto":
        apple = mps and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise LowpeftError(f"there is no device {name!r}: give auto, cpu, cuda, cuda:1, …") from error
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise LowpeftError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen
