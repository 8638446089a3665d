"""Job of one cell of an experiment: train and measure a row with one seed, in a separate process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...backbones.checkpoints import which_weights
from ...backbones.opening import load_backbone
from ...core.attachment.record import module_of
from ...core.files.loading import load_adapter
from ...core.files.reading import read_adapter
from ...core.operations.state import adapter_parameters, summary
from ...errors import LowpeftError
from ...recipes import Recipe, TrainSettings, recipe_to_dict
from ...restoration.data import Crops, Scene, find_scenes, load_example, read_clean_crops
from ...restoration.evaluation import by_network, by_network_alone, measure
from ...restoration.inference import Tiling
from ...restoration.inference.network import multi_view
from ...restoration.metrics import LITERATURE, PROTOCOLS
from ...restoration.progress import progress, quiet
from ...restoration.training import build_model, train
from ...storage import write_json
from ...version import version

RESULT, PEAK = "result.json", "peak.json"
MEAN = "PSNR (L+R)/2"
"""Column that every protocol of two views has, so that it can be compared with papers."""
ENSEMBLE, SAME_VIEW = "ensemble ", "same view "
"""Prefixes of the names of columns."""
MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of one cell.

    Attributes:
        row: Name of the row; `frozen` or `frozen, ROW` for a network without adapters.
        weights: Path of the network's checkpoint.
        network: Required family of the network, or required architecture if it has no family.
        scale: Required scale of the network.
        tests: Name and folder of each test set.
        protocol: Protocol of the measurements.
        recipe: Recipe to train; None for a frozen network or a ready adapter, which are not trained.
        seed: Seed of the training.
        data: Folder of training pairs; required with a recipe.
        adapter: Folder of a ready adapter, which is measured without training.
        device: Torch device of training and measurement; "auto" for a GPU if the machine that runs the job has one.
        ensemble: True to also measure the self-ensemble.
        memory_mb: Upper bound of the memory that inference takes, in MB; None for no bound.
    """

    row: str
    weights: Path
    network: str
    scale: int
    tests: tuple[tuple[str, Path], ...]
    protocol: str = LITERATURE.name
    recipe: Recipe | None = None
    seed: int = 0
    data: Path | None = None
    adapter: Path | None = None
    device: str = "cpu"
    ensemble: bool = False
    memory_mb: float | None = None

    @property
    def folder(self) -> Path:
        """Folder of the cell inside the output folder, e.g. `both/seed-0`, or `frozen` if nothing is trained."""
        return Path(self.row) if self.recipe is None else Path(self.row, f"seed-{self.seed}")

    def identity(self) -> dict[str, Any]:
        """Return the values that must be equal for a finished result to be reused: settings and digests of files."""
        others = ("recipe", "weights", "data", "tests", "device", "adapter")
        identity = {
            **{name: value for name, value in vars(self).items() if name not in others},
            "recipe": None if self.recipe is None else recipe_to_dict(self.recipe),
            "weights": [self.weights.name, _digest_of(self.weights)],
            "data": None if self.data is None else _digest_of(self.data),
            "tests": {name: _digest_of(path) for name, path in self.tests},
        }
        if self.adapter is not None:
            identity["adapter"] = read_adapter(self.adapter).config
        as_read_again: dict[str, Any] = json.loads(json.dumps(identity))
        return as_read_again


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a job.

    Attributes:
        row: Row of the job.
        seed: Seed of the job.
        frozen: Number of frozen parameters.
        trained: Number of trained parameters; for a ready adapter, the number of its parameters.
        seconds: Training time in seconds; 0 if nothing was trained.
        peak_mb: Peak memory during training in MB: of the device on CUDA, of the process elsewhere.
        figures: Values of the protocol's columns for each test set. The prefix `ensemble ` marks those of the
            self-ensemble, if requested. `same view PSNR (L+R)/2` is measured with each view paired with itself, for
            models of several views.
        scenes: Number of scenes of each test set.
        notes: Remarks for readers: which of a file's weights were loaded, how a ready adapter differs.
    """

    row: str
    seed: int
    frozen: int
    trained: int
    seconds: float
    peak_mb: float
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    scenes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def finished(job: Job, folder: Path) -> Outcome | None:
    """Read the result that an earlier run left in the folder; None if there is none.

    Raises:
        LowpeftError: The result has other settings, data or weights, or is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        outcome = Outcome(**content["outcome"])
        then = content["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise LowpeftError(f"{path} is not a result of lowpeft ({error}); remove it") from error
    now = job.identity()
    if then != now:
        changed = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
        raise LowpeftError(
            f"{path} is the result of a run with other {', '.join(changed)}; remove it or choose another folder"
        )
    return outcome


def run_job(job: Job, folder: Path) -> Outcome:
    """Train and measure; reuse a finished result and resume an interrupted training in the folder.

    Raises:
        LowpeftError: The network is not the one that the row requires, or training or measuring failed.
    """
    if (done := finished(job, folder)) is not None:
        return done
    quiet()
    if job.device == "auto":
        job = dataclasses.replace(job, device="cuda" if torch.cuda.is_available() else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(job.weights)
    if job.network not in (backbone.family, backbone.architecture) or job.scale != backbone.scale:
        network = backbone.family or backbone.architecture
        raise LowpeftError(
            f"{job.weights} is a {network} x{backbone.scale}, but row {job.row!r} is for {job.network} x{job.scale}"
        )
    model: object = backbone
    if job.adapter is not None:
        model = load_adapter(backbone, job.adapter)
    elif job.recipe is not None:
        model = build_model(backbone, job.recipe)
    module = module_of(model).to(torch.device(job.device))
    if job.recipe is not None:
        trained, seconds, peak_mb = _train(model, job.recipe.training, job, folder)
    else:
        trained = sum(p.numel() for _, p in adapter_parameters(model)) if job.adapter is not None else 0
        seconds, peak_mb = 0.0, _peak_mb(job)
    module.eval()
    which = which_weights(backbone.notes)
    notes = [] if which is None else [f"{job.weights.name}: {which}"]
    if job.adapter is not None:
        notes += [note.removeprefix("default: ") for note in summary(model).notes]
    tests = {name: find_scenes(path, scale=job.scale) for name, path in job.tests}
    outcome = Outcome(
        row=job.row,
        seed=job.seed,
        frozen=sum(p.numel() for p in module.parameters()) - trained,
        trained=trained,
        seconds=round(seconds, 2),
        peak_mb=round(peak_mb, 1),
        figures={name: _measure(model, job, name, scenes) for name, scenes in tests.items()},
        scenes={name: len(scenes) for name, scenes in tests.items()},
        notes=notes,
    )
    made = {
        "lowpeft": version(),
        "torch": torch.__version__,
        "device": device_name(torch.device(job.device)),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(folder / RESULT, {"identity": job.identity(), "outcome": dataclasses.asdict(outcome), "made": made})
    return outcome


def _train(model: object, settings: TrainSettings, job: Job, folder: Path) -> tuple[int, float, float]:
    """Train the model, and return the number of trained parameters, the seconds and the peak memory in MB."""
    if job.data is None:
        raise LowpeftError(f"row {job.row!r} is trained, but no folder of training pairs was given")
    crops = Crops(
        find_scenes(job.data, scale=job.scale),
        job.scale,
        crop_px=(settings.crop_height_px, settings.crop_width_px),
        seed=settings.seed,
        clean_crops=read_clean_crops(job.data),
    )
    with progress(f"{job.row}, seed {job.seed}", settings.steps) as advance:
        done = train(
            model,
            crops,
            settings,
            out=folder / "run",
            resume=True,
            report=lambda step: advance(f"loss {step.loss:.4f}"),
        )
    peak = folder / PEAK
    if done.resumed_at < done.steps or not peak.exists():  # a process that only measures has another peak
        write_json(peak, {"peak_mb": _peak_mb(job)})
    return done.parameters, done.seconds, json.loads(peak.read_text(encoding="utf-8"))["peak_mb"]


def _measure(model: object, job: Job, name: str, scenes: Sequence[Scene]) -> dict[str, float]:
    """Measure a test set, and return the means of the protocol's columns."""
    examples = [load_example(scene, job.scale) for scene in scenes]
    tiling = Tiling(memory_mb=job.memory_mb)
    runs = {"": by_network(model, tiling=tiling)}
    if job.ensemble:
        runs[ENSEMBLE] = by_network(model, ensemble=True, tiling=tiling)
    if multi_view(module_of(model)) is not None:
        runs[SAME_VIEW] = by_network_alone(model, tiling=tiling)
    figures: dict[str, float] = {}
    with progress(f"{job.row}, {name}", len(runs) * len(examples)) as advance:
        for prefix, enhance in runs.items():
            means = measure(
                enhance,
                examples,
                scale=job.scale,
                protocol=PROTOCOLS.find(job.protocol),
                seen=lambda example, _: advance(example.name),
            ).means()
            columns = (MEAN,) if prefix == SAME_VIEW else tuple(means)
            figures |= {prefix + column: round(means[column], 5) for column in columns}
    return figures


def _digest_of(path: Path) -> str:
    """Compute a digest of a file's content, or of the names and contents of all files below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    states = [(p, p.stat()) for p in files]
    digests = [(str(p.relative_to(path)), _digest(p, state.st_size, state.st_mtime_ns)) for p, state in states]
    return hashlib.sha256(json.dumps(digests).encode(), usedforsecurity=False).hexdigest()[:16]


@functools.cache
def _digest(file: Path, size: int, changed_ns: int) -> str:
    """Compute a digest of a file's content; the file is read again only if its size or time of change differs."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.sha256(usedforsecurity=False)).hexdigest()


def _peak_mb(job: Job) -> float:
    """Return the peak memory so far in MB: of the device on CUDA, of the process elsewhere."""
    if torch.device(job.device).type == "cuda":
        return torch.cuda.max_memory_allocated(job.device) / MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def device_name(device: torch.device) -> str:
    """Return a description of a device: the GPU's name, or the number of CPU threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
