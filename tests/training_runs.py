"""Small training runs for the tests, and for processes that the tests start, which import nothing but lowpeft.

python training_runs.py ranks OUT      one of several processes of the runs in RUNS
python training_runs.py kills OUT SEED a run that is killed ten times, and one that is not
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lowpeft
from lowpeft import Backbone
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.training import Step, Trackers, Trained, train, trained_parameters


@dataclass(frozen=True)
class Named:
    name: str


@dataclass
class Samples:
    """Crops of noise: `samples[i]` depends on the seed and i alone."""

    crop_px: tuple[int, int] = (24, 48)
    scale: int = 2
    views: int = 2
    seed: int = 0
    scenes: Sequence[Named] = (Named("a"), Named("b"))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        height, width = self.crop_px
        lr = torch.rand(self.views, 3, height // self.scale, width // self.scale, generator=generator)
        hr = lr.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)
        return lr, (hr + 0.1 * torch.rand(hr.shape, generator=generator)).clamp(0, 1)


class Small(nn.Module):
    """A x2 network with all that a run must keep: dropout, moving statistics, a layer whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.other_task = nn.Conv2d(8, 12, 3, padding=1)
        self.tail = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.drop(self.norm(self.head(x)).relu())
        always = torch.ones((), dtype=torch.bool, device=x.device)
        chosen = torch.where(always, self.tail(features), self.other_task(features.detach()))
        return nn.functional.pixel_shuffle(chosen, 2)


def small() -> Backbone:
    torch.manual_seed(0)
    return lowpeft.describe(Small(), scale=2, value_range=(0.0, 1.0), size_multiple=1, channels=3)


def edt() -> Backbone:
    torch.manual_seed(0)
    module = EDT(EDTConfig(tasks=("sr_x2",), features=4, dim=16, heads=2, depths=(1, 1), image_px=24))
    return lowpeft.describe(module.eval())


SETTINGS = TrainSettings(
    steps=6,
    batch=3,
    crop_height_px=24,
    crop_width_px=48,
    learning_rate=1e-3,
    betas=(0.9, 0.99),
    clip_norm=0.1,
    ema_decay=0.9,
    warmup_steps=2,
    save_every_steps=2,
)
PLAIN = replace(SETTINGS, ema_decay=0.0, warmup_steps=0, steps=4)
CONSTANT = replace(SETTINGS, schedule="constant")
VALIDATED = replace(CONSTANT, validate_every_steps=1, steps=8)


def model_of(recipe: str) -> nn.Module:
    """The model of a recipe; `whole` is a network without adapters."""
    if recipe == "whole":
        return small().module
    if recipe == "full":  # of two layers, one of which has no effect
        return lowpeft.adapt(small(), [lowpeft.FullConfig(target=["tail.*", "other_task.*"])])
    base = edt()
    torch.manual_seed(1)
    return lowpeft.adapt(base, recipe)


def go(recipe: str, settings: TrainSettings, **options: Any) -> tuple[nn.Module, Trained]:
    """A whole run."""
    model = model_of(recipe)
    return model, train(model, Samples(), settings, **options)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Stop(BaseException):
    """What no code catches, as a power cut."""


def stop_after(step: int) -> Callable[[Step], None]:
    """A report that ends the run after a step."""

    def report(done: Step) -> None:
        if done.step == step:
            raise Stop

    return report


# --- Several processes
RUNS = {
    "stereo": ("stereo", SETTINGS),
    "uneven": ("stereo-only", replace(SETTINGS, batch=5, accumulate=2)),
    "idle": ("full", replace(SETTINGS, batch=4, accumulate=2)),
}


BEST = replace(VALIDATED, patience=1)
"""Settings of a run of which each process writes its model to `best-RANK.safetensors`."""


def ranks(out: Path) -> None:
    for name, (recipe, settings) in RUNS.items():
        go(recipe, settings, out=out / name)
    model, done = go("stereo", BEST, validate=lambda m: 0.0)
    save_file(
        {**state_of(model), "step": torch.tensor(done.result_step)}, out / f"best-{os.environ['RANK']}.safetensors"
    )


# --- Kills
KILLED = {
    "whole": replace(SETTINGS, steps=60, batch=2, save_every_steps=1, validate_every_steps=7, patience=7),
    "stereo": replace(SETTINGS, steps=30, batch=2, save_every_steps=2, validate_every_steps=7, patience=3),
}
ENDS = {"whole": 56, "stereo": 28}
"""The steps after which they are out of patience, because their figure never changes."""


def fork(recipe: str, out: Path) -> int:
    """A process that goes on with the run in the folder, or begins it."""
    pid = os.fork()
    if not pid:
        tracked = [Trackers(["tensorboard"])]
        go(recipe, KILLED[recipe], out=out, resume=True, validate=lambda m: float(m.training), callbacks=tracked)
        os._exit(0)
    return pid


def rows(out: Path) -> int:
    """How many steps the log has."""
    log = out / "training.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kills(out: Path, seed: str) -> None:
    """Kill a run ten times at random moments, let it end, and run another one without being killed."""
    recipe = out.name
    draw, moments = random.Random(f"{recipe} {seed}"), []
    for module in (
        "accelerate",
        "matplotlib.figure",
        "tensorboard",
        "accelerate.tracking",
        "torch._dynamo",
        "torch.utils.tensorboard",
    ):
        importlib.import_module(module)  # here, so that the processes begin at once
    for step in sorted(draw.sample(range(ENDS[recipe]), 10)):
        pid = fork(recipe, out / "killed")
        while rows(out / "killed") < step:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))  # in a step, or while a checkpoint or an adapter is written
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        moments.append(rows(out / "killed") if os.WIFSIGNALED(status) else -1)
    ends = [os.waitpid(fork(recipe, out / name), 0)[1] for name in ("killed", "intact")]
    print(json.dumps({"moments": moments, "ends": ends}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"ranks": ranks, "kills": kills}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
