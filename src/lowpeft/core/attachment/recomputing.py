"""Blocks that keep their input alone and run again in backward (activation checkpointing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ...errors import PlanError
from ...ports.base import base_modules
from .slots import pieces_in, slots


def recomputed(module: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a module's forward so that backward repeats it, and nothing but its arguments is kept.

    Args:
        module: The module.
        run: Its forward, a function of the module and the arguments.
        args: Arguments.
        kwargs: Keyword arguments.

    Raises:
        PlanError: The forward writes to one of its arguments or to statistics, so it cannot be repeated.
    """
    if not torch.is_grad_enabled():
        return run(module, *args, **kwargs)
    if any(isinstance(part, _BatchNorm) and part.training for part in module.modules()):
        raise PlanError(
            f'{type(module).__name__} has a batch norm in training mode, whose statistics memory="checkpoint" would '
            'update twice: use memory="keep" or "rebuild"'
        )
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_inference()]
    versions = [tensor._version for tensor in given]
    output = checkpoint(
        run, module, *args, use_reentrant=False, preserve_rng_state=_draws_random_numbers(module), **kwargs
    )
    if [tensor._version for tensor in given] != versions:
        raise PlanError(
            f'{type(module).__name__} changes its input in place, so memory="checkpoint" cannot repeat it in backward: '
            'use memory="keep" or "rebuild"'
        )
    return output


def _draws_random_numbers(module: nn.Module) -> bool:
    """Return whether a module may draw random numbers: a base in training mode, dropout, or an adapter of own code."""
    if any(part.training for _, part in base_modules(module)):
        return True
    adapters = [piece for _, _, slot in slots(module) for piece in pieces_in(slot) if piece.training]
    if any(not type(piece).__module__.startswith("lowpeft.") for piece in adapters):
        return True
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for piece in adapters for m in piece.modules())
