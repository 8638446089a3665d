"""Does an adapted network give the same output after its adapters are merged?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...ports.facts import RECORD
from ..attachment.copies import copy_in_force, put_in_force
from ..attachment.record import record_of
from ..attachment.views import ViewBatch
from .examples import Example
from .generators import kept_generators
from .outputs import float_tensors
from .trial import Trial

ROUNDING = 50
"""Tolerance for merging, in relative steps (`eps`) of the output's dtype; the larger of both tolerances applies."""
SHARE = 0.05
"""Tolerance for merging, as a share of the adapters' effect on the output."""


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in float_tensors(output) if t.numel()]


def _outputs(copied: nn.Module, example: Example) -> list[Tensor]:
    """Return the outputs of a copy with its current settings; if it takes several views, it gets one image per view."""
    views = record_of(copied).views if RECORD in copied.__dict__ else 1
    if views > 1:
        example = Example((ViewBatch.of(example.views(views)),), {})
    with torch.no_grad(), kept_generators(copied):
        return _tensors(example.call(copied))


class OutputComparison:
    """Outputs of a copy of an adapted network on one example, without and with adapters, computed before merging."""

    def __init__(self, root: nn.Module, example: Example | None) -> None:
        facts = record_of(root).facts
        trial = Trial(root, example, facts)
        self.example: Example | None = None
        try:
            self.example = trial.running_example()
        except PlanError:
            if example is not None:
                raise
            return
        views = record_of(root).views
        plain = self.example.of_images(views) if views > 1 else self.example
        self.base = _tensors(trial.call(plain))  # in a trial's copy, adapters are off
        put_in_force(root, trial.twin)
        self.adapted = _outputs(trial.twin, self.example)

    def difference(self, merged: nn.Module) -> float | None:
        """Return the change by merging, as a share of the largest value; None without an example or output tensors.

        Raises:
            PlanError: The change is larger than rounding explains.
        """
        if self.example is None or not self.adapted:
            return None
        worst = 0.0
        outputs = _outputs(copy_in_force(merged).eval(), self.example)
        for base, adapted, now in zip(self.base, self.adapted, outputs, strict=True):
            wide = torch.promote_types(adapted.dtype, torch.float32)
            # NaN and infinity, e.g. from a network without trained weights, are ignored.
            base, before, after = (t.to(wide).nan_to_num(0.0, 0.0, 0.0) for t in (base, adapted, now))
            scale = float(before.abs().max()) or 1.0
            effect, change = float((before - base).abs().max()), float((after - before).abs().max())
            if not change <= max(ROUNDING * torch.finfo(adapted.dtype).eps * scale, SHARE * effect):
                raise PlanError(
                    f"merging would change the output by {change:.3g}, compared to {effect:.3g} by the adapters, so "
                    "the training would be lost: the network overwrites some of these weights when it runs. Nothing "
                    "was merged"
                )
            worst = max(worst, change / scale)
        return worst
