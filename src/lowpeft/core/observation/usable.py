"""Checks before a network is run: it must have dense tensors with values, and the forward method of its class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import PlanError
from ..attachment.specialise import original_class
from ..attachment.wrappers import own_forward


def refuse_unusable(root: nn.Module) -> None:
    """Refuse a network that cannot be adapted in its present state, with any recipe.

    Raises:
        PlanError: The network is unusable; the message says why, and what to do.
    """
    name = original_class(root).__name__
    if torch.is_inference_mode_enabled():
        raise PlanError("adapters made in inference mode cannot be trained: leave torch.inference_mode() first")
    if isinstance(root, torch.jit.ScriptModule):
        raise PlanError(f"{name} is a TorchScript module, which cannot be adapted: adapt the Python module")
    if own_forward(root) is not None:
        raise PlanError(
            f"{name} has a `forward` set on the instance (as accelerate's `prepare` with mixed precision, an "
            "offloading hook or a patch does), which would bypass the adapters: adapt the network before its forward "
            "is replaced"
        )
    if problems := list(_problems(root)):
        raise PlanError(f"{name} cannot be adapted:", problems=problems)


def _problems(root: nn.Module) -> Iterator[str]:
    tensors = [*root.named_parameters(), *root.named_buffers()]
    kinds = {
        "lazy, without a shape: run the network once": [n for n, t in tensors if is_lazy(t)],
        "on the meta device, without values: load the weights first": [
            n for n, t in tensors if not is_lazy(t) and t.is_meta
        ],
        "sparse: make them dense": [n for n, t in tensors if not is_lazy(t) and t.layout != torch.strided],
        "quantised: adapt the network before it is quantised": [
            n for n, t in tensors if not is_lazy(t) and t.is_quantized
        ],
    }
    for what, names in kinds.items():
        if names:
            yield f"{len(names)} of its tensors are {what} ({names[0]}, …)"
    packed = [n for n, m in root.named_modules() if "quantized" in type(m).__module__ and "torch" in type(m).__module__]
    if packed:
        yield (
            f"{len(packed)} layers are quantised, with weights that are not tensors ({packed[0] or 'the network'}, …): "
            "adapt the network before it is quantised"
        )


def refuse_moving_statistics(root: nn.Module, advice: str, moved: Sequence[str] = ()) -> None:
    """Refuse a base whose running statistics would change in training, because an adapter file cannot store them.

    Args:
        root: The network.
        advice: Advice to the user, as the end of the message.
        moved: Paths of the base's tensors that a forward pass in training mode changed.

    Raises:
        PlanError: There are such statistics; the problems list the layers.
    """
    moving = [
        path
        for path, module in root.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    ]
    moving += [path for path in moved if path.rpartition(".")[0] not in moving]
    if moving:
        raise PlanError(
            "with freeze_statistics = false, training would change the running statistics of these layers, which "
            f"belong to the frozen base and are not saved; {advice}",
            problems=moving,
        )
