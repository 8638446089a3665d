"""The work of `lowpeft demo`: adapt, train, measure, save, reload in a fresh process, draw.

The task is stereo super-resolution of noisy pairs. The network was pre-trained on clean single images; the adapters
turn it into a stereo network that also denoises.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..core.files.adapter_files import save_adapter
from ..core.observation.describe import image_facts
from ..core.operations.adapt import adapt
from ..core.operations.state import summary
from ..core.operations.switching import disabled
from ..errors import DataError, LowpeftError
from ..recipes import TrainSettings
from ..restoration.data import Crops, Example, Scene, find_scenes, load_example
from ..restoration.evaluation import Comparison, compare, methods
from ..restoration.evaluation.pictures import draw_scene
from ..restoration.images import make_folder, to_float, to_uint8, write_image
from ..restoration.inference import enhance
from ..restoration.progress import progress
from ..restoration.training import train
from ..storage import write_json
from ..version import version
from .network import demo_backbone
from .scenes import write_scenes
from .verify import outputs_digest

TRAIN_SCENES, TEST_SCENES = 24, 4
NOISE = 10 / 255
"""Standard deviation of the Gaussian noise on the LR views (values 0..1); independent in the two views."""
SETTINGS = TrainSettings(
    steps=240,
    batch=2,
    crop_height_px=48,
    crop_width_px=160,
    learning_rate=3e-3,
    betas=(0.9, 0.99),
    warmup_steps=10,
    clip_norm=0.1,
)


def run_demo(*, out: str | Path, data: str | Path | None = None, steps: int | None = None, seed: int = 0) -> Comparison:
    """Train, measure, save and reload a stereo adapter for the built-in frozen network.

    Args:
        out: Folder for the scenes, the adapter, `results.json` and `comparison.png`.
        data: Folder of the user's HR pairs; every fifth scene by name is held out. None means built-in scenes.
        steps: Number of training steps; None means the demo's default.
        seed: Seed of new adapters and crops.

    Returns:
        Comparison on the held-out scenes.

    Raises:
        DataError: The user's pairs cannot be used, or the folder cannot be written.
        PlanError: `steps` or `seed` is out of range.
        LowpeftError: The adapter gives other images in a fresh process, or cannot be loaded there.
    """
    folder = Path(out)
    settings = replace(SETTINGS, seed=seed, steps=SETTINGS.steps if steps is None else steps)
    backbone = demo_backbone()
    scale = image_facts(backbone).scale
    training, held_out = _split(data, scale) if data is not None else _built_in(folder)
    training, held_out = (_noisy(s, folder / "noisy_lr", scale) for s in (training, held_out))
    print(
        f"frozen network: a HAT x{scale} of {backbone.parameters:,} parameters, pre-trained on clean images\n"
        f"task: stereo pairs from cameras with noise of {NOISE * 255:.0f}/255"
    )
    crop = (settings.crop_height_px, settings.crop_width_px)
    crops = Crops(training, scale, crop_px=crop, seed=seed)
    tests = [load_example(s, scale) for s in held_out]

    torch.manual_seed(seed)
    model = adapt(backbone, "stereo")
    print(summary(model))
    with progress(f"training on {len(training)} scenes", settings.steps) as advance:
        done = train(model, crops, settings, report=lambda s: advance(f"L1 {s.loss:.4f}"))
    with progress(f"measuring on {len(tests)} unseen scenes", len(tests) * len(list(methods(model)))) as advance:
        comparison = compare(model, tests, advance=advance)
    print(comparison)

    psnr: dict[str, str | float] = {
        f"PSNR in dB, (L+R)/2, {name}": round(value, 4) for name, value in comparison.means_db().items()
    }
    made = {"base weights": "built into lowpeft ('demo')", "training": f"lowpeft demo, {done.seconds:.0f} s"}
    adapter = save_adapter(model, folder / "adapter", facts=made | psnr)
    _reload_elsewhere(model, adapter, held_out[0])
    picture = _draw(model, tests[0], folder / "comparison.png")
    results = {
        "data": "the built-in scenes" if data is None else str(data),
        "lowpeft": version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "noise": NOISE,
        "training": {**vars(settings), "seconds": round(done.seconds, 1)},
        "mean_db": comparison.means_db(),
        "scenes": comparison.scenes,
        **{f"{name.replace(' ', '_')}_db": comparison.values_db(name) for name in ("frozen", "adapted", "same view")},
    }
    figures = write_json(folder / "results.json", results)
    print(f"adapter {adapter}\npicture {picture}\nfigures {figures}")
    return comparison


def _built_in(folder: Path) -> tuple[Sequence[Scene], Sequence[Scene]]:
    """Write the built-in training and held-out scenes, which share no photograph, and return both."""
    write_scenes(folder / "scenes" / "train", range(TRAIN_SCENES))
    write_scenes(folder / "scenes" / "test", range(TEST_SCENES), split="test")
    return find_scenes(folder / "scenes" / "train"), find_scenes(folder / "scenes" / "test")


def _split(data: str | Path, scale: int) -> tuple[Sequence[Scene], Sequence[Scene]]:
    scenes = find_scenes(data, scale=scale)
    if len(scenes) < 2:
        raise DataError(f"{data} has only one pair; give two or more: some for training, the others for measuring")
    held_out = scenes[::5]
    return tuple(s for s in scenes if s not in held_out), held_out


def _noisy(scenes: Sequence[Scene], folder: Path, scale: int) -> tuple[Scene, ...]:
    """Write noisy 8-bit LR views of the scenes, and return the scenes with these as LR files.

    Scenes without LR files get LR views by MATLAB's bicubic first. The noise of a scene depends only on its name.
    """
    make_folder(folder)
    noisy = []
    for scene in scenes:
        example = load_example(scene, scale)
        generator = torch.Generator().manual_seed(zlib.crc32(scene.name.encode()))
        paths = [folder / f"{scene.name}_{side}.png" for side in "LR"]
        for view, path in zip(example.lr, paths, strict=True):
            noise = NOISE * torch.randn(view.shape, generator=generator)
            write_image(to_uint8((view / 255 + noise).clamp(0, 1)), path)
        noisy.append(replace(scene, lr=tuple(paths)))
    return tuple(noisy)


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


def _draw(model: object, pair: Example, path: Path) -> Path:
    """Draw the left view of a scene as bicubic, frozen, adapted and HR, and return the path."""
    left, right = map(to_float, pair.lr)
    with disabled(model):
        frozen, _ = enhance(model, left, right)
    adapted, _ = enhance(model, left, right)
    return draw_scene(path, pair, {"frozen": frozen, "adapted": adapted}, scale=image_facts(model).scale, errors=False)
