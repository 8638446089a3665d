"""One cell of an experiment: a row with one seed, trained and measured in a process of its own."""

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
from ...core.files.adapter_files import load_adapter, read_adapter
from ...core.operations.state import adapter_parameters, summary
from ...errors import LowpeftError
from ...ports.facts import Backbone
from ...recipes import Recipe, TrainSettings, recipe_to_dict
from ...restoration.data import Crops, Scene, find_scenes, load_example, read_clean_crops
from ...restoration.evaluation import by_network, by_network_alone, measure
from ...restoration.inference import Tiling
from ...restoration.inference.network import multi_view
from ...restoration.metrics import PROTOCOLS
from ...restoration.progress import progress, quiet
from ...restoration.training import build_model, train
from ...storage import write_json
from ...version import version
from ..experiments import LITERATURE

RESULT, PEAK = "result.json", "peak.json"
MEAN = "PSNR (L+R)/2"
"""The column of every protocol of two views that papers can be compared by."""
ENSEMBLE, SAME_VIEW = "ensemble ", "same view "
"""What stands before a column's name."""
MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is run.

    Attributes:
        row: Its name; `frozen` for the network without adapters.
        weights: Checkpoint of the network.
        network: The family that it must be of, or its architecture if it is of none.
        scale: That it must have.
        tests: Name and folder of each test set.
        protocol: By which they are measured.
        recipe: None where nothing is trained: for the frozen network, or a ready adapter.
        seed: Of the training.
        data: Folder of training pairs; needed with a recipe.
        adapter: Folder of a ready adapter, which is measured as it is.
        device: Where it runs.
        ensemble: Also measure the self-ensemble.
        memory_mb: Bound of the memory that inference takes.
    """

    row: str
    weights: Path
    network: str
    scale: int
    tests: tuple[tuple[str, Path], ...]
    protocol: str = LITERATURE
    recipe: Recipe | None = None
    seed: int = 0
    data: Path | None = None
    adapter: Path | None = None
    device: str = "cpu"
    ensemble: bool = False
    memory_mb: int | None = None

    def identity(self) -> dict[str, Any]:
        """What must be the same for a finished result to count as this job's."""
        others = ("recipe", "weights", "data", "tests", "device", "adapter")
        plain = {k: v for k, v in vars(self).items() if k not in others}
        recipe = None if self.recipe is None else recipe_to_dict(self.recipe)
        found = {
            **plain,
            "recipe": recipe,
            "weights": [self.weights.name, _digest_of(self.weights)],
            "data": None if self.data is None else _digest_of(self.data),
            "tests": {name: _digest_of(path) for name, path in self.tests},
        }
        if self.adapter is not None:
            found["adapter"] = read_adapter(self.adapter).config
        as_read_again: dict[str, Any] = json.loads(json.dumps(found))
        return as_read_again


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job gave.

    Attributes:
        row: Of the job.
        seed: Of the job.
        frozen: Parameters of the network that were not trained.
        trained: Parameters that were.
        seconds: Of training; 0 for the frozen network.
        peak_mb: Most memory during training: of the device on CUDA, of the process elsewhere.
        figures: For each test set, the columns of the protocol; with `ensemble ` before their names those
            of the self-ensemble, if it was asked for. `same view PSNR (L+R)/2` is that of a stereo model whose other
            view is a copy of the same one.
        scenes: How many each test set has.
        notes: What readers must know: which of a file's weights were taken, how a ready adapter differs.
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
    """The result that an earlier run left in the folder; None if there is none.

    Raises:
        LowpeftError: It is of other settings, data or weights, or is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        outcome = Outcome(**content["outcome"])
        then = content["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise LowpeftError(f"{path} is damaged: {error}; remove it") from error
    now = job.identity()
    if then != now:
        changed = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
        raise LowpeftError(
            f"{path} is the result of another run (it differs in {', '.join(changed)}); remove it "
            "or choose another folder"
        )
    return outcome


def run_job(job: Job, folder: Path) -> Outcome:
    """Train and measure; what was finished or begun in the folder is taken up.

    Raises:
        LowpeftError: The network is not what the row says, or its training or measuring failed.
    """
    if (done := finished(job, folder)) is not None:
        return done
    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(job.weights)
    if job.network not in (backbone.family, backbone.architecture) or job.scale != backbone.scale:
        found = backbone.family or backbone.architecture
        raise LowpeftError(
            f"{job.weights} is a {found} x{backbone.scale}, but row {job.row!r} is for {job.network} x{job.scale}"
        )
    model = _model(backbone, job)
    module = module_of(model).to(torch.device(job.device))
    if job.recipe is not None:
        cost = _train(model, job.recipe.training, job, folder)
    else:
        trained = sum(p.numel() for _, p in adapter_parameters(model)) if job.adapter is not None else 0
        cost = {"trained": trained, "seconds": 0.0, "peak_mb": _peak_mb(job)}
    module.eval()
    total = sum(p.numel() for p in module.parameters())
    tests = {name: find_scenes(path, scale=job.scale) for name, path in job.tests}
    outcome = Outcome(
        row=job.row,
        seed=job.seed,
        frozen=total - int(cost["trained"]),
        peak_mb=round(cost["peak_mb"], 1),
        figures={name: _measure(model, job, name, scenes) for name, scenes in tests.items()},
        trained=int(cost["trained"]),
        seconds=round(cost["seconds"], 2),
        scenes={name: len(scenes) for name, scenes in tests.items()},
        notes=_notes(model, backbone, job),
    )
    write_json(
        folder / RESULT, {"identity": job.identity(), "outcome": dataclasses.asdict(outcome), "made": _provenance(job)}
    )
    return outcome


def _model(backbone: Backbone, job: Job) -> object:
    """What is trained or measured: the network alone, with the recipe's adapters, or with the ready adapter."""
    if job.adapter is not None:
        return load_adapter(backbone, job.adapter)
    return backbone if job.recipe is None else build_model(backbone, job.recipe)


def _train(model: object, settings: TrainSettings, job: Job, folder: Path) -> dict[str, float]:
    if job.data is None:
        raise LowpeftError(f"row {job.row!r} is trained, and no folder of training pairs was given")
    scenes = find_scenes(job.data, scale=job.scale)
    crop_px = (settings.crop_height_px, settings.crop_width_px)
    clean = read_clean_crops(job.data)
    crops = Crops(scenes, job.scale, crop_px=crop_px, seed=settings.seed, clean_crops=clean)
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
    peak_mb = json.loads(peak.read_text(encoding="utf-8"))["peak_mb"]
    return {"trained": done.parameters, "seconds": done.seconds, "peak_mb": peak_mb}


def _notes(model: object, backbone: Backbone, job: Job) -> list[str]:
    """Which of the file's weights were taken, if it has several; and what a ready adapter's plan says."""
    which = which_weights(backbone.notes)
    return [
        *([] if which is None else [f"{job.weights.name}: {which}"]),
        *(note.removeprefix("default: ") for note in (summary(model).notes if job.adapter is not None else ())),
    ]


def _measure(model: object, job: Job, name: str, scenes: Sequence[Scene]) -> dict[str, float]:
    examples = [load_example(scene, job.scale) for scene in scenes]
    tiling = Tiling(memory_mb=job.memory_mb)
    ways = {"": by_network(model, tiling=tiling)}
    if job.ensemble:
        ways[ENSEMBLE] = by_network(model, ensemble=True, tiling=tiling)
    if multi_view(module_of(model)) is not None:
        ways[SAME_VIEW] = by_network_alone(model, tiling=tiling)
    figures: dict[str, float] = {}
    with progress(f"{job.row}, {name}", len(ways) * len(examples)) as advance:
        for way, enhance in ways.items():
            found = measure(
                enhance,
                examples,
                scale=job.scale,
                protocol=PROTOCOLS.find(job.protocol),
                seen=lambda example, _: advance(example.name),
            )
            means = {MEAN: found.means()[MEAN]} if way == SAME_VIEW else found.means()
            figures |= {way + column: round(value, 5) for column, value in means.items()}
    return figures


def _digest_of(path: Path) -> str:
    """A digest of a file's content, or of the names and contents of all files below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    states = [(p, p.stat()) for p in files]
    found = [(str(p.relative_to(path)), _digest(p, state.st_size, state.st_mtime_ns)) for p, state in states]
    return hashlib.sha256(json.dumps(found).encode(), usedforsecurity=False).hexdigest()[:16]


@functools.cache
def _digest(file: Path, size: int, changed_ns: int) -> str:
    """Of a file's content, which is read once while its size and time of change stay."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.sha256(usedforsecurity=False)).hexdigest()


def _peak_mb(job: Job) -> float:
    """The most memory that was taken so far: of the device on CUDA, of the process elsewhere."""
    if torch.device(job.device).type == "cuda":
        return torch.cuda.max_memory_allocated(job.device) / MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def _provenance(job: Job) -> dict[str, Any]:
    name = device_name(torch.device(job.device))
    return {"lowpeft": version(), "torch": torch.__version__, "device": name, "date": time.strftime("%Y-%m-%d")}


def device_name(device: torch.device) -> str:
    """A device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
