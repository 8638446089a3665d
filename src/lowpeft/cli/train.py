"""`lowpeft train`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..api import adapt
from ..errors import LowpeftError
from ..files import save_adapter
from ..model import summary
from ..recipes import Recipe, TrainSettings, load_recipe
from .common import add_device, add_recipe, backbone, device, new_command, overrides

SETTINGS = ("steps", "batch", "learning_rate", "clip_norm", "warmup_steps", "save_every_steps", "seed")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "train",
        run,
        "train a recipe's adapters on a folder of stereo pairs",
        "lowpeft train stereo --weights CRAFT_x4.pth --data pairs/train --test pairs/test --out my-adapter",
    )
    add_recipe(sub)
    sub.add_argument(
        "--data", required=True, metavar="DIR", help="HR pairs: NAME_L.png and NAME_R.png, or NAME/hr0.png and hr1.png"
    )
    sub.add_argument(
        "--test", action="append", default=[], metavar="DIR", help="HR pairs to measure afterwards; may be repeated"
    )
    sub.add_argument("--test-lr", metavar="DIR", help="LR views of the one --test folder, instead of making them")
    sub.add_argument("--out", required=True, metavar="DIR", help="adapter folder to write")
    add_device(sub)
    defaults = {f.name: f for f in dataclasses.fields(TrainSettings)}
    for name in SETTINGS:
        kind = float if isinstance(defaults[name].default, float) else int
        option = "--" + name.replace("_", "-")
        sub.add_argument(option, type=kind, metavar="N", help=f"instead of the recipe's {name.replace('_', ' ')}")
    sub.add_argument("--schedule", help="cosine or constant, instead of the recipe's")
    sub.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="HR crop in px, instead of the recipe's")


def run(options: argparse.Namespace) -> None:
    """Train, measure, save."""
    from ..data import StereoPairs, find_scenes, load_pair, read_clean_crops
    from ..evaluate import compare
    from ..progress import progress
    from ..train import crop_for, train

    if options.test_lr and len(options.test) != 1:
        raise LowpeftError("--test-lr goes with exactly one --test folder")
    base = backbone(options)
    recipe = _settings(load_recipe(options.recipe), options, crop_for(base))
    settings = recipe.training
    tests = {
        folder: [load_pair(s, base.scale) for s in find_scenes(folder, lr_folder=options.test_lr)]
        for folder in options.test
    }
    crop = (settings.crop_height_px, settings.crop_width_px)
    clean = read_clean_crops(options.data)
    pairs = StereoPairs(find_scenes(options.data), base.scale, crop_px=crop, crops=clean)

    torch.manual_seed(settings.seed)
    model = adapt(base, recipe, **overrides(options.set)).to(device(options.device))
    print(summary(model))
    print(f"{len(pairs.pairs)} training scenes, {settings.steps} steps of {settings.batch} pairs")
    with progress("training", settings.steps) as advance:
        out = Path(options.out)
        steps = train(model, pairs, settings, base, out=out, report=lambda s: advance(f"L1 {s.loss:.4f}"))
    facts: dict[str, str | float] = {
        "base weights": Path(options.weights).name,
        "training": f"{len(pairs.pairs)} scenes, {settings.steps} steps of {settings.batch} pairs, "
        f"{steps[-1].seconds:.0f} s",
    }
    for folder, scenes in tests.items():
        with progress("measuring", len(scenes)) as advance:
            found = compare(model, scenes, backbone=base, advance=advance)
        print(f"\n{folder}\n{found}")
        for name, value in found.means_db().items():
            facts[f"PSNR in dB, (L+R)/2, {Path(folder).name}, {name}"] = round(value, 4)
    save_adapter(model, options.out, facts=facts)
    print(f"\nadapter written to {options.out}")


def _settings(recipe: Recipe, options: argparse.Namespace, only_crop: tuple[int, int] | None) -> Recipe:
    """The recipe with the training settings that the command line changes, and the only crop that the network takes."""
    changes = {n: getattr(options, n) for n in (*SETTINGS, "schedule") if getattr(options, n) is not None}
    if crop := options.crop or only_crop:
        changes["crop_height_px"], changes["crop_width_px"] = crop
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **changes))
