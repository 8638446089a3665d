"""Copies of a network that can be run and changed while the original stays unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from ...errors import PlanError
from ...ports.base import all_modules, base_buffers, base_parameters
from .running import in_force
from .settings import Setting
from .slots import Slot, switches_of
from .specialise import set_facets

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model) -> Model:
    """Return a deep copy of a network, adapted or not, that can be run and changed while others use the original.

    Raises:
        PlanError: The network cannot be copied.
    """
    # deepcopy raises for attributes that are non-leaf tensors (e.g. weight_norm's `weight`), so copy these here.
    held = [v for _, m in all_modules(model) for v in m.__dict__.values() if isinstance(v, Tensor) and v.requires_grad]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in held if not t.is_leaf})
    except Exception as error:
        raise PlanError(f"{type(model).__name__} cannot be copied for a trial run: {error}") from error


def copy_in_force(model: Model) -> Model:
    """Return a deep copy whose default setting is the setting in force here for the original.

    Raises:
        PlanError: The network cannot be copied.
    """
    copied = copy_of(model)
    put_in_force(model, copied)
    return copied


def put_in_force(model: nn.Module, copied: nn.Module) -> None:
    """Set a copy's default setting to the setting in force here for the original network."""
    for module, other in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(module, Slot) and isinstance(other, Slot):
            switches_of(other).default = in_force(switches_of(module))


def twin_of(root: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode, with all adapters off, and not optimised.

    Raises:
        PlanError: The network cannot be copied, or a deep copy shares modules with it.
    """
    twin = copy_of(root)
    copies = [module for _, module in all_modules(twin)]
    own = {id(module) for module in copies}
    names = [path or "itself" for path, module in all_modules(root) if id(module) in own]
    if names:
        raise PlanError(
            f"a deep copy of {type(root).__name__} shares modules with it ({names[0]}, …), so it cannot be tried"
        )
    for module in copies:
        module.training = False
        set_facets(module, lean=False, memory=None)
        if isinstance(module, Slot):
            switches_of(module).default = Setting({})
    return twin


def base_state(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the base's parameters and saved floating-point buffers, except attention masks."""
    yield from base_parameters(root)
    yield from ((path, buffer) for path, buffer in _saved_buffers(root) if _is_state(path, buffer))


def identifying_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over `base_state` and the saved integer buffers, without 0-D ones, which are counters."""
    yield from base_parameters(root)
    for path, buffer in _saved_buffers(root):
        if _is_state(path, buffer) or (buffer.dim() and not buffer.is_floating_point()):
            yield path, buffer


def _is_state(path: str, buffer: Tensor) -> bool:
    return buffer.is_floating_point() and not path.rpartition(".")[2].startswith("attn_mask")


def _saved_buffers(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the base's buffers that are in its state dict."""
    buffers = list(base_buffers(root))
    saved = root.state_dict().keys() if buffers else ()
    for path, buffer in buffers:
        if path in saved:
            yield path, buffer
