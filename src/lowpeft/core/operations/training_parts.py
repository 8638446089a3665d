"""The parts that kinds have in training, for `lowpeft.restoration.training.train` and for loops of one's own."""

from __future__ import annotations

from ...kinds import Adapter, TrainingPart
from ..attachment.record import is_adapted, module_of, pieces, unwrap


def training_parts(model: object, steps: int) -> dict[str, TrainingPart]:
    """Return the parts that kinds of adapters have in training, for a training loop of your own.

    `adalora` moves its ranks by one, and `lora` with `b_rate` has learning rates. In a step, add each part's
    `penalty()` to the loss unless it is None; call `before_step(n)` after backward, and `after_step(n)` after the
    optimiser's step, while the gradients exist; n counts from 1. `rates()` are factors of the learning rate, by site
    and name. `lowpeft.restoration.training.train` does all of it.

    Args:
        model: An adapted model; a network without adapters has no parts.
        steps: Number of all steps of the training.

    Returns:
        The parts by adapter and kind, e.g. "default.adalora"; only of adapters that are trained.

    Raises:
        PlanError: A kind cannot be trained in that number of steps.
    """
    found: dict[str, tuple[type[TrainingPart], dict[str, Adapter]]] = {}
    for name, site, piece in pieces(unwrap(model)) if is_adapted(module_of(model)) else ():
        part = piece.training_part_class
        if part is not None and any(p.requires_grad for p in piece.parameters()):
            found.setdefault(f"{name}.{piece.kind}", (part, {}))[1][site] = piece
    return {label: part(adapters, steps) for label, (part, adapters) in found.items()}
