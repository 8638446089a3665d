"""Tensors that autograd would keep for backward, but that are made again from tensors that are kept anyway.

Within `rebuilding(level)`, code that computes a tensor notes how to make it again. If autograd then saves the tensor,
the function is saved in its place, and runs in backward when the tensor is first wanted. Outside, `note` does nothing.

Saved-tensor hooks do not nest: an inner block takes the tensors away from an outer one. So inside of other hooks (those
of `torch.utils.checkpoint`, `save_on_cpu`, a user's) nothing is rebuilt.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PlanError
from ..ports.autocast import autocast_here
from .first_order import refuse_second_order


class Level(enum.IntEnum):
    """What may be made again. CHEAP: copies, look-ups, elementwise results; PRODUCTS: also one matrix product each."""

    CHEAP = 1
    PRODUCTS = 2


class _Kept(NamedTuple):
    """A tensor that is kept, and its version, because hooks take autograd's own check of versions away."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        # Without its node in the graph: the node of an operation that keeps its own result would keep itself.
        return cls(tensor if tensor.grad_fn is None else tensor.detach(), tensor._version)

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise PlanError(
                "a tensor that backward needs was changed in place after the forward pass: do not write to features of "
                "an optimised network before backward"
            )
        return self.tensor


class _Rebuilt:
    """Makes a tensor again when backward first wants it, and holds it until it was wanted as often as it was saved."""

    def __init__(self, make: Callable[..., Tensor], sources: tuple[_Kept | _Saved, ...], device: str) -> None:
        self.make, self.sources = make, sources
        self.autocast = autocast_here(device)
        self.saved = self.used = 0
        self.value: Tensor | None = None

    def __call__(self) -> Tensor:
        refuse_second_order()
        if self.value is None:
            with torch.no_grad(), self.autocast():
                self.value = self.make(*(source.get() for source in self.sources))
        value, self.used = self.value, self.used + 1
        if self.used >= self.saved:
            self.value, self.used = None, 0
        return value


class _Saved(NamedTuple):
    """What is kept in place of a tensor: how to make its storage, and where it lies in there."""

    rebuilt: _Rebuilt
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def get(self) -> Tensor:
        return self.rebuilt().as_strided(self.size, self.stride, self.offset)


class _Block(torch.autograd.graph.saved_tensors_hooks):
    """The hooks of one forward of a block, and what was noted in it.

    Attributes:
        level: What may be made again.
        notes: A noted tensor, held so that its storage is not used again meanwhile, and how to make it, by storage.
    """

    def __init__(self, level: Level) -> None:
        self.level = level
        self.notes: dict[int, tuple[Tensor, _Rebuilt]] = {}
        super().__init__(self.pack, lambda kept: kept.get())

    def pack(self, tensor: Tensor) -> _Kept | _Saved:
        """Return what is saved in place of a tensor."""
        noted = self.notes.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None
        if noted is None:
            return _Kept.of(tensor)
        noted[1].saved += 1
        return _Saved(noted[1], tensor.size(), tensor.stride(), int(tensor.storage_offset()))


class _Here(threading.local):
    block: _Block | None = None


_here = _Here()


@contextlib.contextmanager
def rebuilding(level: Level) -> Any:
    """Within the block, rebuild noted tensors in backward in place of keeping them, unless other hooks are in force."""
    if not torch.is_grad_enabled() or _hooked():
        yield
        return
    outer, block = _here.block, _Block(level)
    try:
        _here.block = block
        with block:
            yield
    finally:
        _here.block = outer
        block.notes.clear()


def _hooked() -> bool:
    """Return whether saved-tensor hooks are in force, or forbidden."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return True
    top: Callable[[bool], object] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return _here.block is not None
    return top(True) is not None


def note(tensor: Tensor, make: Callable[..., Tensor], *sources: Tensor, level: Level = Level.CHEAP) -> Tensor:
    """Note how to make a tensor again, and return it.

    Args:
        tensor: Tensor that was computed; it has a storage of its own. If the operation that computed it keeps its own
            result (exp, softmax), it has done so already.
        make: Function from the sources to the tensor, the same bits. It must not refer to other tensors of the graph.
        sources: Tensors that are kept for backward anyway, parameters, or tensors that were noted before.
        level: What `make` does.
    """
    block = _here.block
    if block is not None and level <= block.level:
        made = _Rebuilt(make, tuple(map(block.pack, sources)), tensor.device.type)
        block.notes[tensor.untyped_storage()._cdata] = (tensor, made)
    return tensor
