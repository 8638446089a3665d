"""Training settings of a recipe: its `[training]` table."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .. import checks
from ..errors import PlanError
from ..ports.patterns import matcher
from .losses import LOSSES, loss_terms

Optimizer = Literal["adamw", "adam", "nadam", "sgd"]
Schedule = Literal["cosine", "multistep", "constant"]
Precision = Literal["no", "bf16"]


def setting(default: Any, text: str, **limits: float) -> Any:
    """Return a field with a default, a help text and, for a number, limits as in `checks`; by default `least=0`."""
    return field(default=default, metadata={"help": text, "limits": limits or {"least": 0}})


def rate_of(text: str) -> tuple[str, float]:
    """Return the pattern and the factor of one of `TrainSettings.rates`, e.g. ("stereo", 2.0) for "stereo=2".

    Raises:
        ValueError: It is not a pattern, an equals sign and a number above 0.
    """
    pattern, equals, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = 0.0
    if not equals or not pattern.strip() or not checks.is_number(value, above=0):
        raise ValueError(f"rates: {text!r} is not PATTERN=FACTOR with a factor above 0, as in 'stereo=2'")
    return pattern.strip(), value


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Training settings of a recipe; `lowpeft train --help` prints what each of them means (`metadata["help"]`)."""

    steps: int = setting(2000, "Number of optimiser steps", least=1)
    batch: int = setting(3, "Pairs (or images) per optimiser step, over all processes", least=1)
    accumulate: int = setting(
        1, "Number of parts into which each process splits its share of the batch, to save memory", least=1
    )
    crop_height_px: int = setting(128, "Height of the HR crop, in pixels", least=1)
    crop_width_px: int = setting(320, "Width of the HR crop, in pixels", least=1)
    loss: str = setting("l1", f"Loss on values 0..1: {', '.join(LOSSES)}, or a sum with weights such as 'l1 + 0.1*fft'")
    optimizer: Optimizer = setting("adamw", "Optimiser of torch.optim: adamw, adam, nadam or sgd")
    learning_rate: float = setting(
        5e-4, "Peak learning rate; a recipe's is for the recipe's steps, and much shorter runs want more", above=0
    )
    rates: tuple[str, ...] = setting(
        (),
        "Factors of the learning rate, each PATTERN=FACTOR: for the tensors of a kind of adapter (stereo=2) or with "
        "names that a pattern matches (**.norm*=0.5); factors of the same tensor multiply",
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.9), "Two betas of the optimiser, each at least 0 and below 1; the first is the momentum of sgd"
    )
    weight_decay: float = setting(0.0, "Weight decay of the optimiser")
    schedule: Schedule = setting(
        "cosine",
        "Learning-rate schedule: cosine falls from the peak to final_learning_rate, multistep falls at "
        "milestones, constant stays at the peak",
    )
    milestones: tuple[int, ...] = setting((), "Steps after which multistep multiplies the rate by milestone_factor")
    milestone_factor: float = setting(0.5, "Factor of the rate at each milestone of multistep", above=0)
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
        0, "Processes per training process that read crops ahead; 0 reads them in the training process"
    )
    validate_every_steps: int = setting(0, "Steps between measurements during training; 0 means none")
    patience: int = setting(
        0,
        "Number of measurements without a new best after which training stops; above 0 the result is then the best "
        "state, not the last. 0 means that it does not stop",
    )
    save_every_steps: int = setting(500, "Steps between checkpoints; 0 means one at the end only")
    keep_checkpoints: int = setting(1, "Number of the newest checkpoints to keep", least=1)
    calibration: int = setting(
        64, "Number of crops for calibration, for kinds that learn their initial values from data", least=1
    )
    seed: int = setting(0, "Seed of crops, augmentation, dropout and new adapters, from 0 to below 2**63")

    def __post_init__(self) -> None:
        """Raise if a value is out of range.

        Raises:
            PlanError: Values are out of range; all are listed.
        """
        problems, types = [], get_type_hints(TrainSettings)
        for known in fields(self):
            name, value, kind = known.name, getattr(self, known.name), types[known.name]
            if kind is int:
                problems += checks.whole(name, value, **known.metadata["limits"])
            elif kind is float:
                problems += checks.number(name, value, **known.metadata["limits"])
            elif get_origin(kind) is Literal:
                problems += checks.one_of(name, value, get_args(kind))
            elif isinstance(value, list):  # TOML has lists, not tuples
                object.__setattr__(self, name, tuple(value))
        if checks.is_whole(self.seed, least=2**63):  # torch takes seeds below this
            problems.append(f"seed must be below 2**63, not {self.seed!r}")
        if checks.is_number(self.ema_decay, above=-1) and self.ema_decay >= 1:
            problems.append(f"ema_decay must be below 1, not {self.ema_decay!r}")
        if self.patience and not self.validate_every_steps:
            problems.append("patience counts measurements: set validate_every_steps too")
        if problems := problems + self._problems_of_loss() + self._problems_of_tuples():
            raise PlanError("these training settings are not valid:", problems=problems)

    def _problems_of_loss(self) -> list[str]:
        try:
            loss_terms(self.loss)
        except (AttributeError, TypeError, ValueError) as error:
            return [str(error) if isinstance(self.loss, str) else f"loss must be a string, not {self.loss!r}"]
        return []

    def _problems_of_rates(self) -> list[str]:
        """List what is wrong with `rates`; which tensors they name is known when a model is trained."""
        if not isinstance(self.rates, tuple) or not all(isinstance(rate, str) for rate in self.rates):
            return [f"rates must be a list of strings such as 'stereo=2', not {self.rates!r}"]
        problems = []
        for rate in self.rates:
            try:
                matcher(rate_of(rate)[0].removeprefix("!"))
            except (PlanError, ValueError) as error:
                problems.append(str(error))
        return problems

    def _problems_of_tuples(self) -> list[str]:
        problems = self._problems_of_rates()
        betas = self.betas if isinstance(self.betas, tuple) else ()
        if len(betas) != 2 or not all(checks.is_number(b, above=-1) and 0 <= b < 1 for b in betas):
            problems.append(f"betas must be two numbers of at least 0 and below 1, not {self.betas!r}")
        steps = self.milestones
        whole = isinstance(steps, tuple) and all(checks.is_whole(s, least=1) for s in steps)
        if not whole or list(steps) != sorted(set(steps)):
            problems.append(f"milestones must be rising whole numbers of at least 1, not {steps!r}")
        elif self.schedule == "multistep" and not steps:
            problems.append("schedule 'multistep' needs milestones")
        elif self.schedule != "multistep" and steps:
            problems.append(f"milestones are used only by schedule 'multistep', not {self.schedule!r}: {steps!r}")
        return problems
