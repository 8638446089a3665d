"""`lowpeft train`: train a recipe, measure the result, and save it."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ..core.attachment.record import is_adapted, module_of
from ..core.observation.describe import image_facts
from ..core.operations.calibration import needs_calibration
from ..core.operations.state import summary
from ..errors import LowpeftError
from ..kinds import WeightAdapter, get_kind
from ..ports.facts import Backbone
from ..recipes import Recipe, TrainSettings, load_recipe, override
from ..restoration.data import EachViewTwice, Example
from .common import (
    add_device,
    add_optimize,
    add_recipe,
    backbone,
    changes,
    device,
    image_channels,
    new_command,
    optimised_facts,
    optimized,
    warn_of_pairs,
    weights_facts,
)
from .sources import add_sources, examples_of, source_facts, source_problems, training_crops

if TYPE_CHECKING:
    from ..restoration.training import CropSource, Processes, Step, Trained

CROP = ("crop_height_px", "crop_width_px")
"""Training settings that the single option `--crop` sets together."""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "train",
        run,
        "train a recipe on a folder of stereo pairs or single images; several GPUs: accelerate launch -m lowpeft train",
        "lowpeft train stereo --weights CRAFT_x4.pth --data pairs/train --test pairs/test --out my-adapter",
    )
    add_recipe(sub)
    add_sources(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for the adapter, log and checkpoints")
    sub.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in --out, if one exists"
    )
    sub.add_argument(
        "--merge", action="store_true", help="also write network.safetensors with the adapters folded in (lora, full)"
    )
    add_device(sub)
    add_optimize(sub, default="keep")
    _add_settings(sub)


def _add_settings(sub: argparse.ArgumentParser) -> None:
    """Add an option for every field of TrainSettings."""
    group = sub.add_argument_group("settings, instead of the recipe's")
    about = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainSettings)}
    for name, kind in get_type_hints(TrainSettings).items():
        if name in CROP:
            continue
        options: dict[str, Any] = {"type": kind, "metavar": "N" if kind is int else "X"}
        if get_origin(kind) is Literal:
            options = {"metavar": "|".join(get_args(kind))}
        elif get_origin(kind) is tuple:
            inner, *rest = get_args(kind)
            options = {"type": inner, "nargs": "*" if rest == [...] else 2, "metavar": "N" if inner is int else "X"}
        text = about[name].replace("%", "%%")
        group.add_argument("--" + name.replace("_", "-"), help=text[:1].lower() + text[1:], **options)
    group.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="height and width of the HR crop in px")


def run(options: argparse.Namespace) -> None:
    """Train, measure, save."""
    from ..restoration.progress import progress
    from ..restoration.training import build_model, check_folder, connect, crop_for, last_step, train, validation

    processes = connect()
    check_folder(Path(options.out), resume=options.resume)  # before anything is loaded
    base = backbone(options)
    recipe = override(load_recipe(options.recipe), changes(options))
    recipe = dataclasses.replace(recipe, training=_settings(recipe.training, options, crop_for(base)))
    settings = recipe.training
    _check(recipe, options)
    scale, channels = image_facts(base).scale, image_channels(base)
    scenes = training_crops(options, scale, settings, channels=channels)
    crops: CropSource = EachViewTwice(scenes) if options.each_view_twice else scenes
    tests: dict[str, list[Example]] = {}
    validate = None
    if processes.main:
        tests = {f: examples_of(options, f, scale, options.test_lr, channels=channels) for f in options.test}
        if options.validate:
            validate = validation(
                examples_of(options, options.validate, scale, channels=channels),
                each_view_twice=options.each_view_twice,
            )
    model = build_model(base, recipe)
    module_of(model).to(device(options.device) if processes.device is None else processes.device)
    if not recipe.from_scratch:
        optimized(options, model)
    if processes.main:
        _print_plan(model, recipe, crops, processes)
        if recipe.views > 1 and not options.each_view_twice:
            warn_of_pairs(
                scenes.scenes,
                scale,
                border=options.border,
                clean_crops=scenes.clean_crops,
                adapters=recipe.adapters,
            )
    left = max(0, settings.steps - last_step(Path(options.out))) if options.resume else settings.steps
    with progress("training", left) if processes.main and left else nullcontext(lambda note: None) as advance:
        done = train(
            model,
            crops,
            settings,
            out=options.out,
            validate=validate,
            resume=options.resume,
            report=lambda step: advance(_note(step)),
        )
    if processes.main:
        if not left:
            print(f"nothing left to train: {settings.steps} of {settings.steps} steps are done")
        _finish(options, model, recipe, _facts(options, base, crops, settings, done), tests)
    processes.leave()


def _note(step: Step) -> str:
    """Return the text beside the progress bar."""
    return f"loss {step.loss:.4f}" + ("" if step.validation is None else f", validation {step.validation:.3f}")


def _settings(settings: TrainSettings, options: argparse.Namespace, only_crop: tuple[int, int] | None) -> TrainSettings:
    """Return the recipe's settings with the command line's changes; `only_crop` (H, W) is used without `--crop`."""
    names = [f.name for f in dataclasses.fields(settings) if f.name not in CROP]
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if crop := options.crop or only_crop:
        changes |= dict(zip(CROP, crop, strict=True))
    settings = dataclasses.replace(settings, **changes)
    if options.each_view_twice:  # the same images in each step
        return dataclasses.replace(settings, batch=2 * settings.batch, calibration=2 * settings.calibration)
    return settings


def _check(recipe: Recipe, options: argparse.Namespace) -> None:
    """Raise for options that cannot be combined, before any data is read."""
    problems = source_problems(options)
    if options.test_lr and len(options.test) != 1:
        problems.append(f"--test-lr needs exactly one --test folder, not {len(options.test)}")
    if bool(options.validate) != bool(recipe.training.validate_every_steps):
        problems.append("--validate DIR and --validate-every-steps N need each other: give both or neither")
    if options.images and recipe.views > 1:
        problems.append(
            f"recipe {recipe.name!r} makes a stereo model, which is trained on pairs: use --data, not --images"
        )
    if options.each_view_twice and (options.images or recipe.views != 2):
        problems.append("--each-view-twice needs pairs (--data) and a recipe that mixes two views, such as stereo")
    kinds = {adapter.kind for adapter in recipe.adapters}
    fixed = sorted(kind for kind in kinds if not issubclass(get_kind(kind).module, WeightAdapter))
    if options.merge and (fixed or not kinds):
        why = f"{', '.join(fixed)} adapters are not linear in a weight" if fixed else "it has no adapters"
        problems.append(f"--merge does not work with recipe {recipe.name!r}: {why}")
    if problems:
        raise LowpeftError("these options cannot be used together:", problems=problems)


def _print_plan(model: object, recipe: Recipe, crops: CropSource, processes: Processes) -> None:
    if recipe.from_scratch:
        module = module_of(model)
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        print(f"{type(module).__name__}: {count:,} parameters, all trained, from new weights")
    else:
        print(summary(model))
    settings = recipe.training
    several = f" on {processes.number} processes" if processes.number > 1 else ""
    batch = _samples(settings.batch, crops)
    print(f"{len(crops.scenes)} training scenes, {settings.steps} steps of {batch}{several}")
    if is_adapted(model) and needs_calibration(model):
        print(f"the adapters first see {_samples(settings.calibration, crops)} (--calibration) that set their start")
    if settings.warmup_steps >= settings.steps:
        print(
            f"the warm-up of {settings.warmup_steps} steps does not end in this run: the learning rate never reaches "
            f"{settings.learning_rate:g}; set --warmup-steps"
        )
    if isinstance(crops, EachViewTwice):
        print(f"control: {crops.facts['control']}")


def _samples(count: int, crops: CropSource) -> str:
    """Return a number of samples as text, e.g. "2 pairs", or "2 views, each given twice" for a control."""
    if isinstance(crops, EachViewTwice):
        return f"{count} view{'s' * (count > 1)}, each given twice"
    return f"{count} {'pair' if crops.views == 2 else 'image'}{'s' * (count > 1)}"


def _facts(
    options: argparse.Namespace, base: Backbone, crops: CropSource, settings: TrainSettings, done: Trained
) -> dict[str, str | float]:
    """Return the facts of the run that are saved with the result."""
    from ..restoration.training import run_facts

    batch = _samples(settings.batch, crops)
    facts: dict[str, str | float] = {
        **weights_facts(options, base),
        "training": f"{done.steps} steps of {batch}, {done.seconds:.0f} s",
        "trained parameters": done.parameters,
        **optimised_facts(options),
        **run_facts(crops, settings),
        **source_facts(options),
    }
    if done.best is not None:
        facts["best validation"] = f"{done.best:.4f} dB after {done.best_step} steps (in the folder best)"
    return facts


def _finish(
    options: argparse.Namespace,
    model: object,
    recipe: Recipe,
    facts: dict[str, str | float],
    tests: dict[str, list[Example]],
) -> None:
    """Measure on the test scenes, print the figures in dB, and save the result with them."""
    from ..restoration.evaluation import compare, methods
    from ..restoration.progress import progress
    from ..restoration.training import save_merged, save_product

    for (folder, examples), title in zip(tests.items(), _titles(list(tests)), strict=True):
        with progress("measuring", len(examples) * len(list(methods(model)))) as advance:
            comparison = compare(model, examples, seen=lambda method, example, _: advance(f"{example.name}, {method}"))
        print(f"\n{folder}\n{comparison}")
        mean = "RGB" if len(examples[0].lr) == 1 else "(L+R)/2"
        for name, value in comparison.means_db().items():
            facts[f"PSNR in dB, {mean}, {title}, {name}"] = round(value, 4)
    written = [save_product(model, Path(options.out), facts=facts)]
    if options.merge:
        written.append(save_merged(model, Path(options.out), facts=facts))
    what = "network" if recipe.from_scratch else "adapter"
    print(f"\n{what} written to {' and '.join(map(str, written))}")


def _titles(folders: list[str]) -> list[str]:
    """Return short names of folders: the fewest last path parts that make all names different.

    E.g. `a/test` and `b/test` keep two parts; `a/x` and `a/y` become `x` and `y`.
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        titles = ["/".join(names[-count:]) for names in parts]
        if len(set(titles)) == len(titles):
            break
    return titles
