"""Whether the output of a layer goes with its weight, as kinds that scale outputs take for granted."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...ports.base import original_class

SIDE = 9
TOLERANCE = 1e-3
"""Largest difference from the double, as a share of the largest value."""


@torch.no_grad()
def doubles_with_its_weight(layer: nn.Module) -> bool:
    """Return whether a layer's output doubles with its weight and bias; True for torch's own, and if it does not run.

    It does not in a convolution that standardises its weight, or in a norm that adds its input.
    """
    cls = original_class(layer)
    if cls.__module__.startswith("torch."):
        return True
    plain = copy.copy(layer)
    plain.__class__ = cls
    tensors = {name: layer._parameters.get(name) for name in ("weight", "bias")}
    given = {name: tensor.detach().float().cpu() for name, tensor in tensors.items() if tensor is not None}
    if "weight" not in given or not given["weight"].dim():
        return True
    found = (_doubles(plain, given, x) for x in _inputs(layer, given["weight"]))
    return next((answer for answer in found if answer is not None), True)


def _doubles(layer: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> bool | None:
    try:
        once, twice = (_run(layer, {name: factor * t for name, t in tensors.items()}, x) for factor in (1, 2))
    except Exception:  # noqa: BLE001  (it takes images of another form)
        return None
    return bool((twice - 2 * once).abs().max() <= TOLERANCE * twice.abs().max())


def _inputs(layer: nn.Module, weight: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu")

    if weight.dim() > 2:
        channels = getattr(layer, "in_channels", weight.shape[1])
        return [noise(1, channels, *([SIDE] * (weight.dim() - 2)))]
    channels = weight.shape[-1]
    return [noise(1, channels, SIDE, SIDE), noise(1, SIDE, channels), noise(1, SIDE, SIDE, channels)]


def _run(layer: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    new = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
    layer.__dict__["_parameters"] = {**layer._parameters, **new}
    output: Tensor = layer.forward(x)  # without the user's hooks
    return output
