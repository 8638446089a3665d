"""Does a block of a user's network compute the same as the block forward that replaces its forward?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...families import BlockForward, get_block
from ...ports.base import SLOT, base_modules, base_parameters, original_class
from ...ports.layouts import ExtraTokens, Layout, Size
from ..attachment.adding import BlockPorts
from ..attachment.copies import twin_of
from .generators import kept_generators

CLOSE = 1e-5
"""Largest relative difference from the original for a block forward that is not exact."""


class ChangedBlockError(PlanError):
    """Error for a block that does not compute the same as the block forward of its family."""


class OtherBlockError(ChangedBlockError):
    """Error for a block that the block forward cannot run: a different block in a network with the family's names."""


def check_block(checked: set[tuple[object, ...]], path: str, module: nn.Module, name: str) -> None:
    """Refuse a block whose own forward gives another result than the block forward.

    One block of each configuration (class, plain attributes such as the shift, submodules, parameter shapes) is run
    both ways. Otherwise the adapted network would silently differ from a base whose code was changed, e.g. a fork with
    a mask in unshifted blocks too.

    Args:
        checked: Configurations that were compared already; changed in place.
        path: Path of the block, for errors.
        module: The block.
        name: Name of the block forward.

    Raises:
        ChangedBlockError: The results are not identical or, for a block forward that is not exact, differ by more than
            `CLOSE`; or the block forward never uses one of its ports.
        OtherBlockError: The block cannot be run as the block forward.
    """
    key = configuration(module, name)
    if key in checked:
        return
    try:
        _compare(module, get_block(name))
    except ChangedBlockError as error:
        own = original_class(module)
        raise type(error)(f"{path} ({own.__module__}.{own.__name__}) {error}") from error
    checked.add(key)


def configuration(module: nn.Module, name: str) -> tuple[object, ...]:
    """Return what determines the result of comparing a block with a block forward, apart from the weights' values."""
    parts = [(path, original_class(part), _plain(part)) for path, part in base_modules(module)]
    shapes = [(path, tuple(parameter.shape)) for path, parameter in base_parameters(module)]
    missing = [path for path, part in module._modules.items() if part is None]
    return original_class(module), name, repr((parts, shapes, missing))


def _plain(module: nn.Module) -> list[tuple[str, object]]:
    """Return a module's plain attributes; none of dropout, whose rate differs between blocks and does not act here."""
    if "drop" in original_class(module).__name__.lower():
        return []
    plain = (bool, int, float, str, tuple, list, type(None))
    return sorted((name, value) for name, value in vars(module).items() if isinstance(value, plain))


class _Asked(BlockPorts):
    """Ports without adapters, which record the ports that a block forward asks for."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked: set[str] = set()

    def wants(self, port: str) -> bool:
        self.asked.add(port)
        return super().wants(port)

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        self.asked.add(port)
        return super().delta(port, values, layout, size)

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> list[ExtraTokens]:
        self.asked.add(port)
        return super().tokens(port, values, layout, size)


def block_problem(module: nn.Module, block: BlockForward) -> str | None:
    """Return the difference between a block's own forward and a block forward as the end of a sentence; None if equal.

    For a variant, the block forward that it is a variant of is compared instead.
    """
    try:
        _compare(module, block)
    except ChangedBlockError as error:
        return str(error)
    return None


def _compare(module: nn.Module, block: BlockForward) -> None:
    """Raise what `check_block` raises, with the end of a sentence as message."""
    block = block if block.variant_of is None else get_block(block.variant_of)
    twin, own_class = twin_of(module), original_class(module)
    advice = f"the block forward {block.name}: this copy of the code was changed"
    try:
        with torch.no_grad(), kept_generators(twin):
            arguments = block.example(twin)
            own = own_class.forward(twin, *(a.clone() if isinstance(a, Tensor) else a for a in arguments))
            ports = _Asked()
            ours = own if block.forward is None else block.forward(twin, ports, *arguments)
    except Exception as error:  # any error means another block
        raise OtherBlockError(f"cannot be run as {advice} ({type(error).__name__}: {error})") from error
    (a, b) = (x[0] if isinstance(x, tuple) else x for x in (own, ours))
    same = torch.equal(a, b) if block.exact else torch.allclose(a, b, rtol=CLOSE, atol=CLOSE * float(a.abs().max()))
    if not same:
        raise ChangedBlockError(f"computes another result (largest difference {(a - b).abs().max():.3g}) than {advice}")
    silent = sorted(block.ports - ports.asked)
    if silent:
        raise ChangedBlockError(
            f"cannot use the block forward {block.name}, which never calls its ports {', '.join(silent)}"
        )


def fused_problem(module: nn.Module, block: BlockForward) -> str | None:
    """Return why a block's fused forward cannot stand in for it; None if output and gradient are close.

    Both are run in float32, because in half precision rounding alone would be a difference; without adapters; and with
    all weights changed at random, because a part that a copy of the code adds may be 0 or 1 at first.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return None
    twin, run = _changed_at_random(_without_slots(twin_of(module).float())), block.fused
    if run is None:
        return f"the block forward {block.name} has no fused form"
    base = original_class(module).forward
    plain = base if block.variant_of is None or block.forward is None else _without_adapters(block.forward)
    try:
        with torch.enable_grad(), kept_generators(twin):
            arguments = block.example(twin)
            own = _output_and_gradient(plain, twin, arguments)
            ours = _output_and_gradient(_without_adapters(run), twin, arguments)
    except Exception as error:  # noqa: BLE001  (any error means another block)
        return f"cannot be run as {block.name}: {type(error).__name__}: {error}"
    if ours is None or own is None:
        return f"{block.name} cannot stand in for blocks of this make"
    difference = apart(ours, own)
    return None if difference <= CLOSE else f"fused, their result differs by {difference:.2g} of its size"


def _without_slots(module: nn.Module) -> nn.Module:
    for part in module.modules():
        part.__class__ = original_class(part)
    for part in list(module.modules()):
        part._modules.pop(SLOT, None)
    return module


def _changed_at_random(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter)
        parameter.requires_grad_(False).add_(0.1 * noise * parameter.abs().mean().clamp_min(0.01))
    return module


def _without_adapters(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda module, *args: forward(module, BlockPorts({}), *args)


def _output_and_gradient(forward: Callable[..., Any], module: nn.Module, args: tuple[Any, ...]) -> list[Tensor] | None:
    """Return a block's output and the gradient of its first argument; None if the forward does not stand in."""
    x = args[0].detach().clone().requires_grad_()
    output = forward(module, x, *(a.clone() if isinstance(a, Tensor) else a for a in args[1:]))
    if output is NotImplemented:
        return None
    output = output[0] if isinstance(output, tuple) else output
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(output)
    return [output.detach(), torch.autograd.grad(output, x, seed)[0]]


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest relative difference between tensors, each in the 2-norm; infinity if their shapes differ."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return math.inf
    tiny = torch.finfo(torch.float32).tiny
    pairs = zip(ours, theirs, strict=True)
    return max((float((a - b).norm() / b.norm().clamp_min(tiny)) for a, b in pairs), default=0.0)


def variant_in(name: str | None) -> str | None:
    """Return the name if that block forward is a variant, which computes something else than the block; else None."""
    return name if name is not None and get_block(name).variant_of is not None else None
