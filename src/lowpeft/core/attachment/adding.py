"""Arithmetic of adapters: adding deltas to features at outputs and ports, and changes to parameters."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...errors import PlanError
from ...frozen.linear import Affine
from ...kinds import Attachment, FeatureAdapter, TokenAdapter, WeightAdapter
from ...ports.autocast import without_autocast
from ...ports.base import original_class
from ...ports.capture import captured
from ...ports.layouts import ExtraTokens, Features, Layout, Size, find_size, square_size
from .running import RUNNING
from .settings import Strength
from .slots import Acting, Slot, on_output, on_tensor, pieces_in, slot_of

ROW_CHUNK_BYTES = 64 * 2**20
"""Chunk size in bytes. Without gradients, larger features are adapted in chunks of image rows, to bound memory."""


def scaled(change: Tensor, strength: Strength, *, images: int | None = None) -> Tensor:
    """Return a change times a strength; the same tensor at full strength.

    Args:
        change: Tensor that an adapter adds.
        strength: A number, or a tensor (N,) with one number for each image.
        images: Index of the dimension that counts images; None if there is none.

    Raises:
        PlanError: The strength has one number for each of N images, and the change has another number of images.
    """
    if not isinstance(strength, Tensor):
        return change if strength == 1.0 else change * strength
    if not strength.dim():
        return change * strength
    count = 0 if images is None else change.shape[images]
    if captured():
        torch._check(count == strength.shape[0])
    elif count != len(strength):
        raise PlanError(
            f"strengths are given for {len(strength)} images, but these features have a batch of {count or 'none'}: "
            f"call the whole network with {len(strength)} images, or give one number"
        )
    shape = [-1 if d == images else 1 for d in range(change.dim())]
    # Multiply in float32 or better, as PyTorch does for a scalar.
    each = strength.to(torch.promote_types(change.dtype, torch.float32)).to(change.device).view(shape)
    return (change * each).to(change.dtype)


def _sum_of_deltas(
    adapters: list[Acting[FeatureAdapter]], features: Callable[[FeatureAdapter], Features], like: Tensor
) -> Tensor | None:
    """Return the sum of the adapters' deltas, or None; all read the same features, so their order does not matter.

    Adapters that only read add no delta; their features are noted in the running forward.
    """
    total: Tensor | None = None
    for adapter, strength in adapters:
        seen = features(adapter)
        if adapter.reads_only:
            running = RUNNING.get()
            if running is not None and running.forward is not None:
                running.forward.seen.append((adapter, adapter.read(seen)))
            continue
        delta = _delta(adapter, seen, strength)
        total = delta if total is None else total + delta
    return None if total is None else laid_out_like(total, like)


def laid_out_like(delta: Tensor, features: Tensor) -> Tensor:
    """Return the delta in the features' dtype and memory layout.

    Adding a tensor with other strides could change the strides of the sum. The next layer of the base might then run
    another kernel, which rounds differently.
    """
    if captured() or delta.stride() == features.stride():
        return delta.to(features.dtype)
    return torch.empty_like(features).copy_(delta)


def _delta(adapter: FeatureAdapter, features: Features, strength: Strength = 1.0) -> Tensor:
    """Compute an adapter's delta times its strength, in the dtype of its parameters or that of autocast."""
    delta = adapter.delta(_as_read(adapter, features))
    if not captured() and delta.shape != features.values.shape:
        raise PlanError(
            f"the delta of a {adapter.kind} adapter must have shape {tuple(features.values.shape)}, not "
            f"{tuple(delta.shape)}"
        )
    return scaled(delta, strength, images=features.layout.batch_dim if features.layout.counts_images else None)


def _as_read(adapter: FeatureAdapter, features: Features) -> Features:
    """Convert features to the dtype of an adapter's parameters (unchanged under autocast); raise on partial scenes."""
    x = features.values
    if features.views > 1 and not captured() and x.shape[features.layout.batch_dim] % features.views:
        raise PlanError(
            f"an adapter that mixes {features.views} views got {x.shape[features.layout.batch_dim]} images, not a "
            f"multiple of {features.views}: call the model with {features.views} views, or use "
            "`with lowpeft.disabled(model):` for single images"
        )
    parameter = next(adapter.parameters(), None)
    dtype = x.dtype if parameter is None else parameter.dtype
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        features = replace(features, values=x.to(dtype))
    return features


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise PlanError("an adapter reads its module's input, but the module was called without a tensor")


def _seen(attachment: Attachment, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Features:
    """Return the features at a module's output, with height and width where they are known."""
    layout = attachment.layout or Layout.NCHW
    return Features(x, layout, _size(attachment, layout, x, args, kwargs), attachment.views)


def _size(
    attachment: Attachment, layout: Layout, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Size | None:
    if layout is Layout.WLC:
        return None
    if not layout.is_tokens:
        return (x.shape[2], x.shape[3]) if layout is Layout.NCHW else (x.shape[1], x.shape[2])
    tokens = x.shape[1 - layout.batch_dim]
    return find_size((*args, *kwargs.values()), tokens) or (square_size(tokens) if attachment.square else None)


def _add_by_rows(
    module: nn.Module, adapters: list[Acting[FeatureAdapter]], features: Features, others: list[Any]
) -> Tensor:
    """Return features + deltas, computed in chunks of image rows.

    The features are overwritten unless arguments, parameters, buffers or other outputs share their memory.
    """
    tensors = (*tree_leaves(others), *module.parameters(), *module.buffers())
    held = {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, Tensor)}
    values = features.values
    result = values.clone() if values.untyped_storage().data_ptr() in held else values
    rows = replace(features, values=result).rows
    step = max(1, int(rows.shape[1] * ROW_CHUNK_BYTES / (rows.numel() * rows.element_size())))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        size = (part.shape[1], part.shape[2])
        part += sum(
            _delta(a, Features(part, Layout.NHWC, size, a.attachment.views), strength).to(part.dtype)
            for a, strength in adapters
        )
    return result


def _can_go_by_rows(acting: list[Acting[FeatureAdapter]], features: Tensor) -> bool:
    adapters = [a for a, _ in acting]
    return (
        not captured()
        and not torch.is_grad_enabled()
        and features.numel() * features.element_size() > ROW_CHUNK_BYTES
        and any(a.needs_rows for a in adapters)
        and all(a.row_local and not a.reads_only and a.attachment.source == "output" for a in adapters)
    )


def kept_input(module: nn.Module, slot: Slot, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return a module's first tensor argument, before it runs, if an adapter on it reads that; else None.

    It is a copy if a layer inside is set to write in place.
    """
    if all(a.adapter.attachment.source == "output" for a in on_output(slot)):
        return None
    x = _first_tensor(args, kwargs)
    return x.clone() if any(getattr(m, "inplace", False) is True for m in module.modules()) else x


def with_deltas(
    module: nn.Module, slot: Slot, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any], read: Tensor | None
) -> Any:
    """Return a module's output plus the deltas of the adapters on it; `read` is what `kept_input` returned."""
    adapters, new = on_output(slot), output
    for item in dict.fromkeys(each.adapter.attachment.item for each in adapters):
        group = [each for each in adapters if each.adapter.attachment.item == item]
        changed = _with_deltas_of(module, group, output, args, kwargs, read)
        new = changed if item is None else _with_item(new, item, changed)
    return new


def _with_deltas_of(
    module: nn.Module,
    adapters: list[Acting[FeatureAdapter]],
    output: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    read: Tensor | None,
) -> Tensor:
    """Return the tensor of the output that these adapters are on, plus their deltas."""
    attachment = adapters[0].adapter.attachment
    item = attachment.item
    values: Tensor = output if item is None else output[item]
    if _can_go_by_rows(adapters, values):
        rest = [] if item is None else [o for i, o in enumerate(output) if i != item]
        features = _seen(attachment, values, args, kwargs)
        return _add_by_rows(module, adapters, features, [args, kwargs, rest])

    def features_of(adapter: FeatureAdapter) -> Features:
        attachment = adapter.attachment
        x = values if attachment.source == "output" or read is None else read
        return _seen(attachment, x, args, kwargs)

    delta = _sum_of_deltas(adapters, features_of, values)
    return values if delta is None else values + delta


def _with_item(output: Any, item: int, new: Tensor) -> Any:
    """Return a tuple or list with one element replaced; its type (e.g. a named tuple) is kept."""
    values = [new if i == item else v for i, v in enumerate(output)]
    return output._make(values) if hasattr(output, "_make") else type(output)(values)


def added_to_random_features(adapter: FeatureAdapter, channels: int) -> Tensor:
    """Return what a feature adapter adds to random features (V,16,24,C) of one scene with V views.

    For a `TokenAdapter` this is the gate of its tokens.
    """
    size, views = (16, 24), adapter.attachment.views
    parameter = next(itertools.chain(adapter.parameters(), adapter.buffers()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(views, *size, channels, generator=generator, device="cpu").to(parameter.device)
    values = values.to(parameter.dtype) if parameter.is_floating_point() else values
    features = Features(values, Layout.NHWC, size, views)
    return adapter.tokens(features).gate if isinstance(adapter, TokenAdapter) else _delta(adapter, features)


GLOBAL_HOOKS = (
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
    torch.nn.modules.module._global_backward_hooks,
    torch.nn.modules.module._global_backward_pre_hooks,
)


def _acts_when_called(module: nn.Module) -> bool:
    """Return whether something happens when the module is called, beyond the forward of its class or a plain layer."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    slot = slot_of(module)
    others = slot is not None and any(piece.attachment.form != "weight" for piece in pieces_in(slot))
    own_linear = isinstance(module, nn.Linear) and original_class(module).forward is not nn.Linear.forward
    return any(hooks) or others or own_linear or "forward" in module.__dict__


class BlockPorts:
    """Active adapters of one block during one call; implements `lowpeft.families.Ports`."""

    def __init__(self, adapters: dict[str, list[Acting[FeatureAdapter]]]) -> None:
        self.adapters = adapters

    def wants(self, port: str) -> bool:
        """Return whether an active adapter is at the port."""
        return port in self.adapters

    def is_adapted(self, module: nn.Module) -> bool:
        """Return whether the module, or one below it, has adapters."""
        return any(slot_of(m) is not None for m in module.modules())

    def must_call(self, module: nn.Module) -> bool:
        """Return whether the module, or one below it, does more when it is called than its class or torch's layer."""
        return any(GLOBAL_HOOKS) or any(_acts_when_called(m) for m in module.modules())

    def layer(self, module: nn.Module) -> Affine:
        """Return the weight and bias of a linear layer inside the block, as its adapters change them."""
        factors = low_rank_changes(module)
        weight: Tensor = module.weight if factors is None else module._parameters["weight"]  # type: ignore[assignment]
        return Affine(weight, module.bias, factors or ())  # type: ignore[arg-type]

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        """Return the sum of the deltas of the adapters at the port, or None."""
        adapters = self.adapters.get(port)
        if not adapters:
            return None
        return _sum_of_deltas(adapters, lambda a: Features(values, layout, size, a.attachment.views), values)

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> list[ExtraTokens]:
        """Return the extra keys and values of each adapter at the port; the gate is multiplied by its strength."""
        extra = []
        for adapter, strength in self.adapters.get(port, []):
            if not isinstance(adapter, TokenAdapter):
                raise PlanError(f"a {adapter.kind} adapter is not a TokenAdapter, so it cannot be at the port {port}")
            seen = _as_read(adapter, Features(values, layout, size, adapter.attachment.views))
            given = adapter.tokens(seen)
            gate = given.gate
            if isinstance(strength, Tensor) and strength.dim():
                gate = gate.expand(seen.values.shape[layout.batch_dim], 1, gate.shape[-1] if gate.dim() else 1)
            extra.append(given._replace(gate=scaled(gate, strength, images=0)))
        return extra


# --- what weight adapters add ----------------------------------------------------------------------------------------


def base_of(module: nn.Module, adapter: WeightAdapter) -> dict[str, Tensor]:
    """Return the frozen parameters that an adapter changes, detached, by name."""
    tensors = {name: module._parameters[name] for name in adapter.attachment.tensors}
    return {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}


def change_of(module: nn.Module, name: str, adapter: WeightAdapter) -> Tensor:
    """Return an adapter's change of one parameter; raise if its shape differs (it would be broadcast silently)."""
    change = adapter.change(base_of(module, adapter)).get(name)
    wanted = module._parameters[name]
    if change is None or wanted is None or change.shape != wanted.shape:
        shapes = [None if t is None else tuple(t.shape) for t in (wanted, change)]
        raise PlanError(
            f"the change of {name} by a {adapter.kind} adapter must have shape {shapes[0]}, not {shapes[1]}"
        )
    return change


def low_rank_changes(layer: nn.Module) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Return the changes of a layer's weight as factors (a, b); None if its changed weight is to be used.

    With factors, training needs no gradient of the whole weight. They are used if all adapters of the weight have them
    (`WeightAdapter.factors`), gradients are wanted, and two thin products are cheaper than one whole.
    """
    slot, weight = slot_of(layer), layer._parameters.get("weight")
    if slot is None or weight is None or not torch.is_grad_enabled() or captured():
        return None
    found = []
    for adapter, strength in on_tensor(slot, "weight"):
        pair = adapter.factors()
        if pair is None or (isinstance(strength, Tensor) and strength.dim()):
            return None
        a, b = pair
        groups = int(getattr(layer, "groups", 1))  # each group multiplies with all of a
        if a.dtype != weight.dtype or len(a) * (len(b) + groups * a.shape[1]) >= weight.numel():
            return None
        found.append((a, scaled(b, strength)))
    return tuple(found)


def adapted_tensor(
    module: nn.Module, name: str, adapters: list[Acting[WeightAdapter]], *, exact: bool = False
) -> Tensor:
    """Return a parameter plus each adapter's change times its strength, in the parameter's dtype.

    Each change is computed from the frozen parameter alone, so the order of adapters does not matter. The sum is
    computed in the wider of the dtypes of parameter and changes.

    Args:
        module: Module with the parameter.
        name: Name of the parameter.
        adapters: Adapters that change the parameter, each with a number as strength.
        exact: True to add in float64 and return float64.

    Raises:
        PlanError: The module has no such parameter, or a strength is by image.
    """
    weight = module._parameters[name]
    if weight is None:
        raise PlanError(f"{type(module).__name__} has no {name}")
    for adapter, strength in adapters:
        if isinstance(strength, Tensor) and strength.dim():
            raise PlanError(
                f"a {adapter.kind} adapter changes weights, which all images of a batch share, so strengths by image "
                "need one forward for each: call the whole network, not a part of it, and not with fullgraph=True"
            )
    device = weight.device.type
    # Under autocast, a product of two float32 matrices would be bfloat16, and so would the sum.
    with without_autocast(device):
        parts = [scaled(change_of(module, name, adapter), strength) for adapter, strength in adapters]
        if exact:
            return weight.double() + sum(p.double() for p in parts)
        delta = functools.reduce(torch.add, parts)
        dtype = torch.promote_types(weight.dtype, delta.dtype)
        return (weight.to(dtype) + delta.to(dtype)).to(weight.dtype)
