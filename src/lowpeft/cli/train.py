"""`lowpeft train`: train a recipe, measure the result, and save it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.attachment.record import is_adapted, module_of, recipes_of
from ..core.files.loading import fetched
from ..core.observation.describe import image_facts
from ..core.operations.calibration import needs_calibration
from ..core.operations.state import summary
from ..errors import LowpeftError, and_more
from ..kinds import WeightAdapter, get_kind
from ..ports.facts import Backbone, ImageFacts
from ..recipes import Recipe, TrainSettings, load_recipe, override
from ..restoration.data import Crops, EachViewTwice, Example, Scene
from .common import (
    adapted,
    add_adapter,
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
    refuse_without_adapter,
    warn_of_pairs,
    weights_facts,
)
from .help import option_group
from .output import emit
from .signals import stop_on_signal
from .sources import (
    add_sources,
    examples_of,
    say_reading,
    scenes_of,
    source_facts,
    source_problems,
    training_crops,
)
from .training_options import add_settings, add_watching, changed_settings, own_loss

if TYPE_CHECKING:
    from ..restoration.training import Callback, CropSource, Processes, Step, Trained

FEW_STEPS, RATE_FOR_MANY = 2_000, 5e-4
"""Steps of a short run, and the peak learning rate of long ones, which such a run can exceed many times."""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "train",
        run,
        "train a recipe on a folder of stereo pairs or single images; several GPUs: accelerate launch -m lowpeft train",
        "lowpeft train stereo --weights CRAFT_x4.pth --data pairs/train --test pairs/test --out my-adapter",
        "lowpeft train lora --weights denoiser.safetensors --images clean --degrade noise:25 --out noise-25",
        "lowpeft train --adapter noise-25 --weights denoiser.safetensors --images clean --degrade noise:50 "
        "--out noise-50",
    )
    add_recipe(sub, optional="; with --adapter it may be left out: then it is the adapter's")
    add_adapter(sub, more=", to train on from it, with a new optimiser and schedule")
    add_sources(sub)
    output = option_group(sub, "output")
    output.add_argument("--out", required=True, metavar="DIR", help="folder for the adapter, log and checkpoints")
    output.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in --out, if one exists"
    )
    output.add_argument(
        "--merge", action="store_true", help="also write network.safetensors with the adapters folded in (lora, full)"
    )
    add_device(sub)
    add_optimize(sub, default="keep")
    add_watching(sub)
    add_settings(sub)


def run(options: argparse.Namespace) -> int | None:
    """Train, measure, save; return an exit code that is not 0 if a signal stopped the run."""
    from ..restoration.progress import progress
    from ..restoration.training import build_model, check_folder, connect, last_step, train

    processes = connect()
    check_folder(Path(options.out), resume=options.resume)  # before anything is loaded
    refuse_without_adapter(options)
    loss = own_loss(options)
    base = backbone(options)
    warm, recipe = _started(options, base)
    settings = recipe.training
    _check(recipe, options)
    image_channels(base)
    facts = image_facts(base)
    scenes = training_crops(options, facts, settings)
    crops: CropSource = EachViewTwice(scenes) if options.each_view_twice else scenes
    tests: dict[str, list[Example]] = {}
    shared: dict[str, str | float] = {}
    validate: Callable[[object], float] | None = None
    watchers: list[Callback] = []
    if processes.main:
        say_reading(options, scenes.scenes, facts.scale, "training")
        measured = {folder: scenes_of(options, folder, facts.scale, options.test_lr) for folder in options.test}
        validated = {options.validate: scenes_of(options, options.validate, facts.scale)} if options.validate else {}
        tests = {folder: examples_of(options, facts, found, "test") for folder, found in measured.items()}
        validate, watchers = _watching(options, facts, *validated.values())
        shared = _trained_and_measured(scenes, {"validated": validated, "measured": measured})
    model = build_model(base, recipe) if warm is None else warm
    module_of(model).to(device(options.device) if processes.device is None else processes.device)
    if not recipe.from_scratch:
        optimized(options, model)
    if processes.main:
        _print_plan(model, recipe, crops, processes)
        _warn_of_pairs(options, recipe, scenes)
    before = last_step(Path(options.out)) if options.resume else 0
    left = settings.steps > before
    bar = progress("training", settings.steps, before) if processes.main and left else nullcontext(lambda note: None)
    with bar as advance, stop_on_signal() as (stop, signals):
        done = train(
            model,
            crops,
            settings,
            out=options.out,
            resume=options.resume,
            validate=validate,
            report=lambda step: advance(_note(step)),
            callbacks=[*watchers, stop],
            loss=loss,
        )
    if processes.main:
        _print_end(done, settings)
        if signals:
            tests.clear()  # a cluster grants a minute, not a measurement
        saved = {**_facts(options, base, crops, settings, done), **shared}
        emit(options, {"run": done, **_finish(options, model, recipe, saved, tests)})
    processes.leave()
    return 128 + signals[0] if signals else None


def _started(options: argparse.Namespace, base: Backbone) -> tuple[nn.Module | None, Recipe]:
    """Return the model with the adapter that `--adapter` names (None without it), and the recipe with all settings.

    Raises:
        LowpeftError: Neither a recipe nor an adapter was given, or the adapter was made by another recipe.
    """
    from ..restoration.training import crop_for

    only_crop = crop_for(base)
    recipe = None if options.recipe is None else override(load_recipe(options.recipe), changes(options))
    if options.adapter is None:
        if recipe is None:
            raise LowpeftError("give a recipe, or --adapter DIR to train on from a saved adapter")
        model = None
    else:
        model, saved = adapted(options, base), recipes_of(base)[0]
        if recipe is None and changes(options):
            raise LowpeftError("--set and --budget change a recipe, but an adapter that exists keeps its form")
        if recipe is not None and recipe.adapters != saved.adapters:
            made = ", ".join(adapter.kind for adapter in saved.adapters)
            raise LowpeftError(
                f"the adapter {options.adapter} was made by {saved.name!r} ({made}), not by {recipe.name!r} as asked: "
                "leave out the recipe, or give the one that it was made by, with the same --set"
            )
        recipe = _without_measurements(saved, options) if recipe is None else recipe
    settings = changed_settings(recipe.training, options, only_crop, of_control=_goes_on_from_control(options))
    return model, dataclasses.replace(recipe, training=settings)


def _goes_on_from_control(options: argparse.Namespace) -> bool:
    """Return whether `--adapter` names a control, and its settings are taken over."""
    if options.adapter is None or options.recipe is not None:
        return False
    found = fetched(options.adapter, revision=options.revision, subfolder=options.subfolder)
    return EachViewTwice.facts.items() <= found.adapter.facts.items()


def _without_measurements(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """Return an adapter's recipe without the measurements of the run that made it, unless this one measures too."""
    if options.validate:
        return recipe
    return dataclasses.replace(
        recipe, training=dataclasses.replace(recipe.training, validate_every_steps=0, patience=0)
    )


def _watching(
    options: argparse.Namespace, facts: ImageFacts, scenes: Sequence[Scene] = ()
) -> tuple[Callable[[object], float] | None, list[Callback]]:
    """Return the function that measures during training, if one was asked for, and what else watches the run."""
    from ..restoration.training import Trackers, ValidationImages, validation

    watchers: list[Callback] = [Trackers(options.log_with)] if options.log_with else []
    if not scenes:
        return None, watchers
    examples = examples_of(options, facts, scenes, "validation")
    if options.validation_images:
        watchers.append(ValidationImages(examples[: options.validation_images]))
    return validation(examples, each_view_twice=options.each_view_twice), watchers


def _warn_of_pairs(options: argparse.Namespace, recipe: Recipe, crops: Crops) -> None:
    if recipe.views > 1 and not options.each_view_twice:
        warn_of_pairs(
            crops.scenes,
            crops.scale,
            loading=crops.loading,
            clean_crops=crops.clean_crops,
            adapters=recipe.adapters,
        )


def _trained_and_measured(crops: Crops, folders: Mapping[str, Mapping[str, Sequence[Scene]]]) -> dict[str, str | float]:
    """Say on standard error which scenes are both trained and measured on; return it as facts.

    Args:
        crops: Crops of the training scenes.
        folders: Scenes of each folder, by what is done with them: "validated" or "measured".
    """
    from ..restoration.training import shared_scenes

    facts: dict[str, str | float] = {}
    for what, given in folders.items():
        found = []
        for (folder, scenes), title in zip(given.items(), _titles([*given]), strict=True):
            if shared := shared_scenes(crops.scenes, scenes):
                found.append(f"{title}: {len(shared)} of {len(scenes)} scenes")
                print(
                    f"{len(shared)} of {len(scenes)} scenes of {folder} are training images "
                    f"({and_more(shared, most=3)}): what is {what} on them says nothing about new images",
                    file=sys.stderr,
                )
        if found:
            facts[f"{what} on training images"] = "; ".join(found)
    return facts


def _print_end(done: Trained, settings: TrainSettings) -> None:
    if done.stopped is not None:
        print(f"stopped after {done.steps} of {settings.steps} steps: {done.stopped}")
    elif done.resumed_at >= settings.steps:
        print(f"nothing left to train: {settings.steps} of {settings.steps} steps are done")
    if done.best is not None and done.result_step != done.steps:
        print(f"the result is the state after {done.result_step} steps, the best: {done.best:.4f} dB (patience)")


def _note(step: Step) -> str:
    """Return the text beside the progress bar."""
    return f"loss {step.loss:.4f}" + ("" if step.validation is None else f", validation {step.validation:.3f}")


def _check(recipe: Recipe, options: argparse.Namespace) -> None:
    """Raise for options that cannot be combined, before any data is read."""
    problems = source_problems(options)
    if options.test_lr and len(options.test) != 1:
        problems.append(f"--test-lr needs exactly one --test folder, not {len(options.test)}")
    if recipe.training.validate_every_steps and not options.validate:
        problems.append("--validate-every-steps N needs scenes to measure: give --validate DIR")
    if options.validation_images and not options.validate:
        problems.append("--validation-images N shows scenes of --validate DIR: give both")
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
    count, steps = len(crops.scenes), settings.steps
    print(f"{count} training scene{'s' * (count > 1)}, {steps} step{'s' * (steps > 1)} of {batch}{several}")
    if is_adapted(model) and needs_calibration(model):
        print(f"the adapters first see {_samples(settings.calibration, crops)} (--calibration) that set their start")
    if settings.warmup_steps >= settings.steps:
        print(
            f"the warm-up of {settings.warmup_steps} steps does not end in this run: the learning rate never reaches "
            f"{settings.learning_rate:g}; set --warmup-steps"
        )
    if settings.steps <= FEW_STEPS and settings.learning_rate <= RATE_FOR_MANY and _adds(recipe):
        print(
            f"a peak learning rate of {settings.learning_rate:g} is for long runs; in {steps} steps, adapters learn "
            "more with about 1e-2 (--learning-rate): see 'Which method when' in the documentation"
        )
    if isinstance(crops, EachViewTwice):
        print(f"control: {crops.facts['control']}")


def _adds(recipe: Recipe) -> bool:
    """Return whether a recipe has adapters other than the tensors of the network itself."""
    return any(adapter.kind != "full" for adapter in recipe.adapters)


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
        "training": f"{done.steps} step{'s' * (done.steps > 1)} of {batch}, {done.seconds:.0f} s",
        **({"result": f"the best state, after {done.result_step} steps"} if done.result_step != done.steps else {}),
        "trained parameters": done.parameters,
        **optimised_facts(options),
        **run_facts(crops, settings),
        **source_facts(options),
    }
    if options.adapter is not None:
        facts["started from"] = options.adapter
    if done.stopped is not None:
        facts["stopped"] = done.stopped
    if done.best is not None:
        facts["best validation"] = f"{done.best:.4f} dB after {done.best_step} steps (in the folder best)"
    return facts


def _finish(
    options: argparse.Namespace,
    model: object,
    recipe: Recipe,
    facts: dict[str, str | float],
    tests: dict[str, list[Example]],
) -> dict[str, object]:
    """Measure on the test scenes, print the figures in dB, save the result with them, and return them."""
    from ..restoration.evaluation import compare, methods
    from ..restoration.progress import progress
    from ..restoration.training import save_merged, save_product

    measured = {}
    for (folder, examples), title in zip(tests.items(), _titles(list(tests)), strict=True):
        with progress("measuring", len(examples) * len(list(methods(model)))) as advance:
            comparison = compare(model, examples, seen=lambda method, example, _: advance(f"{example.name}, {method}"))
        print(f"\n{folder}\n{comparison}")
        measured[folder] = {name: report.as_dict() for name, report in comparison.reports.items()}
        mean = "RGB" if len(examples[0].lr) == 1 else "(L+R)/2"
        for name, value in comparison.means_db().items():
            facts[f"PSNR in dB, {mean}, {title}, {name}"] = round(value, 4)
    written = [save_product(model, Path(options.out), facts=facts)]
    if options.merge:
        written.append(save_merged(model, Path(options.out), facts=facts))
    what = "network" if recipe.from_scratch else "adapter"
    print(f"\n{what} written to {' and '.join(map(str, written))}")
    return {"facts": facts, "tests": measured, "written": written}


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
