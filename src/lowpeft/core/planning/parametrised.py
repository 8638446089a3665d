"""Layers that compute their weights from other tensors, and the calls that fold those into a plain weight."""

from __future__ import annotations

import torch
from torch import nn


def how_to_fold(module: nn.Module) -> str | None:
    """Return the call, as code, that gives a layer a plain weight again; None for a layer that has a plain weight."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    parametrised = module._modules.get("parametrizations")
    if isinstance(parametrised, nn.ModuleDict) and len(parametrised):
        name = next(iter(parametrised))
        return f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
    names = {type(hook).__name__: hook for hook in module._forward_pre_hooks.values()}
    for kind, hook in names.items():
        name = getattr(hook, "name", getattr(hook, "_tensor_name", "weight"))
        if kind == "WeightNorm":
            return f"torch.nn.utils.remove_weight_norm(layer, {name!r})"
        if kind == "SpectralNorm":
            return f"torch.nn.utils.remove_spectral_norm(layer, {name!r})"
        if hasattr(hook, "apply_mask"):
            return f"torch.nn.utils.prune.remove(layer, {name!r})"
    return None
