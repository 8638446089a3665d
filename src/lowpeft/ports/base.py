"""Modules and parameters of the base, the frozen network without adapters."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

SLOT = "lowpeft"
"""Reserved name of a module's slot, the child module that holds its adapters."""


def base_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield `root.named_modules()` without the adapters; a module with two names comes once, under the first."""
    for path, module in root.named_modules():
        if SLOT not in path.split("."):
            yield path, module


def base_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield `root.named_parameters()` without those of the adapters."""
    for path, parameter in root.named_parameters():
        if SLOT not in path.split("."):
            yield path, parameter
