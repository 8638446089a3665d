"""Participation of the kinds of adapters in training: their start from data and their part in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import is_number
from ...core.attachment.calls import image_in, to_network, to_plain
from ...core.attachment.record import is_adapted, pieces, unwrap
from ...core.operations.calibration import calibrate, needs_calibration
from ...core.padding import pad_to
from ...errors import TrainingError
from ...kinds import Adapter, TrainingPart
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from ..inference.network import multi_view
from .samples import CropSource
from .schedule import image_loss


class KindParts:
    """Training parts of all kinds in a model, called together; a no-op if no kind has one."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        found: dict[str, tuple[type[TrainingPart], dict[str, Adapter]]] = {}
        for name, site, piece in pieces(unwrap(model)) if is_adapted(model) else ():
            part = piece.training_part_class
            if part is not None and any(p.requires_grad for p in piece.parameters()):
                found.setdefault(f"{name}.{piece.kind}", (part, {}))[1][site] = piece
        self._parts = {label: make(adapters, steps) for label, (make, adapters) in found.items()}

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Group the parameters by their learning-rate factor (`factor`) for the optimiser.

        Raises:
            TrainingError: A kind gives a factor that is not above 0, or for a name that is not a parameter.
        """
        factors: dict[int, float] = {}
        for part in self._parts.values():
            named = {f"{site}.{n}": p for site, a in part.adapters.items() for n, p in a.named_parameters()}
            rates = part.rates()
            bad = [f"{n}: {f}" for n, f in rates.items() if n not in named or not is_number(f, above=0)]
            if bad:
                raise TrainingError("these are no factors of the learning rate of a parameter:", problems=bad)
            factors |= {id(named[name]): factor for name, factor in rates.items()}
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters.values():
            groups.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
        return [{"params": members, "factor": factor} for factor, members in groups.items()]

    def penalty(self) -> Tensor | None:
        """Return the sum of the penalties that the kinds add to the loss; None if they add nothing."""
        found = [p for part in self._parts.values() if (p := part.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def before_step(self, step: int) -> None:
        """Tell the kinds that the gradients of a step are complete."""
        for part in self._parts.values():
            part.before_step(step)

    def after_step(self, step: int) -> None:
        """Tell the kinds that the optimiser has moved the parameters."""
        for part in self._parts.values():
            part.after_step(step)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs, by name; not copied."""
        return {f"{label}.{name}": t for label, part in self._parts.items() for name, t in part.state().items()}


def start_from_data(module: nn.Module, crops: CropSource, settings: TrainSettings, facts: ImageFacts) -> None:
    """Calibrate the adapters that start from data and are not calibrated, on the first `settings.calibration` crops.

    The result depends on the crops and the seed alone, so a resumed run gets tensors of the same shapes.

    Raises:
        PlanError: As for `lowpeft.calibrate`.
    """
    if not is_adapted(module) or not needs_calibration(module):
        return
    together = multi_view(module) is not None

    def batches() -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        for i in range(settings.calibration):
            lr, hr = crops[i]
            lr = to_network(pad_to(lr, *facts.sides_for(*lr.shape[-2:])), facts)
            yield (lr[:, None].unbind(), hr[:, None].unbind()) if together else ((lr,), (hr,))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        calibrate(module, _on_device(batches(), module), loss=_loss(settings, facts, together=together))


def _on_device(batches: Iterator[Any], module: nn.Module) -> Iterator[Any]:
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    for inputs, targets in batches:
        yield tuple(x.to(parameter) for x in inputs), tuple(t.to(parameter) for t in targets)


def _loss(settings: TrainSettings, facts: ImageFacts, *, together: bool) -> Callable[[Any, Any], Tensor]:
    """Return the recipe's loss of one scene as a function, on values 0..1.

    Args:
        settings: Settings that name the loss.
        facts: Facts of the network.
        together: True if the output is a tuple with one image per view.
    """

    def loss(output: Any, targets: tuple[Tensor, ...]) -> Tensor:
        outputs = output if together else (image_in(output, facts.output),)
        losses = [
            image_loss(settings.loss, to_plain(sr.float(), facts)[..., : hr.shape[-2], : hr.shape[-1]], hr.float())
            for sr, hr in zip(outputs, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    return loss
