"""The start of adapters whose kind learns its initial values from data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...core.attachment.calls import image_in, to_network, to_plain
from ...core.attachment.record import is_adapted
from ...core.operations.calibration import calibrate, needs_calibration
from ...core.padding import pad_to
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from ..inference.network import multi_view
from .losses import LossOfViews
from .sources import CropSource, Samples, read


def start_from_data(
    module: nn.Module, crops: CropSource | Samples, settings: TrainSettings, facts: ImageFacts, of_views: LossOfViews
) -> None:
    """Calibrate the adapters that start from data and are not calibrated, on the first `settings.calibration` crops.

    The result depends on the crops and the seed alone, so a resumed run gets tensors of the same shapes.

    Raises:
        PlanError: As for `lowpeft.calibrate`.
        LowpeftError: A crop cannot be read.
    """
    if not is_adapted(module) or not needs_calibration(module):
        return
    together = multi_view(module) is not None
    like = next(p for p in module.parameters() if p.is_floating_point())  # for device and dtype

    def batches() -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        for i in range(settings.calibration):
            lr, hr = read(crops, i)
            lr, hr = to_network(pad_to(lr, *facts.sides_for(*lr.shape[-2:])), facts).to(like), hr.to(like)
            yield (lr[:, None].unbind(), hr[:, None].unbind()) if together else ((lr,), (hr,))

    def loss(output: Any, targets: tuple[Tensor, ...]) -> Tensor:
        outputs = output if together else (image_in(output, facts.output),)
        height, width = targets[0].shape[-2:]
        images = [to_plain(image.float(), facts)[..., :height, :width] for image in outputs]
        return of_views(images, [target.float() for target in targets])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        calibrate(module, batches(), loss=loss)
