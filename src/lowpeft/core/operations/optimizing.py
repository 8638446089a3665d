"""Optimising a network's forwards, opt-in and undone by `restore`: `optimize`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch
from torch import nn

from ...errors import PlanError, did_you_mean
from ...ports.base import base_modules, base_parameters
from ..attachment.changes import Undo, change, one_at_a_time
from ..attachment.record import Memory, has_record, module_of, record_of, root_of, unwrap
from ..attachment.wrappers import refuse_fixed
from ..planning.optimised import find_optimised
from .classes import finish, install_optimisation, undo_optimisation
from .injection import new_record


@one_at_a_time
def optimize(
    model: object, memory: Memory | None = "keep", channels_last: bool = False, *, example: Any = None
) -> nn.Module:
    """Make a frozen network's forwards faster, and let them keep less for backward.

    Any network: convolutions and batch norms with frozen parameters keep no input. HAT, SwinIR, Swin2SR, EDT and timm's
    Swin: attention in windows runs fused, without its scores in memory, and MLPs run in chunks where no gradient is
    wanted. Adapters act as before. Nothing is cached between calls.

    Outputs and gradients change by rounding only (at most 1e-5 of their size): every fused block is compared with the
    original when this is called, and blocks that differ stay as they are (`print(lowpeft.summary(model))` names them).
    While gradients are wanted, they are first order only: `create_graph=True` raises.

    Args:
        model: A network, adapted or not, or a `Backbone`.
        memory: What the blocks of the network keep for backward. `keep`: nothing that takes more than a copy or a
            look-up to make again. `rebuild`: of fused blocks, the outputs of two linear layers are made again too.
            `checkpoint`: each block (or stage, in networks of no known family) keeps its input alone and runs again.
            None undoes an optimisation.
        channels_last: True to lay out the weights of 2-d convolutions channels last, which most of the kernels prefer.
        example: Arguments of one call of the network; see `adapt`. Needed only with `checkpoint`, for networks of no
            known family whose input is not one N,C,H,W tensor: they run on it twice, with a backward pass.

    Returns:
        The same object; the module of a `Backbone`.

    Raises:
        PlanError: `memory` is unknown; or for `checkpoint`, the network has no blocks or stages, or these cannot run
            again. The model is unchanged.
    """
    known = get_args(Memory)
    if memory is not None and memory not in known:
        raise PlanError(
            f"memory must be one of {', '.join(known)}, or None to undo, not {memory!r}"
            + did_you_mean(str(memory), known)
        )
    if not isinstance(channels_last, bool):
        raise PlanError(f"channels_last must be True or False, not {channels_last!r}")
    root = unwrap(model) if has_record(model) else root_of(model)
    refuse_fixed(module_of(model))
    if memory is None:
        if has_record(model) and record_of(root).optimised is not None:
            change(root, lambda undo: _drop(root, undo))
        return module_of(model)
    found = find_optimised(model, root, memory, example)

    def install(undo: Undo) -> None:
        undo_optimisation(root, undo)
        relaid = _layouts(root) if channels_last else {}
        install_optimisation(root, replace(found, relaid=relaid), undo)

    change(root, install, record=None if has_record(model) else new_record(root, model))
    return module_of(model)


def _drop(root: nn.Module, undo: Undo) -> None:
    undo_optimisation(root, undo)
    finish(root)


def _layouts(root: nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return shape and strides, by path, of the weights of 2-d convolutions that can be laid out channels last.

    These are not so already, and share no memory with other tensors or processes.
    """
    owned = {id(m.weight) for _, m in base_modules(root) if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))}
    return {
        path: (tuple(parameter.shape), parameter.stride())
        for path, parameter in base_parameters(root)
        if id(parameter) in owned
        and not parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_shared()  # type: ignore[no-untyped-call]
        and parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()
    }
