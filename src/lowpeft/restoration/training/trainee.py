"""What is trained: the model, its optimiser, its averages, and one step of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...core.attachment.record import is_adapted, module_of
from ...core.observation.describe import image_facts
from ...core.operations.state import adapter_state_dict
from ...core.operations.training_parts import training_parts
from ...errors import DivergedError, TrainingError
from ...kinds import TrainingPart
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from ..inference.network import first_parameter, run_padded
from .checkpoint import Checkpoint
from .identity import differences
from .losses import LossOfViews
from .models import check_gradients, trained_name, trained_parameters
from .optimizers import (
    MakeOptimizer,
    make_optimizer,
    optimizer_problems,
    optimizer_tensors,
    optimizer_values,
    parameter_groups,
    restore_optimizer,
)
from .own_code import users_code
from .parallel import Processes, in_parallel, without_exchange
from .samples import MicroBatch
from .schedule import learning_rate


class Trainee:
    """A model in training.

    Attributes:
        module: Module that is trained; `given` is the model as the user passed it, for `validate`.
        network: Module from crops to their loss, the same in every process.
        parameters: Trained parameters by name.
        hooks: Training hooks of the kinds of adapters in the model.
        average: Moving averages of `parameters`, by name; empty without `ema_decay`.
    """

    def __init__(
        self,
        model: object,
        settings: TrainSettings,
        processes: Processes,
        loss: LossOfViews,
        optimizer: MakeOptimizer | None,
    ) -> None:
        self.given, self.settings, self.processes = model, settings, processes
        self.module = module_of(model)
        self.adapted = is_adapted(self.module)
        self.parameters = trained_parameters(self.module)
        self.device = next(iter(self.parameters.values())).device
        self.hooks = training_parts(self.module, settings.steps)
        groups = parameter_groups(self.module, self.parameters, self.hooks, settings.rates)
        self.optimizer = make_optimizer(groups, settings, optimizer)
        # Not `swa_utils.AveragedModel`, which copies the whole network: only the trained tensors are averaged.
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if settings.ema_decay else {}
        loss.prepare(self.device)
        network = _NetworkWithLoss(self.module, settings.precision, image_facts(model), loss)
        self.network = in_parallel(network, processes, sync_buffers=not self.adapted)

    def schedule_from(self, step: int) -> None:
        """Set the learning rates for the step after `step` steps.

        The rate of a group is its factor (`initial_lr`) times the rate of the step. After n steps `last_epoch` is n, so
        a resumed run has the schedule of an uninterrupted one.
        """
        self.schedule = LambdaLR(self.optimizer, lambda n: learning_rate(self.settings, n), last_epoch=step - 1)

    def step(self, parts: list[MicroBatch], number: int, *, first: bool) -> tuple[float, float]:
        """Take an optimiser step; return the batch's loss and the norm of its gradient.

        Raises:
            DivergedError: One of the two is not finite.
            TrainingError: A trained tensor gets no gradient in the first step, or the optimiser fails.
        """
        self.optimizer.zero_grad()  # of what was computed before the run, or by a step that an error ended
        loss_of_batch = self._backward(parts, first=first)
        hooks = self.hooks.values()
        for hook in hooks:
            hook.before_step(number)
        gradient_norm = get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        for what, value in (("loss", loss_of_batch), ("norm of the gradient", gradient_norm.item())):
            if not math.isfinite(value):
                rate = learning_rate(self.settings, number - 1)
                raise DivergedError(f"the {what} is {value}: lower the learning rate (now {rate:.3g})")
        if self.settings.clip_norm:
            clip_grads_with_norm_(self.parameters.values(), self.settings.clip_norm, gradient_norm)
        with users_code(f"the step of the optimiser {type(self.optimizer).__name__} failed"):
            self.optimizer.step()
        self.schedule.step()
        for hook in hooks:
            hook.after_step(number)
        self.optimizer.zero_grad()
        if self.average:
            # The ramp, from TensorFlow's ExponentialMovingAverage, keeps a short run's average from staying near its
            # start: with decay 0.99, step 1 has 0.18, step 100 has 0.92.
            decay = min(self.settings.ema_decay, (1 + number) / (10 + number))
            update_average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            update_average([*self.average.values()], [*self.parameters.values()], number)
        return loss_of_batch, gradient_norm.item()

    def _backward(self, parts: list[MicroBatch], *, first: bool) -> float:
        """Run the batch forward and backward; return its loss."""
        settings, total = self.settings, torch.zeros((), device=self.device)
        for i, part in enumerate(parts):
            # Dropout depends on nothing but the seed and the number of the first sample.
            torch.manual_seed(_seed(settings.seed, part.first))
            share = len(part.lr) / settings.batch
            with without_exchange(self.network, active=i < len(parts) - 1 and not first):
                loss = self.network(part.lr, part.hr) * share
                penalties = [p for hook in self.hooks.values() if (p := hook.penalty()) is not None]
                objective = loss + torch.stack(penalties).sum() * share if penalties else loss
                if not objective.requires_grad:
                    check_gradients(self.parameters)
                (objective * self.processes.number).backward()  # DDP averages over processes; this makes it a sum
            total += loss.detach()
        if self.adapted and first:
            check_gradients(self.parameters)
        return float(self.processes.total(total).item())

    def result(self) -> dict[str, Tensor]:
        """Return the tensors that are the result of training, by name, with those that no gradient changes; no copies.

        They are those of the trained adapter, or of the whole network.
        """
        module = self.module
        return adapter_state_dict(module, name=trained_name(module)) if self.adapted else module.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by name, e.g. "optimizer.exp_avg.body.0.weight"; not copied."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.result(),
            "kinds": {f"{label}.{n}": t for label, hook in self.hooks.items() for n, t in hook.state().items()},
            "average": self.average,
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
        }
        return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    def values(self) -> dict[str, Any]:
        """Return the plain values of the optimiser's state; errors are those of `optimizer_values`."""
        return optimizer_values(self.optimizer, self.parameters)

    def problems_of(self, saved: Checkpoint) -> list[str]:
        """List what keeps a checkpoint from being loaded: other tensors, or another optimiser."""
        names = {f".{name}" for name in self.parameters}
        of_optimizer = {k: t for k, t in saved.tensors.items() if k.startswith("optimizer.")}
        others = {k: t for k, t in saved.tensors.items() if k not in of_optimizer}
        problems = differences(self._without_optimizer(), others)
        problems += [
            f"{key} is the state of no trained tensor" for key in of_optimizer if not any(map(key.endswith, names))
        ]
        state = {k.removeprefix("optimizer."): t for k, t in of_optimizer.items()}
        return problems + optimizer_problems(self.optimizer, self.values(), saved.optimizer, state)

    def _without_optimizer(self) -> dict[str, Tensor]:
        """Return `tensors` but for the state of the optimiser, which it may have only after a step."""
        return {name: tensor for name, tensor in self.tensors().items() if not name.startswith("optimizer.")}

    @torch.no_grad()
    def restore(self, saved: Checkpoint) -> None:
        """Load a checkpoint that has no problems."""
        for name, tensor in self._without_optimizer().items():
            tensor.copy_(saved.tensors[name])
        state = {k.removeprefix("optimizer."): t for k, t in saved.tensors.items() if k.startswith("optimizer.")}
        restore_optimizer(self.optimizer, self.parameters, state, saved.optimizer)

    @torch.no_grad()
    def overwrite(self, values: Mapping[str, Tensor]) -> None:
        """Put other values into the trained parameters."""
        for name, value in values.items():
            self.parameters[name].copy_(value)

    @torch.no_grad()
    def put_result(self, saved: Mapping[str, Tensor] | None) -> None:
        """Put a result, given in the main process alone, into the model of every process.

        Raises:
            TrainingError: It is of another model. Nothing is changed.
        """
        result = self.result()
        if problems := [] if saved is None else differences(result, saved):
            raise TrainingError("the best result so far is not of this run:", problems=problems)
        for name, tensor in result.items():
            tensor.copy_(self.processes.from_main(tensor if saved is None else saved[name].to(tensor.device)))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages, if there are any, in place of the trained tensors within the block."""
        before = {name: self.parameters[name].detach().clone() for name in self.average}
        self.overwrite(self.average)
        try:
            yield
        finally:
            self.overwrite(before)

    def why_no_other_length(self) -> str | None:
        """Return why a run of another number of steps would have gone another way from its first step; else None."""
        if self.settings.schedule == "cosine":
            return "the cosine schedule of another number of steps has other learning rates from the first step on"
        for label, hook in self.hooks.items():
            if any(_overrides(hook, method) for method in ("penalty", "before_step", "after_step")):
                return f"{label} adapters divide the number of steps into phases"
        return None


class _NetworkWithLoss(nn.Module):
    """Module from crops to their loss. DDP wraps it, so that the model itself stays unwrapped.

    Crops get the network's dtype, as in `enhance`; the loss is computed in float32.
    """

    def __init__(self, model: nn.Module, precision: str, facts: ImageFacts, loss: LossOfViews) -> None:
        super().__init__()
        self.model = model
        self._precision, self._facts, self._loss = precision, facts, loss

    def forward(self, lr: Tensor, hr: Tensor) -> Tensor:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            views = lr.to(first_parameter(self.model, default=lr).dtype).unbind(1)
            outputs = run_padded(self.model, views, self._facts)
        return self._loss([output.float() for output in outputs], hr.unbind(1))


def _overrides(hook: TrainingPart, method: str) -> bool:
    return getattr(type(hook), method) is not getattr(TrainingPart, method)


def _seed(seed: int, sample: int) -> int:
    """Return the seed of the micro-batch that begins with this sample."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:8]) >> 1
