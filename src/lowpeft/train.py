"""The training loop: L1 on both views, AdamW on the adapters alone, one process, one device."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Backbone
from .data import Crop, StereoPairs
from .errors import TrainingError
from .files import save_adapter
from .inference import run
from .model import adapter_parameters
from .recipes import TrainSettings

LOG = "training.jsonl"
LOG_EVERY_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is known after an optimiser step.

    Attributes:
        step: Number of steps taken.
        loss: L1 of this step's batch, values 0..1.
        learning_rate: Of this step.
        seconds: Since training began.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of the step with that number (from 0): linear warm-up, then constant or half a cosine."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def crop_for(backbone: Backbone) -> tuple[int, int] | None:
    """Height and width of the only HR crop that the network can be trained on; None for any."""
    if backbone.fixed_px is None:
        return None
    side = backbone.fixed_px * backbone.scale
    return side, side


def pair_loss(model: nn.Module, crop: Crop, backbone: Backbone) -> Tensor:
    """Mean absolute error over both views, values 0..1."""
    left, right = run(model, (crop.lr_left, crop.lr_right), backbone)
    return (F.l1_loss(left, crop.hr_left) + F.l1_loss(right, crop.hr_right)) / 2


def train(
    model: nn.Module,
    pairs: StereoPairs,
    settings: TrainSettings,
    backbone: Backbone,
    *,
    out: Path | None = None,
    report: Callable[[Step], None] | None = None,
) -> list[Step]:
    """Train the adapters of a model on stereo pairs.

    Crops and augmentation depend on `settings.seed` alone, so the same call gives the same adapter on one machine.

    Args:
        model: An adapted model; only its adapters are trained.
        pairs: Where crops come from; their size and scale must be the settings' and the network's.
        settings: Of the recipe.
        backbone: The facts of its network.
        out: A folder that gets a log, and the adapter every `settings.save_every_steps` steps and at the end.
        report: Called after every step.

    Returns:
        Every step.

    Raises:
        TrainingError: The network takes crops of another size only; or the loss is not finite; the adapter that was
            last saved is intact.
    """
    wanted, crop_px = crop_for(backbone), pairs.crop_px
    if wanted is not None and wanted != crop_px:
        raise TrainingError(
            f"{backbone.architecture} is trained on crops of {wanted[0]}x{wanted[1]} HR px, "
            f"not {crop_px[0]}x{crop_px[1]}"
        )
    parameters = [p for _, p in adapter_parameters(model)]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(settings.seed)
    steps: list[Step] = []
    started = time.monotonic()
    model.train()
    for number in range(settings.steps):
        rate = learning_rate(settings, number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = pair_loss(model, _on(pairs.batch(settings.batch, generator), device), backbone)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {number + 1}: lower the learning rate (now {rate:.3g}) or the "
                "gradient clip. Nothing was saved since the last checkpoint"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        elapsed = time.monotonic() - started
        steps.append(Step(step=number + 1, loss=loss.item(), learning_rate=rate, seconds=elapsed))
        if report is not None:
            report(steps[-1])
        every = settings.save_every_steps
        if out is not None and (number + 1 == settings.steps or (every and (number + 1) % every == 0)):
            save_adapter(model, out)
            _write_log(out / LOG, steps)
    model.eval()
    return steps


def _on(crop: Crop, device: torch.device) -> Crop:
    views = (crop.lr_left, crop.lr_right, crop.hr_left, crop.hr_right)
    return Crop(*(v.to(device, non_blocking=True) for v in views))


def _write_log(path: Path, steps: list[Step]) -> None:
    rows = steps[LOG_EVERY_STEPS - 1 :: LOG_EVERY_STEPS] or steps
    path.write_text("".join(json.dumps(vars(s)) + "\n" for s in rows), encoding="utf-8")
