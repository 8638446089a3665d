"""How adapters hang on a user's modules: the class is specialised, the object stays.

An adapted module becomes an instance of a generated subclass of its own class and gets one child, `lowpeft`, that holds
its adapters. Its own parameters keep their names, `isinstance` holds, and taking the adapters out puts the class back.
There are no hooks, and nothing is kept between calls, so threads do not disturb each other and a deep copy is a model
of its own.

A module changes in the ways that its `Facets` name; a forward is wrapped in their order, the last outermost:

* `block`: `forward` is a block forward, for places inside a block that no module outputs;
* `output`: `forward` adds the adapters' deltas to what the forward before returns;
* `live_input`: the root's input requires a gradient while a module below checkpoints, because reentrant checkpointing
  would cut off what it runs;
* `acts`: root parts of adapters see the input and may add to the output;
* `views`: the root takes a `ViewBatch` only, while an adapter below mixes neighbours in the batch;

and beside the forward:

* `tensors`: reading one of these parameters as an attribute gives base + changes, for every reader of the attribute;
* `root`: `train()` leaves the frozen base in eval mode.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .errors import PlanError
from .families import SLOT, get_block
from .kinds import Adapter, Attachment, FeatureAdapter, Forward, RootPart, TokenAdapter, WeightAdapter
from .layouts import ExtraTokens, Features, Layout, Size, find_size, square_size
from .views import ViewBatch

ROW_CHUNK_BYTES = 64 * 2**20
"""Without gradients, features larger than this are adapted some rows at a time, which bounds the memory above them."""

CLASSES = "_lowpeft_classes"
"""The attribute of a user's class that holds its specialised subclasses, so that they are freed with it."""

SWITCHES = ("use_checkpoint", "gradient_checkpointing", "grad_checkpointing")
"""Attributes by which networks switch activation checkpointing (SwinIR's, transformers', timm's)."""

DIFFERENTIABLE_IN_TRAINING_ONLY = frozenset({"PLKConv2d", "RectSparsePLKConv2d"})
"""Layers (of PLKSR) without statistics or randomness whose eval forward writes in place, which autograd refuses; in
training mode they compute the same. They alone follow `train()` in a frozen base."""

_FORWARD: ContextVar[Forward | None] = ContextVar("lowpeft_forward", default=None)
"""The forward that is under way in this thread or task, where a root part acts."""


@dataclass(frozen=True, kw_only=True)
class Facets:
    """What a generated subclass changes; see the module's docstring."""

    block: str | None = None
    output: bool = False
    tensors: frozenset[str] = frozenset()
    root: bool = False
    live_input: bool = False
    acts: bool = False
    views: int = 1


class Slot(nn.Module):
    """The adapters of one module: a child per adapter name, which holds that adapter's pieces here.

    It has no attributes of its own, so that an adapter may have any name that torch's modules leave free.
    """


def pieces_in(slot: Slot) -> Iterator[Adapter]:
    """Every adapter module in a slot."""
    for group in slot.children():
        for piece in group.children():
            if isinstance(piece, Adapter):
                yield piece


def group_in(slot: Slot, name: str) -> list[tuple[str, Adapter]]:
    """Key and module of every piece of the adapter of that name in a slot."""
    group = slot._modules.get(name)
    found = group.named_children() if group is not None else ()
    return [(key, piece) for key, piece in found if isinstance(piece, Adapter)]


def drop(slot: Slot, name: str, keys: list[str]) -> None:
    """Take pieces of an adapter out of a slot."""
    group = slot._modules.get(name)
    for key in keys if group is not None else []:
        del group._modules[key]  # type: ignore[union-attr]
    if group is not None and not len(group._modules):
        del slot._modules[name]


def on_output(slot: Slot) -> list[FeatureAdapter]:
    """The active feature adapters on the module's output."""
    found = (p for p in pieces_in(slot) if isinstance(p, FeatureAdapter))
    return [p for p in found if p.active and p.attachment.port is None]


def at_ports(slot: Slot) -> dict[str, list[FeatureAdapter]]:
    """The active feature adapters by the port of the module's block forward."""
    found: dict[str, list[FeatureAdapter]] = {}
    for piece in pieces_in(slot):
        if isinstance(piece, FeatureAdapter) and piece.active and piece.attachment.port is not None:
            found.setdefault(piece.attachment.port, []).append(piece)
    return found


def on_tensor(slot: Slot, tensor: str) -> list[WeightAdapter]:
    """The active adapters of a parameter."""
    found = (p for p in pieces_in(slot) if isinstance(p, WeightAdapter) and p.active)
    return [p for p in found if tensor in p.attachment.tensors]


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


# --- what feature adapters add ---------------------------------------------------------------------------------------


def _captured() -> bool:
    """Whether the forward is being traced, compiled or exported: then no Python test may depend on a size."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def strength_of(adapter: Adapter) -> float | Tensor:
    """The factor of what an adapter adds, in the forward that is under way."""
    forward = _FORWARD.get()
    if forward is None or adapter.adapter_name not in forward.strengths:
        return adapter.strength
    return adapter.strength * forward.strengths[adapter.adapter_name]


def _scaled(change: Tensor, strength: float | Tensor) -> Tensor:
    return change if isinstance(strength, float) and strength == 1.0 else change * strength


def _sum_of_deltas(
    adapters: list[FeatureAdapter], features: Callable[[FeatureAdapter], Features], like: Tensor
) -> Tensor | None:
    """The sum of what the adapters add, each from the same features, so that their order does not matter."""
    total: Tensor | None = None
    for adapter in adapters:
        seen = features(adapter)
        if adapter.reads_only:
            forward = _FORWARD.get()
            if forward is not None:
                forward.seen.append((adapter, seen))
            continue
        delta = _delta(adapter, seen)
        total = delta if total is None else total + delta
    return None if total is None else _laid_out_like(total, like)


def _laid_out_like(delta: Tensor, features: Tensor) -> Tensor:
    """The delta in the features' dtype and memory layout.

    Adding a tensor of other strides could change the sum's strides, and with them the kernel that the next layer of
    the base runs on: the same numbers, rounded differently.
    """
    if _captured() or delta.stride() == features.stride():
        return delta.to(features.dtype)
    return torch.empty_like(features).copy_(delta)


def _delta(adapter: FeatureAdapter, features: Features) -> Tensor:
    """The adapter's delta, computed in the dtype of its own parameters unless autocast decides."""
    return _scaled(adapter.delta(_as_read(adapter, features)), strength_of(adapter))


def _as_read(adapter: FeatureAdapter, features: Features) -> Features:
    """Features in the dtype of an adapter's own parameters, unless autocast decides; whole scenes only."""
    x = features.values
    if features.views > 1 and not _captured() and x.shape[features.layout.batch_dim] % features.views:
        raise PlanError(
            f"an adapter that mixes {features.views} views got {x.shape[features.layout.batch_dim]} images, which are "
            f"no scenes of {features.views} views: call the model with {features.views} views, or use "
            "`with lowpeft.disabled(model):` for single images"
        )
    dtype = next(adapter.parameters()).dtype
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        features = replace(features, values=x.to(dtype))
    return features


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise PlanError("an adapter reads its module's input, but the module was called without a tensor")


def _seen(site: Attachment, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Features:
    """Features at a module's output, with the size that the module was called with."""
    layout = site.layout or Layout.NCHW
    return Features(x, layout, _size(site, layout, x, args, kwargs), site.views)


def _size(site: Attachment, layout: Layout, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Size | None:
    if layout is Layout.WLC:
        return None
    if not layout.is_tokens:
        return (x.shape[2], x.shape[3]) if layout is Layout.NCHW else (x.shape[1], x.shape[2])
    tokens = x.shape[1 - layout.batch_dim]
    return find_size((*args, *kwargs.values()), tokens) or (square_size(tokens) if site.square else None)


def _add_by_rows(module: nn.Module, adapters: list[FeatureAdapter], features: Features, others: list[Any]) -> Tensor:
    """Features + deltas, some image rows at a time and in place where nobody else holds the features' memory."""
    tensors = (*tree_leaves(others), *module.parameters(), *module.buffers())
    held = {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, Tensor)}
    values = features.values
    result = values.clone() if values.untyped_storage().data_ptr() in held else values
    rows = replace(features, values=result).rows
    step = max(1, int(rows.shape[1] * ROW_CHUNK_BYTES / (rows.numel() * rows.element_size())))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        size = (part.shape[1], part.shape[2])
        part += sum(_delta(a, Features(part, Layout.NHWC, size, a.attachment.views)).to(part.dtype) for a in adapters)
    return result


def _can_go_by_rows(adapters: list[FeatureAdapter], features: Tensor) -> bool:
    return (
        not _captured()
        and not torch.is_grad_enabled()
        and features.numel() * features.element_size() > ROW_CHUNK_BYTES
        and any(a.needs_rows for a in adapters)
        and all(a.row_local and not a.reads_only and a.attachment.source == "output" for a in adapters)
    )


def _with_deltas(module: nn.Module, slot: Slot, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    adapters = on_output(slot)
    if not adapters:
        return output
    item = adapters[0].attachment.item
    values = output if item is None else output[item]
    if _can_go_by_rows(adapters, values):
        rest = [] if item is None else [o for i, o in enumerate(output) if i != item]
        features = _seen(adapters[0].attachment, values, args, kwargs)
        new: Tensor = _add_by_rows(module, adapters, features, [args, kwargs, rest])
    else:

        def features_of(adapter: FeatureAdapter) -> Features:
            site = adapter.attachment
            return _seen(site, values if site.source == "output" else _first_tensor(args, kwargs), args, kwargs)

        delta = _sum_of_deltas(adapters, features_of, values)
        new = values if delta is None else values + delta
    return new if item is None else _with_item(output, item, new)


def _with_item(output: Any, item: int, new: Tensor) -> Any:
    """The tuple or list with one element replaced, in its own type."""
    values = [new if i == item else v for i, v in enumerate(output)]
    return output._make(values) if hasattr(output, "_make") else type(output)(values)


class BlockPorts:
    """The active adapters of one block during one call; `lowpeft.families.Ports` is its contract."""

    def __init__(self, adapters: dict[str, list[FeatureAdapter]]) -> None:
        self.adapters = adapters

    def wants(self, port: str) -> bool:
        """Whether an adapter sits at the port."""
        return port in self.adapters

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        """The sum of what the adapters at the port add."""
        adapters = self.adapters.get(port)
        if not adapters:
            return None
        return _sum_of_deltas(adapters, lambda a: Features(values, layout, size, a.attachment.views), values)

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> list[ExtraTokens]:
        """The extra keys and values of each adapter at the port; its strength is in the gate."""
        found = []
        for adapter in self.adapters.get(port, []):
            if not isinstance(adapter, TokenAdapter):
                raise PlanError(f"a {adapter.kind} adapter gives no tokens, and cannot sit at the port {port}")
            seen = _as_read(adapter, Features(values, layout, size, adapter.attachment.views))
            keys, extra_values, gate = adapter.tokens(seen)
            found.append(ExtraTokens(keys, extra_values, _scaled(gate, strength_of(adapter))))
        return found


# --- what weight adapters add ----------------------------------------------------------------------------------------


def base_of(module: nn.Module, adapter: WeightAdapter) -> dict[str, Tensor]:
    """The frozen parameters that an adapter changes, by name."""
    found = {name: module._parameters[name] for name in adapter.attachment.tensors}
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


def adapted_tensor(module: nn.Module, name: str, adapters: list[WeightAdapter], *, exact: bool = False) -> Tensor:
    """A parameter plus each adapter's change times its strength, added in the adapters' dtype.

    Args:
        module: The module that holds the parameter.
        name: Name of the parameter.
        adapters: Those that change it.
        exact: Add in float64, and return that.
    """
    weight = module._parameters[name]
    if weight is None:
        raise PlanError(f"{type(module).__name__} has no {name}")
    device = weight.device.type
    # Under autocast a product of two float32 matrices would come out in bfloat16, and the sum would be rounded to it.
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext():
        parts = [_scaled(a.change(base_of(module, a))[name], strength_of(a)) for a in adapters]
        if exact:
            return weight.double() + sum(p.double() for p in parts)
        delta = functools.reduce(torch.add, parts)
        return (weight.to(delta.dtype) + delta).to(weight.dtype)


# --- the generated subclasses ----------------------------------------------------------------------------------------


def specialised(base: type[nn.Module], facets: Facets) -> type[nn.Module]:
    """The subclass of `base` that does what the facets say; the same one each time, kept by `base` itself."""
    if CLASSES not in base.__dict__:
        setattr(base, CLASSES, {})
    known: dict[Facets, type[nn.Module]] = base.__dict__[CLASSES]
    return known.get(facets) or known.setdefault(facets, _specialise(base, facets))


def _specialise(base: type[nn.Module], facets: Facets) -> type[nn.Module]:
    forward = base.forward
    if facets.block is not None:
        forward = _block_forward(base, facets.block)
    if facets.output:
        forward = _output_forward(forward)
    if facets.live_input:
        forward = _live_input_forward(forward)
    if facets.acts:
        forward = _acting_forward(forward)
    if facets.views > 1:
        forward = _views_forward(forward, facets.views)
    body: dict[str, Any] = {name: _tensor_property(name) for name in sorted(facets.tensors)}
    if forward is not base.forward:
        body["forward"] = functools.wraps(base.forward)(forward)
    if facets.root:
        body["train"] = _train
    if issubclass(base, nn.Sequential):  # it calls all of its children in turn, and the adapters are none of them
        body["__iter__"] = lambda self: iter(m for name, m in self._modules.items() if name != SLOT)
        body["__len__"] = lambda self: len(self._modules) - (SLOT in self._modules)
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
    module.__class__ = base if facets == Facets() else specialised(base, facets)


def _block_forward(base: type[nn.Module], name: str) -> Callable[..., Any]:
    block = get_block(name)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slot = slot_of(self)
        adapters = at_ports(slot) if slot is not None else {}
        if not adapters and block.exact:
            return base.forward(self, *args, **kwargs)
        return block.forward(self, BlockPorts(adapters), *args, **kwargs)

    return forward


def _output_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = inner(self, *args, **kwargs)
        slot = slot_of(self)
        return output if slot is None else _with_deltas(self, slot, output, args, kwargs)

    return forward


def can_checkpoint(root: nn.Module) -> bool:
    """Whether a module below has a switch for activation checkpointing, on or off."""
    return any(hasattr(module, switch) for module in root.modules() for switch in SWITCHES)


def _checkpoints(root: nn.Module) -> bool:
    return any(module.__dict__.get(switch) is True for module in root.modules() for switch in SWITCHES)


def _live_input_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def live(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
            return value.detach().requires_grad_()
        return value

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # The switch may be turned after the adapters were attached, so it is read in every forward that is trained.
        if torch.is_grad_enabled() and not _captured() and _checkpoints(self):
            args, kwargs = tuple(map(live, args)), {k: live(v) for k, v in kwargs.items()}
        return inner(self, *args, **kwargs)

    return forward


def _acting_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slot = slot_of(self)
        parts = [p for p in pieces_in(slot) if isinstance(p, RootPart) and p.acts and p.active] if slot else []
        if not parts:
            return inner(self, *args, **kwargs)
        under_way = Forward(args=args, kwargs=kwargs, strengths={}, seen=[])
        token = _FORWARD.set(under_way)
        try:
            for part in parts:
                part.begin(under_way)
            output = inner(self, *args, **kwargs)
            for part in parts:
                output = _with_addition(part, under_way, output)
        finally:
            _FORWARD.reset(token)
        return output

    return forward


def _with_addition(part: RootPart, under_way: Forward, output: Any) -> Any:
    """The network's output with what a root part adds to the image in it."""
    image = output if part.output is None else getattr(output, part.output)
    added = part.finish(under_way, image)
    if added is None:
        return output
    image = image + _laid_out_like(_scaled(added, part.strength), image)
    if part.output is None:
        return image
    output = copy.copy(output)
    setattr(output, part.output, image)
    return output


def _views_forward(inner: Callable[..., Any], views: int) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], ViewBatch):
            if args[0].views != views:
                raise PlanError(f"this network was adapted for {views} views of a scene, and got {args[0].views}")
            return inner(self, args[0].batch, *args[1:], **kwargs)
        if any(p.active and p.attachment.views > 1 for _, _, s in slots(self) for p in pieces_in(s)):
            raise PlanError(
                f"this backbone carries adapters that take neighbours in a batch for {views} views of one scene, so "
                "it cannot be called by itself: call the model that `adapt` returned with all views (a StereoModel: "
                "left, right), or use `with lowpeft.disabled(model):` to run single images through the frozen network"
            )
        return inner(self, *args, **kwargs)

    return forward


def _tensor_property(name: str) -> property:
    def read(self: nn.Module) -> Tensor | None:
        weight = self._parameters[name]
        slot = slot_of(self)
        adapters = on_tensor(slot, name) if slot is not None and weight is not None else []
        return adapted_tensor(self, name, adapters) if adapters else weight

    return property(read, doc=f"The base's {name} plus what its adapters add.")


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
    cls = specialised(base, facets)
    return cls.__new__(cls, *args)
