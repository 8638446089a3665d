"""Refusal of second-order gradients, which leaner backward passes do not have."""

from __future__ import annotations

import torch

from ..errors import PlanError


def refuse_second_order() -> None:
    """Raise if a backward pass records a graph of its own, as with `create_graph=True`.

    Raises:
        PlanError: Gradients are enabled in a backward pass.
    """
    if torch.is_grad_enabled():
        raise PlanError(
            "an optimised network, and LoRA with freeze_a=True, have first-order gradients only, because their "
            "backward passes are not recorded: call backward without create_graph=True, undo with "
            "lowpeft.optimize(model, None), or train A too"
        )
