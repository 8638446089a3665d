"""Finding trainable tensors that no gradient reaches, before training."""

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
"""Standard deviations of the adapters' random values, one draw after the other until every gradient is there."""


def check_trainable(model: object, *inputs: Any, example: Any = None) -> None:
    """Run one step's forward and backward in training mode and refuse trainable tensors that get no gradient.

    That happens on a copy, as in training, checkpointing included, in the setting that is in force here (`using`). The
    adapters' values are random there, because a new adapter's zeros stop the gradient of the layers before them.

    Args:
        model: An adapted model, or any module with trainable parameters.
        inputs: Arguments for one call. Without any, random images of a size that the network takes.
        example: What the network is called with, where that is not one N,C,H,W tensor, in the form that `adapt` takes;
            a model of several views gets as many of them.

    Raises:
        PlanError: Naming every trainable tensor whose gradient is missing or not finite, and those whose gradient is
            zero everywhere, unless their kind says that it must be.
    """
    module = module_of(model)
    if not any(p.requires_grad for p in module.parameters()):
        raise PlanError("no parameter of the model requires a gradient")
    module = _to_call(module)
    given = Example(inputs, {}) if inputs else _inputs_for(module, None if example is None else Example.of(example))
    missing: dict[str, str] | None = None
    for seed, spread in enumerate(SPREADS):
        found = _problems(_copy_of(module).train(), given, seed, spread)
        # Random values may silence a layer behind a ReLU: only a tensor that no draw reaches is named.
        missing = found if missing is None else {n: p for n, p in found.items() if n in missing}
        if not missing:
            return
    count = sum(p.requires_grad for p in module.parameters())
    problems = [f"{name}: {problem}" for name, problem in (missing or {}).items()]
    raise PlanError(f"{len(problems)} of {count} trainable tensors cannot be trained:", problems=problems)


@one_at_a_time
def _copy_of(module: nn.Module) -> nn.Module:
    return copy_in_force(module)


def _problems(copy: nn.Module, example: Example, seed: int, spread: float) -> dict[str, str]:
    """What is wrong with the gradients of one draw of the adapters' values, by name; writes the copy."""
    generator = torch.Generator().manual_seed(seed)
    trainable = {n: p for n, p in copy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.grad = None
            if SLOT in name.split("."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
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
    found = {n: _gradient_problem(p, id(p) in expected) for n, p in trainable.items()}
    return {n: problem for n, problem in found.items() if problem is not None}


def _to_call(module: nn.Module) -> nn.Module:
    """What is called, without torch's wrappers, which copies of a network need not have."""
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
        return "its gradient is zero everywhere"
    return None


def _weighted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random projection, so that no gradient cancels by symmetry."""
    return (tensor.float() * torch.randn(tensor.shape, generator=generator).to(tensor.device)).sum()
