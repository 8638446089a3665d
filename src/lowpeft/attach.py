"""How adapters hang on a user's modules: the class is specialised, the object stays.

An adapted module becomes an instance of a generated subclass of its own class and gets one child, `lowpeft`, that holds
its adapters. Its own parameters keep their names, `isinstance` holds, and taking the adapters out puts the class back.
There are no hooks, and nothing is kept between calls, so threads do not disturb each other and a deep copy is a model
of its own.

What the subclass changes, by `Facets`:

* `feature`: `forward` adds the adapters' deltas to what the original forward returns;
* `branch`: `forward` is a family-specific one, for a site that is a sum which no module outputs;
* `tensors`: reading one of these parameters as an attribute gives W + ΔW, for every reader of the attribute;
* `root`: `train()` leaves the frozen base in eval mode;
* `live_input`: the root's input requires a gradient, without which reentrant checkpointing would cut off what it runs;
* `views`: the root takes `ViewBatch` only, while an adapter below pairs neighbours in the batch.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .errors import PlanError
from .families import SLOT, get_branch
from .kinds import Adapter, Attachment, FeatureAdapter, WeightAdapter
from .layouts import Layout, Size, find_size, square_size, to_rows
from .views import ViewBatch

ROW_CHUNK_BYTES = 64 * 2**20
"""Without gradients, features larger than this are adapted some rows at a time, which bounds the memory above them."""


DIFFERENTIABLE_IN_TRAINING_ONLY = frozenset({"PLKConv2d", "RectSparsePLKConv2d"})
"""Layers (of PLKSR) without statistics or randomness whose eval forward writes in place, which autograd refuses; in
training mode they compute the same. They alone follow `train()` in a frozen base."""


@dataclass(frozen=True, kw_only=True)
class Facets:
    """What a generated subclass changes; see the module's docstring."""

    feature: bool = False
    branch: str | None = None
    tensors: frozenset[str] = frozenset()
    root: bool = False
    live_input: bool = False
    views: bool = False


class Slot(nn.Module):
    """The adapters of one module: a child per adapter name, which holds that adapter's pieces here."""

    def pieces(self) -> Iterator[Adapter]:
        """Every adapter module in this slot."""
        for group in self.children():
            for piece in group.children():
                if isinstance(piece, Adapter):
                    yield piece

    def features(self, branch: str | None) -> list[FeatureAdapter]:
        """The active feature adapters on the module's output, or on the sum of the named branch."""
        return [
            p for p in self.pieces() if isinstance(p, FeatureAdapter) and p.active and p.attachment.branch == branch
        ]

    def weights(self, tensor: str) -> list[WeightAdapter]:
        """The active adapters of that parameter."""
        return [p for p in self.pieces() if isinstance(p, WeightAdapter) and p.active and p.attachment.tensor == tensor]


def slot_of(module: nn.Module) -> Slot | None:
    """The module's adapters, if it has any."""
    slot = module._modules.get(SLOT)
    return slot if isinstance(slot, Slot) else None


def slots(root: nn.Module) -> Iterator[tuple[str, nn.Module, Slot]]:
    """Every adapted module below `root`: its path, itself, its slot."""
    for path, module in root.named_modules():
        slot = slot_of(module)
        if slot is not None:
            yield path, module, slot


# --- what the adapters add -------------------------------------------------------------------------------------------


def sum_of_deltas(
    adapters: list[FeatureAdapter], features: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """The sum of what the adapters add, each from the same features, so that their order does not matter."""
    total: Tensor | None = None
    for adapter in adapters:
        site = adapter.attachment
        x = features if site.source == "output" else _first_tensor(args, kwargs)
        delta = _delta(adapter, x, site.layout, _size(site, x, args, kwargs))
        total = delta if total is None else total + delta
    return None if total is None else _laid_out_like(total, features)


def _laid_out_like(delta: Tensor, features: Tensor) -> Tensor:
    """The delta in the features' dtype and memory layout.

    Adding a tensor of other strides could change the sum's strides, and with them the kernel that the next layer of
    the base runs on: the same numbers, rounded differently.
    """
    if delta.stride() == features.stride():
        return delta.to(features.dtype)
    return torch.empty_like(features).copy_(delta)


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise PlanError("an adapter reads its module's input, but the module was called without a tensor")


def _size(site: Attachment, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Size | None:
    if not site.layout.is_tokens:
        return None
    tokens = x.shape[1 - site.layout.batch_dim]
    return find_size((*args, *kwargs.values()), tokens) or (square_size(tokens) if site.square else None)


def _delta(adapter: FeatureAdapter, x: Tensor, layout: Layout, size: Size | None) -> Tensor:
    """The adapter's delta, computed in the dtype of its own parameters unless autocast decides."""
    if adapter.pairs_views and x.shape[layout.batch_dim] % 2:
        raise PlanError(
            f"a stereo adapter got {x.shape[layout.batch_dim]} images, which are no pairs: call the StereoModel "
            "with (left, right), or use `with lowpeft.disabled(model):` for single images"
        )
    dtype = next(adapter.parameters()).dtype
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        x = x.to(dtype)
    delta = adapter.delta(x, layout, size)
    return delta if adapter.strength == 1.0 else delta * adapter.strength


def _add_by_rows(
    module: nn.Module,
    adapters: list[FeatureAdapter],
    features: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Features + deltas, some image rows at a time and in place where nobody else holds the features' memory."""
    site = adapters[0].attachment
    others = (*tree_leaves((args, kwargs)), *module.parameters(), *module.buffers())
    held = {t.untyped_storage().data_ptr() for t in others if isinstance(t, Tensor)}
    result = features.clone() if features.untyped_storage().data_ptr() in held else features
    rows = to_rows(result, site.layout, _size(site, features, args, kwargs))
    step = max(1, int(rows.shape[1] * ROW_CHUNK_BYTES / (rows.numel() * rows.element_size())))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        part += sum(_delta(a, part, Layout.NHWC, None).to(part.dtype) for a in adapters)
    return result


def _can_go_by_rows(adapters: list[FeatureAdapter], features: Tensor) -> bool:
    return (
        features.numel() * features.element_size() > ROW_CHUNK_BYTES
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and any(a.pairs_views for a in adapters)
        and all(a.row_local and a.attachment.source == "output" for a in adapters)
    )


def _with_deltas(module: nn.Module, slot: Slot, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    adapters = slot.features(None)
    if not adapters:
        return output
    item = adapters[0].attachment.item
    features = output if item is None else output[item]
    if _can_go_by_rows(adapters, features):
        new = _add_by_rows(module, adapters, features, args, kwargs)
    else:
        new = features + sum_of_deltas(adapters, features, args, kwargs)
    return new if item is None else _with_item(output, item, new)


def _with_item(output: Any, item: int, new: Tensor) -> Any:
    """The tuple or list with one element replaced, in its own type."""
    values = [new if i == item else v for i, v in enumerate(output)]
    return output._make(values) if hasattr(output, "_make") else type(output)(values)


# --- the generated subclasses ----------------------------------------------------------------------------------------


@functools.cache
def specialised(base: type[nn.Module], facets: Facets) -> type[nn.Module]:
    """The subclass of `base` that does what the facets say; the same one each time."""
    forward = base.forward
    if facets.branch is not None:
        forward = _branch_forward(base, facets.branch)
    if facets.feature:
        forward = _feature_forward(forward)
    if facets.live_input:
        forward = _live_input_forward(forward)
    if facets.views:
        forward = _views_forward(forward)
    body: dict[str, Any] = {name: _tensor_property(name) for name in sorted(facets.tensors)}
    if forward is not base.forward:
        body["forward"] = functools.wraps(base.forward)(forward)
    if facets.root:
        body["train"] = _train
    body |= {
        "__reduce_ex__": _reduce_ex,
        "_lowpeft_base": base,
        "_lowpeft_facets": facets,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base,), body)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user gave the module."""
    return getattr(type(module), "_lowpeft_base", type(module))


def facets_of(module: nn.Module) -> Facets:
    """What the module's class changes."""
    return getattr(type(module), "_lowpeft_facets", Facets())


def set_facets(module: nn.Module, **changes: Any) -> None:
    """Give the module the class with these facets changed; its own class back when none is left."""
    facets = replace(facets_of(module), **changes)
    base = original_class(module)
    module.__class__ = base if facets == Facets() else specialised(base, facets)  # type: ignore[arg-type]  # Module spells __hash__ in its own way


def _branch_forward(base: type[nn.Module], name: str) -> Callable[..., Any]:
    branch = get_branch(name).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slot = slot_of(self)
        adapters = slot.features(name) if slot is not None else []
        if not adapters:
            return base.forward(self, *args, **kwargs)
        return branch(self, lambda features: sum_of_deltas(adapters, features, args, kwargs), *args, **kwargs)

    return forward


def _feature_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = inner(self, *args, **kwargs)
        slot = slot_of(self)
        return output if slot is None else _with_deltas(self, slot, output, args, kwargs)

    return forward


def _live_input_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def live(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
            return value.detach().requires_grad_()
        return value

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            args, kwargs = tuple(map(live, args)), {k: live(v) for k, v in kwargs.items()}
        return inner(self, *args, **kwargs)

    return forward


def _views_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], ViewBatch):
            return inner(self, args[0].batch, *args[1:], **kwargs)
        if any(
            isinstance(p, FeatureAdapter) and p.pairs_views and p.active for _, _, s in slots(self) for p in s.pieces()
        ):
            raise PlanError(
                "this backbone carries stereo adapters, which pair neighbours in a batch as left and right views, "
                "so it cannot be called by itself: call the StereoModel with (left, right), or use "
                "`with lowpeft.disabled(model):` to run single images through the frozen network"
            )
        return inner(self, *args, **kwargs)

    return forward


def _tensor_property(name: str) -> property:
    def read(self: nn.Module) -> Tensor | None:
        weight = self._parameters[name]
        slot = slot_of(self)
        adapters = slot.weights(name) if slot is not None and weight is not None else []
        return adapted_weight(weight, adapters) if weight is not None and adapters else weight

    return property(read, doc=f"The base's {name} plus what its adapters add.")


def adapted_weight(weight: Tensor, adapters: list[WeightAdapter]) -> Tensor:
    """The weight plus each adapter's change times its strength, added in the adapters' dtype."""
    parts = [a.delta_weight() if a.strength == 1.0 else a.delta_weight() * a.strength for a in adapters]
    delta = functools.reduce(torch.add, parts)
    return (weight.to(delta.dtype) + delta).to(weight.dtype)


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """`nn.Module.train`, but the frozen base stays in eval mode; the adapters follow `mode`."""
    original_class(self).train(self, False)
    for module in self.modules():
        if isinstance(module, Slot):
            module.train(mode)
        elif original_class(module).__name__ in DIFFERENTIABLE_IN_TRAINING_ONLY:
            module.training = mode
    return self


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Pickle and copy by the user's class, because a generated class cannot be found by its name."""
    base, facets = original_class(self), facets_of(self)
    reduced: Any = base.__reduce_ex__(self, max(2, int(protocol)))
    function, args, *rest = reduced
    if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
        raise PlanError(f"{base.__name__} pickles itself in its own way, so an adapted one cannot be pickled or copied")
    return (_new, (base, facets, *args[1:]), *rest)


def _new(base: type[nn.Module], facets: Facets, *args: Any) -> nn.Module:
    cls = specialised(base, facets)  # type: ignore[arg-type]
    return cls.__new__(cls, *args)
