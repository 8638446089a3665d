"""The frozen base of a network: its modules and parameters without the adapters."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

SLOT = "lowpeft"
"""The reserved name under which a module holds its adapters."""


def base_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`root.named_modules()` without the adapters; a module that has two names comes once, under the first."""
    for path, module in root.named_modules():
        if SLOT not in path.split("."):
            yield path, module


def base_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`root.named_parameters()` without the adapters' own."""
    for path, parameter in root.named_parameters():
        if SLOT not in path.split("."):
            yield path, parameter
