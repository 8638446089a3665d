"""Can a network be run and adapted at all? It needs dense tensors with values, and the forward method of its class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import PlanError
from ...ports.base import all_buffers, all_modules, all_parameters, original_class
from ..attachment.wrappers import own_forward


def refuse_unusable(root: nn.Module) -> None:
    """Refuse a network that cannot be adapted in its present state, with any recipe.

    Raises:
        PlanError: The network is unusable; the message says why, and what to do.
    """
    name = original_class(root).__name__
    refuse_inference_mode()
    if isinstance(root, torch.jit.ScriptModule):
        raise PlanError(f"{name} is a TorchScript module, which cannot be adapted: adapt the Python module")
    if own_forward(root) is not None:
        raise PlanError(
            f"{name} has a `forward` set on the instance (as accelerate's `prepare` with mixed precision, an "
            "offloading hook or a patch does), which would bypass the adapters: adapt the network before its forward "
            "is replaced"
        )
    if problems := list(_problems(root)):
        raise PlanError(f"{name} cannot be adapted in its present state:", problems=problems)


def refuse_inference_mode() -> None:
    """Refuse to make adapters in inference mode.

    Raises:
        PlanError: It is on.
    """
    if torch.is_inference_mode_enabled():
        raise PlanError("adapters made in inference mode cannot be trained: leave torch.inference_mode() first")


def _problems(root: nn.Module) -> Iterator[str]:
    unusable: dict[str, list[str]] = {}
    for path, tensor in itertools.chain(all_parameters(root), all_buffers(root)):
        if problem := _problem(tensor):
            unusable.setdefault(problem, []).append(path)
    for problem, paths in unusable.items():
        yield f"{len(paths)} of its tensors are {problem} ({paths[0]}, …)"
    packed = [n for n, m in all_modules(root) if "quantized" in type(m).__module__ and "torch" in type(m).__module__]
    if packed:
        yield (
            f"{len(packed)} layers are quantised, with packed weights instead of tensors ({packed[0] or 'the network'}"
            ", …): adapt the network before it is quantised"
        )


def _problem(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "lazy, without a shape: run the network once"
    if tensor.is_meta:
        return "on the meta device, without values: load the weights first"
    if tensor.layout != torch.strided:
        return "sparse: make them dense"
    return "quantised: adapt the network before it is quantised" if tensor.is_quantized else None


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
        for path, module in all_modules(root)
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    ]
    moving += [path for path in moved if path.rpartition(".")[0] not in moving]
    if moving:
        raise PlanError(
            "training would change the running statistics of the layers below, because the recipe has "
            "freeze_statistics = false. They belong to the frozen base, and an adapter file holds nothing of it. "
            f"{advice}\nThe layers:",
            problems=moving,
        )
