"""Check before training that every trainable tensor gets a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...kinds import Adapter
from ...ports.base import SLOT
from ...ports.facts import RECORD
from ..attachment.changes import one_at_a_time
from ..attachment.copies import copy_in_force
from ..attachment.record import module_of, record_of, root_of
from ..attachment.views import MultiViewModel
from ..attachment.wrappers import layers, network_in
from ..observation.examples import Example
from ..observation.generators import kept_generators
from ..observation.outputs import float_tensors
from ..observation.trial import Trial

SPREADS = (0.1, 0.02, 0.3)
"""Standard deviations of the adapters' random values, tried in turn until every tensor has had a gradient."""


def check_trainable(model: object, *inputs: Any, example: Any = None) -> None:
    """Run one forward and backward pass in training mode and raise if a trainable tensor gets no gradient.

    This runs on a copy, as in training: with checkpointing if it is on, and in the setting that is in force (`using`).
    The copy's adapters get random values, because the zeros of a new adapter stop the gradient of the layers before.

    Args:
        model: An adapted model, or any module with trainable parameters.
        inputs: Arguments of one call; random images of a fitting size by default.
        example: Arguments of one call of the network, used if there are no `inputs`; see `adapt`. A model of n views
            gets n of its images, or its first image n times if it has fewer.

    Raises:
        PlanError: A gradient is missing, not finite, or zero everywhere; the message names all these tensors. A zero
            gradient is accepted where the adapter's kind declares it (`zero_gradients`). Or nothing is trainable.
    """
    module = module_of(model)
    if not any(p.requires_grad for p in module.parameters()):
        raise PlanError("no parameter of the model requires a gradient")
    module = _to_call(module)
    given = Example(inputs, {}) if inputs else _inputs_for(module, None if example is None else Example.of(example))
    missing: dict[str, str] | None = None
    for seed, spread in enumerate(SPREADS):
        found = _problems(_copy_of(module).train(), given, seed, spread)
        # Random values may silence a layer behind a ReLU, so report only tensors that fail in every draw.
        missing = found if missing is None else {n: p for n, p in found.items() if n in missing}
        if not missing:
            return
    count = sum(p.requires_grad for p in module.parameters())
    problems = [f"{name}: {problem}" for name, problem in (missing or {}).items()]
    raise PlanError(f"{len(problems)} of {count} trainable tensors get no usable gradient:", problems=problems)


@one_at_a_time
def _copy_of(module: nn.Module) -> nn.Module:
    return copy_in_force(module)


def _problems(copy: nn.Module, example: Example, seed: int, spread: float) -> dict[str, str]:
    """Find problems with gradients, by parameter name, for one draw of random adapter values; writes the copy."""
    generator = torch.Generator().manual_seed(seed)
    trainable = {n: p for n, p in copy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.grad = None
            if SLOT in name.split("."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * spread)
    with torch.enable_grad(), kept_generators(copy):
        loss = sum((_weighted(t, generator) for t in float_tensors(example.call(copy))), start=torch.zeros(()))
        if isinstance(loss, Tensor) and loss.requires_grad:
            torch.autograd.backward(loss)
    expected = {
        id(getattr(piece.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]))
        for piece in copy.modules()
        if isinstance(piece, Adapter)
        for n in piece.zero_gradients
    }
    problems = {n: _gradient_problem(p, id(p) in expected) for n, p in trainable.items()}
    return {n: problem for n, problem in problems.items() if problem is not None}


def _to_call(module: nn.Module) -> nn.Module:
    """Return the multi-view model in a module if there is one, else the network; torch's wrappers are left out."""
    return next((layer for layer in layers(module) if isinstance(layer, MultiViewModel)), network_in(module))


@one_at_a_time
def _inputs_for(module: nn.Module, example: Example | None) -> Example:
    root = root_of(module)
    facts = record_of(root).facts if RECORD in root.__dict__ else None
    found = Trial(root, example, facts).running_example()
    return Example(found.views(module.views), {}) if isinstance(module, MultiViewModel) else found


def _gradient_problem(parameter: nn.Parameter, may_be_zero: bool) -> str | None:
    if parameter.grad is None:
        return "the output does not depend on it"
    if not torch.isfinite(parameter.grad).all():
        return "its gradient is not finite"
    if not parameter.grad.any() and not may_be_zero:
        return "all values of its gradient are zero"
    return None


def _weighted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sum of the tensor times random weights; with equal weights, gradients could cancel by symmetry."""
    return (tensor.float() * torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor.device)).sum()
