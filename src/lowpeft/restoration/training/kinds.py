"""Participation of the kinds of adapters in training: their start from data, and their hooks in every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import is_number
from ...core.attachment.calls import image_in, to_network, to_plain
from ...core.attachment.record import is_adapted
from ...core.operations.calibration import calibrate, needs_calibration
from ...core.padding import pad_to
from ...errors import TrainingError
from ...kinds import TrainingPart
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from ..inference.network import multi_view
from .samples import CropSource
from .schedule import mean_loss


def parameter_groups(parameters: Mapping[str, nn.Parameter], hooks: Mapping[str, TrainingPart]) -> list[dict[str, Any]]:
    """Group the parameters by their learning-rate factor (`initial_lr`) for the optimiser.

    Raises:
        TrainingError: A kind gives a factor that is not above 0, or for a name that is not a parameter.
    """
    factors: dict[int, float] = {}
    for hook in hooks.values():
        named = {f"{site}.{n}": p for site, a in hook.adapters.items() for n, p in a.named_parameters()}
        rates = hook.rates()
        if bad := [f"{n}: {f}" for n, f in rates.items() if n not in named or not is_number(f, above=0)]:
            raise TrainingError(
                f"{type(hook).__name__}.rates() must give numbers above 0 by names of parameters; these are not:",
                problems=bad,
            )
        factors |= {id(named[name]): factor for name, factor in rates.items()}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters.values():
        groups.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": members, "initial_lr": factor} for factor, members in groups.items()]


def start_from_data(module: nn.Module, crops: CropSource, settings: TrainSettings, facts: ImageFacts) -> None:
    """Calibrate the adapters that start from data and are not calibrated, on the first `settings.calibration` crops.

    The result depends on the crops and the seed alone, so a resumed run gets tensors of the same shapes.

    Raises:
        PlanError: As for `lowpeft.calibrate`.
        DataError: A crop cannot be read.
    """
    if not is_adapted(module) or not needs_calibration(module):
        return
    together = multi_view(module) is not None
    like = next(p for p in module.parameters() if p.is_floating_point())  # for device and dtype

    def batches() -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        for i in range(settings.calibration):
            lr, hr = crops[i]
            lr, hr = to_network(pad_to(lr, *facts.sides_for(*lr.shape[-2:])), facts).to(like), hr.to(like)
            yield (lr[:, None].unbind(), hr[:, None].unbind()) if together else ((lr,), (hr,))

    def loss(output: Any, targets: tuple[Tensor, ...]) -> Tensor:
        outputs = output if together else (image_in(output, facts.output),)
        height, width = targets[0].shape[-2:]
        images = [to_plain(image.float(), facts)[..., :height, :width] for image in outputs]
        return mean_loss(settings.loss, images, [target.float() for target in targets])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        calibrate(module, batches(), loss=loss)
