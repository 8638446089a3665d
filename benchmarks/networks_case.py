"""An adapted network beside its base, how both are run and compared, and random values for adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lowpeft
from networks_rows import Row, Size, leaves, run

OWN = "lowpeft"
"""The name of the child that holds a module's adapters."""

STD = (0.1, 0.02, 0.004)
"""Spreads of random adapter values; the first with which the outputs stay finite is taken."""

Views = list[list[Tensor]]
"""Of every view, the tensors of its output."""


class Wrong(Exception):  # noqa: N818  # a finding
    """The rule does not hold."""


class Limit(Exception):  # noqa: N818
    """The rule cannot be tried here, or lowpeft refuses with a reason."""


@dataclass(frozen=True)
class State:
    """What `restore` must give back."""

    tensors: dict[str, Tensor]
    classes: dict[str, type]
    flags: dict[str, bool]

    @classmethod
    def of(cls, network: nn.Module) -> State:
        """Of a network, or of the base of an adapted one; tensors are copied."""
        named = [*network.named_parameters(), *network.named_buffers()]
        modules = {n: m for n, m in network.named_modules() if OWN not in n.split(".")}
        flags = {f"{n}.training": m.training for n, m in modules.items()}
        flags |= {n: p.requires_grad for n, p in network.named_parameters() if OWN not in n.split(".")}
        tensors = {n: t.detach().clone() for n, t in named if OWN not in n.split(".")}
        return cls(tensors, {n: type(m) for n, m in modules.items()}, flags)

    def differs(self, other: State, *, structure: bool = True) -> str | None:
        """What differs: names of tensors and, with `structure`, of modules and flags."""
        pairs = [(self.tensors, other.tensors, same_tensors)]
        if structure:
            equal = lambda a, b: a == b  # noqa: E731
            pairs += [(self.classes, other.classes, equal), (self.flags, other.flags, equal)]
        for mine, others, alike in pairs:
            if mine.keys() != others.keys():
                return f"names differ: {sorted(mine.keys() ^ others.keys())[:3]}"
            found = [n for n in mine if not alike(mine[n], others[n])]
            if found:
                return f"{len(found)} differ: {found[:3]}"
        return None


def same_tensors(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


@dataclass(kw_only=True)
class Case:
    """An adapted network beside a twin that was not adapted.

    `model` is what `adapt` returned, `network` what it was given, `before` the network's state before that, `base` the
    twin, `fresh` makes one more twin; `sizes` are those that the network takes.
    """

    row: Row
    model: nn.Module
    network: nn.Module
    base: nn.Module
    before: State
    fresh: Callable[[], nn.Module]
    sizes: list[Size]

    @property
    def views(self) -> int:
        """How many views a scene has."""
        return self.model.views if isinstance(self.model, lowpeft.MultiViewModel) else 1

    @property
    def take(self) -> str | None:
        """The attribute of the base's output that the adapted model gives."""
        return self.model.output if isinstance(self.model, lowpeft.MultiViewModel) else None

    def outputs(self, images: Tensor, model: nn.Module | None = None) -> Views:
        """Of images that are the views of scenes, next to each other."""
        model = self.model if model is None else model
        if self.views == 1:
            return [leaves(run(model, self.row.inputs(images)))]
        parts = [self.row.inputs(images[i :: self.views]) for i in range(self.views)]
        args = tuple(p[0] if len(p) == 1 and isinstance(p[0], Tensor) else p for p in parts)
        return [leaves(view) for view in run(model, args)]

    def expected(self, images: Tensor) -> Views:
        """What the base makes of the same batch."""
        found = leaves(run(self.base, self.row.inputs(images), take=self.take))
        return [[t[i :: self.views] if len(t) == len(images) else t for t in found] for i in range(self.views)]


def pieces(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every adapter, with the path of the module on which it is."""
    kinds = (lowpeft.FeatureAdapter, lowpeft.WeightAdapter)
    root = model.backbone if isinstance(model, lowpeft.MultiViewModel) else model
    found = [(name.split("."), m) for name, m in root.named_modules() if isinstance(m, kinds)]
    return [(".".join(parts[: parts.index(OWN)]), m) for parts, m in found]


@torch.no_grad()
def randomise(model: nn.Module, std: float, *, kind: str | None = None) -> None:
    """Fill the adapters with random values, the same in every call; of other kinds than `kind` with zeros."""
    generator = torch.Generator().manual_seed(5)
    for _, piece in pieces(model):
        for parameter in piece.parameters():
            value = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value if kind in (None, piece.kind) else torch.zeros_like(parameter))


@torch.no_grad()
def use(case: Case) -> float:
    """Random adapters with which the outputs are finite; the spread that was taken."""
    for std in STD:
        randomise(case.model, std)
        found = case.outputs(case.row.images(2 * case.views))
        if all(t.isfinite().all() for view in found for t in view):
            return std
    raise Wrong("outputs are not finite with small random adapters")


def same_views(found: Views, expected: Views, what: str) -> None:
    if [len(v) for v in found] != [len(v) for v in expected]:
        raise Wrong(f"{what}: outputs of {[len(v) for v in found]} tensors, not {[len(v) for v in expected]}")
    for i, (view, wanted) in enumerate(zip(found, expected, strict=True)):
        for one, other in zip(view, wanted, strict=True):
            if one.shape != other.shape:
                raise Wrong(f"{what}: view {i} is {tuple(one.shape)}, not {tuple(other.shape)}")
            if not same_tensors(one, other):
                raise Wrong(f"{what}: view {i} differs by {(one - other).abs().max():.2g}")


def projection(tensors: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sum((t * torch.randn(t.shape, generator=generator)).mean() for t in tensors)


def base_gradients(case: Case, places: list[tuple[str, Any]]) -> set[int]:
    """Of these adapters, those (by id) whose layer's parameters, or whose module's output, get a gradient in the base
    from the same images."""
    twin = case.fresh().train().requires_grad_(True)
    kept: dict[str, list[Tensor]] = {path: [] for path, _ in places}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            for tensor in leaves(output):
                if tensor.requires_grad:  # in a checkpointed part only those of the second run do
                    tensor.retain_grad()
                    kept[path].append(tensor)

        return hook

    for path in kept:
        twin.get_submodule(path).register_forward_hook(keep(path))
    images = case.row.images(2 * case.views)
    projection(leaves(run(twin, case.row.inputs(images), take=case.take))).backward()
    live = set()
    for path, piece in places:
        own = [twin.get_submodule(path)._parameters[name] for name in piece.attachment.tensors]
        if any(t is not None and t.grad is not None and bool(t.grad.any()) for t in own or kept[path]):
            live.add(id(piece))
    return live
