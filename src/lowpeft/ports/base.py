"""Modules and parameters of the base, the frozen network without adapters.

torch's own walks, `named_modules` and its like, are recursive generators: a module at depth n costs n steps. Networks
here have thousands of modules and are walked often, so these walks are loops. Their order and names are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

TensorT = TypeVar("TensorT", bound=Tensor)

SLOT = "lowpeft"
"""Reserved name of a module's slot, the child module that holds its adapters."""


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the user's class of a module, adapted or not."""
    return getattr(type(module), "_lowpeft_base", type(module))


def all_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what `root.named_modules()` yields, adapters included."""
    return _walk(root, without=None)


def base_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield `root.named_modules()` without the adapters; a module with two names comes once, under the first."""
    return _walk(root, without=SLOT)


def _walk(root: nn.Module, without: str | None) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module once, parents first; children of the name `without`, and all below them, are left out."""
    seen: set[int] = set()
    waiting = [("", root)]  # the next one last
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        if module._modules:
            lead = f"{path}." if path else ""
            for name, child in reversed([*module._modules.items()]):
                if child is not None and name != without:
                    waiting.append((lead + name, child))


def base_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield `root.named_parameters()` without those of the adapters."""
    return _members(base_modules(root), lambda module: module._parameters)


def base_buffers(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield `root.named_buffers()` without those of the adapters."""
    return _members(base_modules(root), lambda module: module._buffers)


def all_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what `root.named_parameters()` yields, adapters included."""
    return _members(all_modules(root), lambda module: module._parameters)


def all_buffers(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what `root.named_buffers()` yields, adapters included."""
    return _members(all_modules(root), lambda module: module._buffers)


def _members(
    modules: Iterable[tuple[str, nn.Module]], held_by: Callable[[nn.Module], Mapping[str, TensorT | None]]
) -> Iterator[tuple[str, TensorT]]:
    """Yield every tensor that the modules hold, once, under the first of its names."""
    seen: set[int] = set()
    for path, module in modules:
        for name, tensor in held_by(module).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, tensor
