"""The work of `lowpeft demo`: adapt, train, measure, save, reload in a fresh process, show.

The task is stereo super-resolution of noisy pairs. The network was pre-trained on clean single images; the adapters
turn it into a stereo network that also denoises, with the help of the other view.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..core.files.loading import load_adapter
from ..core.files.reading import read_adapter
from ..core.files.saving import save_adapter
from ..core.observation.describe import image_facts
from ..core.operations.adapt import adapt
from ..core.operations.state import summary
from ..errors import DataError, LowpeftError
from ..recipes import TrainSettings
from ..restoration.data import Crops, EachViewTwice, Example, Scene, load_example
from ..restoration.evaluation import Comparison, compare, methods
from ..restoration.images import make_folder
from ..restoration.inference.network import Views
from ..restoration.progress import progress
from ..restoration.training import train
from ..storage import write_json
from ..version import version
from .network import demo_backbone
from .scenes import held_out_scenes
from .show import Shown, show
from .task import NOISE, SETTINGS, TEST_SCENES, own_scenes, training_scenes, unseen_scenes
from .verify import outputs_digest

RECIPE = "parallax"
ADAPTER = Path(__file__).parent / "adapter"
"""Adapter of a run with seed 0, made by `benchmarks/demo.py`."""
FIGURES = Path(__file__).parent / "demo_figures.json"
"""Figures of runs with several seeds, and of their controls, made by `benchmarks/demo.py`."""


class Trained(NamedTuple):
    """An adapted model after training, and the seconds that it took."""

    model: torch.nn.Module
    seconds: float


def run_demo(
    *, out: str | Path, data: str | Path | None = None, steps: int | None = None, seed: int = 0, quick: bool = False
) -> Comparison:
    """Train, measure, save, reload and show a stereo adapter for the built-in frozen network.

    Args:
        out: Folder for the scenes, the adapter, `results.json`, `index.html` and `pictures`.
        data: Folder of the user's HR pairs; every fifth by name is held out, or all with `quick`. None means built-in
            scenes, with `quick` one.
        steps: Number of training steps; None means the demo's default.
        seed: Seed of new adapters and crops.
        quick: True takes the adapter that comes with lowpeft in place of training one.

    Returns:
        Comparison on the held-out scenes.

    Raises:
        DataError: The user's pairs cannot be used, or the folder cannot be written.
        PlanError: `steps` or `seed` is out of range.
        LowpeftError: The adapter gives other images in a fresh process, or cannot be loaded there; or `quick` was given
            with `steps` or `seed`.
    """
    if quick and (steps is not None or seed):
        raise LowpeftError("a quick demo does not train, so it takes no number of steps and no seed")
    folder, backbone = Path(out), demo_backbone()
    scale, adapter = image_facts(backbone).scale, folder / "adapter"
    print(
        f"frozen network: a HAT x{scale} of {backbone.parameters:,} parameters, pre-trained on clean images\n"
        f"task: stereo pairs from cameras with noise of {NOISE * 255:.0f}/255"
    )
    make_folder(folder)
    for name in ("index.html", "results.json"):  # of a former run
        (folder / name).unlink(missing_ok=True)
    training, held_out = _scenes(data, folder, scale, quick=quick)
    if quick:
        trained = Trained(load_adapter(backbone, ADAPTER), 0.0)
        print(summary(trained.model))
    else:
        trained = train_demo(training, steps=steps, seed=seed)
    comparison, shown = _compared(trained.model, held_out, scale, built_in=data is None)
    save_adapter(trained.model, adapter, facts=read_adapter(ADAPTER).facts if quick else _facts(trained, comparison))
    if not quick:
        _reload_elsewhere(trained.model, adapter, held_out[0])
    claim = _claim(comparison, usual=data is None and steps is None)
    commands = _commands(folder, held_out[0], built_in=data is None)
    page = show(folder, trained.model, shown, comparison, scale=scale, claim=claim, commands=commands)
    training_facts = {**vars(_settings(steps, seed)), "seconds": round(trained.seconds, 1)}
    results = {
        "data": "the built-in scenes" if data is None else str(data),
        "training": "the adapter that comes with lowpeft" if quick else training_facts,
        **_results(comparison),
    }
    try:
        figures = write_json(folder / "results.json", results)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    print(f"{claim}\n\nadapter {adapter}\npage    {page}\nfigures {figures}\n\nWhat next:")
    print("".join(f"  {command}\n" for command in commands), end="")
    return comparison


def _scenes(data: str | Path | None, folder: Path, scale: int, *, quick: bool) -> tuple[Sequence[Scene], ...]:
    """Return the scenes to train on, none with `quick`, and those to measure on, with noisy LR views."""
    if data is not None:
        return own_scenes(data, folder, scale, train=not quick)
    if quick:
        return (), unseen_scenes(folder, scale, count=1)
    return training_scenes(folder, scale), unseen_scenes(folder, scale)


def train_demo(
    scenes: Sequence[Scene], *, steps: int | None = None, seed: int = 0, recipe: str = RECIPE, control: bool = False
) -> Trained:
    """Train the demo's adapter on scenes with noisy LR views.

    Args:
        scenes: Training scenes.
        steps: Number of training steps; None means the demo's default.
        seed: Seed of new adapters and crops.
        recipe: Name of the recipe to train.
        control: True gives each view twice in training, in a batch of twice as many samples with the same images.

    Raises:
        PlanError: `steps` or `seed` is out of range.
    """
    settings = _settings(steps, seed)
    backbone = demo_backbone()
    crop = (settings.crop_height_px, settings.crop_width_px)
    crops = Crops(scenes, image_facts(backbone).scale, crop_px=crop, seed=seed)
    torch.manual_seed(seed)
    model = adapt(backbone, recipe)
    print(summary(model))
    if control:
        settings = replace(settings, batch=2 * settings.batch, calibration=2 * settings.calibration)
    source = EachViewTwice(crops) if control else crops
    with progress(f"training on {len(scenes)} scenes", settings.steps) as advance:
        done = train(model, source, settings, report=lambda s: advance(f"L1 {s.loss:.4f}"))
    return Trained(model, done.seconds)


def _compared(
    model: torch.nn.Module, scenes: Sequence[Scene], scale: int, *, built_in: bool
) -> tuple[Comparison, Shown]:
    """Measure on the scenes, and keep the images of the first; the true disparity is known of a built-in one."""
    tests = [load_example(s, scale) for s in scenes]
    shown = Shown(tests[0], {}, held_out_scenes(1)[0].disparity if built_in else None)
    title = f"measuring on {len(tests)} unseen scene{'s' * (len(tests) > 1)}"
    with progress(title, len(tests) * len(list(methods(model)))) as advance:

        def seen(method: str, example: Example, results: Views) -> None:
            if example is shown.example:
                shown.results[method] = results
            advance(f"{example.name}, {method}")

        comparison = compare(model, tests, seen=seen)
    print(comparison)
    return comparison, shown


def _results(comparison: Comparison) -> dict[str, object]:
    """Return the figures, and what they were made with."""
    return {
        "lowpeft": version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "noise": NOISE,
        "recipe": RECIPE,
        "mean_db": comparison.means_db(),
        "scenes": comparison.scenes,
        **{f"{name.replace(' ', '_')}_db": comparison.values_db(name) for name in ("frozen", "adapted", "same view")},
    }


def _claim(comparison: Comparison, *, usual: bool) -> str:
    """Return what the other view gives, by giving each view twice here and, for the usual run, by a trained control."""
    gain = comparison.means_db()["adapted"] - comparison.means_db()["same view"]
    text = f"Given each view twice, the adapted network is {gain:.2f} dB worse: it uses the other view."
    if gain < 0.05:
        text = f"Given each view twice, the adapted network is only {gain:.2f} dB worse: it hardly uses the other view."
    if not usual:
        return text
    figures = json.loads(FIGURES.read_text())
    return (
        f"{text} In lowpeft's own runs (mean of {len(figures['seeds'])} seeds and {TEST_SCENES} scenes) it is "
        f"{figures['over_control_db']['mean']:.2f} dB better than a control, which was trained and measured with each "
        "view given twice: that is what the other view gives."
    )


def _commands(folder: Path, scene: Scene, *, built_in: bool) -> list[str]:
    """Return three command lines for what a user would do next; they work as they are."""
    left, right = map(str, scene.lr)
    network = ["--weights", "demo", "--adapter", str(folder / "adapter")]
    data = ["--data", str(Path(scene.hr[0]).parent), "--lr", str(Path(left).parent)]
    commands = [
        ["enhance", left, right, *network, "--out", str(folder / "enhanced")],
        ["evaluate", *network, *data, "--out", str(folder / "measured")] if built_in else ["info", network[-1]],
        ["lam", left, right, *network, "--patch", "32", "32", "16", "--out", str(folder / "lam")],
    ]
    enhance, measure, attribute = (shlex.join(["lowpeft", *command]) for command in commands)
    return [enhance, measure, f"{attribute}  # minutes"]


def _settings(steps: int | None, seed: int) -> TrainSettings:
    return replace(SETTINGS, seed=seed, steps=SETTINGS.steps if steps is None else steps)


def _facts(trained: Trained, comparison: Comparison) -> dict[str, str | float]:
    """Return the facts that are saved with the adapter."""
    psnr = {f"PSNR in dB, (L+R)/2, {name}": round(value, 4) for name, value in comparison.means_db().items()}
    return {"base weights": "built into lowpeft ('demo')", "training": f"lowpeft demo, {trained.seconds:.0f} s", **psnr}


def _reload_elsewhere(model: torch.nn.Module, adapter: Path, scene: Scene) -> None:
    """Load the adapter in a fresh process, and check that its outputs are bit-equal."""
    views = (str(scene.lr[0]), str(scene.lr[1]))
    command = [sys.executable, "-m", "lowpeft.demo.verify", str(adapter), *views]
    environment = {**os.environ, "LOWPEFT_DEMO_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    if done.returncode:
        raise LowpeftError(f"reloading the adapter in a fresh process failed: {done.stderr.strip()[-500:]}")
    here = outputs_digest(model, *views)
    if done.stdout.split()[-1:] != [here]:
        raise LowpeftError("the saved adapter gives other images in a fresh process; please report this")
    print("saved, reloaded in a fresh process: outputs are bit-equal")
