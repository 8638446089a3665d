"""Training settings of a recipe: its `[training]` table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .. import checks
from ..errors import PlanError

Loss = Literal["l1", "charbonnier", "mse"]
Schedule = Literal["cosine", "multistep", "constant"]
Precision = Literal["no", "bf16"]


def setting(default: Any, text: str) -> Any:
    """Return a field with a default and a help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Training settings of a recipe; `lowpeft train --help` prints what each of them means (`metadata["help"]`)."""

    steps: int = setting(2000, "Number of optimiser steps")
    batch: int = setting(3, "Pairs (or images) per optimiser step, over all processes")
    accumulate: int = setting(
        1,
        "Number of parts into which each process splits its share of the batch, to save memory",
    )
    crop_height_px: int = setting(128, "Height of the HR crop, in pixels")
    crop_width_px: int = setting(320, "Width of the HR crop, in pixels")
    loss: Loss = setting("l1", "Loss function, l1, charbonnier or mse, on values 0..1")
    learning_rate: float = setting(5e-4, "Peak learning rate of AdamW")
    betas: tuple[float, float] = setting((0.9, 0.9), "Two betas of AdamW, each at least 0 and below 1")
    weight_decay: float = setting(0.0, "Weight decay of AdamW")
    schedule: Schedule = setting(
        "cosine",
        "Learning-rate schedule: cosine falls from the peak to final_learning_rate, multistep falls at "
        "milestones, constant stays at the peak",
    )
    milestones: tuple[int, ...] = setting((), "Steps after which multistep multiplies the rate by milestone_factor")
    milestone_factor: float = setting(0.5, "Factor of the rate at each milestone of multistep")
    final_learning_rate: float = setting(1e-7, "Learning rate at the end of cosine")
    warmup_steps: int = setting(0, "Number of steps of the linear rise to the peak")
    clip_norm: float = setting(0.01, "Largest norm of the gradients, which are scaled down to it; 0 means no clipping")
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the trained tensors; the average is then measured and saved. 0 means no "
        "average",
    )
    precision: Precision = setting("no", "bf16 to run the network under autocast, no to run it in its own precision")
    workers: int = setting(
        0,
        "Processes per training process that read crops ahead; 0 reads them in the training process",
    )
    validate_every_steps: int = setting(0, "Steps between measurements during training; 0 means none")
    save_every_steps: int = setting(500, "Steps between checkpoints; 0 means one at the end only")
    keep_checkpoints: int = setting(1, "Number of the newest checkpoints to keep")
    calibration: int = setting(
        64,
        "Number of crops for calibration, for kinds that learn their initial values from data",
    )
    seed: int = setting(0, "Seed of crops, augmentation, dropout and new adapters, from 0 to below 2**63")

    def __post_init__(self) -> None:
        """Raise if a value is out of range.

        Raises:
            PlanError: Values are out of range; all are listed.
        """
        for name in ("betas", "milestones"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = [p for name, least in _WHOLE.items() for p in checks.whole(name, getattr(self, name), least=least)]
        if type(self.seed) is int and self.seed >= _SEEDS:
            problems.append(f"seed must be below 2**63, not {self.seed!r}")
        for name in ("learning_rate", "weight_decay", "final_learning_rate", "clip_norm"):
            problems += checks.number(name, getattr(self, name), least=0)
        for name, choices in _CHOICES.items():
            problems += checks.one_of(name, getattr(self, name), get_args(choices))
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        if not pair or not all(_below_one(b) for b in self.betas):
            problems.append(f"betas must be two numbers in 0..1, not {self.betas!r}")
        if not _below_one(self.ema_decay):
            problems.append(f"ema_decay must be a number of at least 0 and below 1, not {self.ema_decay!r}")
        if problems := problems + self._milestone_problems():
            raise PlanError("the training settings do not work:", problems=problems)

    def _milestone_problems(self) -> list[str]:
        problems = checks.number("milestone_factor", self.milestone_factor, above=0)
        steps = self.milestones
        whole = isinstance(steps, tuple) and all(type(s) is int and s >= 1 for s in steps)
        if not whole or list(steps) != sorted(set(steps)):
            problems.append(f"milestones must be rising whole numbers of at least 1, not {steps!r}")
        elif bool(steps) != (self.schedule == "multistep"):
            problems.append(f"milestones go with schedule multistep, and only with it: {steps!r}, {self.schedule!r}")
        return problems


def _below_one(value: object) -> bool:
    return not checks.number("", value, least=0) and float(value) < 1  # type: ignore[arg-type]


_SEEDS = 2**63  # torch takes seeds below this

_WHOLE = {
    "steps": 1,
    "batch": 1,
    "accumulate": 1,
    "crop_height_px": 1,
    "crop_width_px": 1,
    "warmup_steps": 0,
    "workers": 0,
    "validate_every_steps": 0,
    "save_every_steps": 0,
    "keep_checkpoints": 1,
    "calibration": 1,
    "seed": 0,
}
_CHOICES = {"loss": Loss, "schedule": Schedule, "precision": Precision}
