"""Generated subclasses: adapters act by changing a module's class; the object stays the same.

An adapted module becomes an instance of a generated subclass of its class and gets one child, `lowpeft`, which contains
its adapters. The names of its parameters and `isinstance` checks stay valid. Removing the adapters restores the class.
There are no hooks. The state of a call exists only during that call (see `running`), so forward passes are thread-safe,
and a deep copy is an independent model.

`Facets` list the changes of a module. Its forward is wrapped in this order, the last outermost:

* `block`: `forward` is a block forward, for places inside a block that are not the output of any module;
* `lean`: a frozen convolution or batch norm keeps no input for backward;
* `output`: `forward` adds the adapters' deltas to the output of the inner forward;
* `memory`: the block is run as `lowpeft.optimize` was asked to: fused, with what backward keeps rebuilt or recomputed;
* `live_input`: the root's input requires a gradient while a module below checkpoints, because reentrant checkpointing
  of inputs without gradients would detach the output;
* `acts`: root parts of adapters see the input and may add to the output;
* `views`: the root accepts only a `ViewBatch` while an adapter below mixes neighbours in the batch;
* `switched`: the root reads once per forward pass which adapters act, and blocks changes of its structure meanwhile.

Changes other than to the forward:

* `tensors`: reading one of these parameters as an attribute returns base + changes, to every reader of the attribute;
* `root`: `train()` leaves the frozen base in eval mode.
"""

from __future__ import annotations

import copyreg
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, cast

from torch import Tensor, nn

from ...errors import PlanError
from ...families import get_block
from ...families.quirks import DIFFERENTIABLE_IN_TRAINING_ONLY
from ...frozen import layers
from ...frozen.linear import Affine
from ...frozen.rebuilding import Level, rebuilding
from ...ports.base import SLOT, original_class
from ...ports.capture import captured
from ...ports.facts import RECORD
from .adding import BlockPorts, adapted_tensor, kept_input, low_rank_changes, with_deltas
from .recomputing import recomputed
from .record import Memory
from .root_forwards import REPLICA, acting_forward, live_input_forward, switched_forward, views_forward
from .running import in_force
from .slots import Slot, at_ports, on_tensor, slot_of

CLASSES = "_lowpeft_classes"
"""Name of the attribute of a user's class that caches its generated subclasses, so that they are freed with it."""


@dataclass(frozen=True, kw_only=True)
class Facets:
    """Changes that a generated subclass makes; see the module's docstring."""

    block: str | None = None
    lean: bool = False
    output: bool = False
    memory: Memory | None = None
    tensors: frozenset[str] = frozenset()
    root: bool = False
    live_input: bool = False
    acts: bool = False
    views: int = 1
    switched: bool = False


# --- the generated subclasses ----------------------------------------------------------------------------------------


def specialised(base: type[nn.Module], facets: Facets) -> type[nn.Module]:
    """Return the subclass of `base` for the facets, cached on `base`: the same class for every call."""
    if CLASSES not in base.__dict__:
        setattr(base, CLASSES, {})
    known: dict[Facets, type[nn.Module]] = base.__dict__[CLASSES]
    return known.get(facets) or known.setdefault(facets, _specialise(base, facets))


def _specialise(base: type[nn.Module], facets: Facets) -> type[nn.Module]:
    forward = base.forward
    if facets.block is not None:
        forward = _block_forward(base, facets.block, fused=facets.memory is not None)
    wrappers: list[tuple[bool, Callable[[Callable[..., Any]], Callable[..., Any]]]] = [
        ("weight" in facets.tensors and forward in LOW_RANK_FORWARDS, _low_rank_forward),
        (facets.lean, _lean_forward),
        (facets.output, _output_forward),
        (facets.memory is not None, functools.partial(_memory_forward, memory=facets.memory)),
        (facets.live_input, live_input_forward),
        (facets.acts, acting_forward),
        (facets.views > 1, functools.partial(views_forward, views=facets.views)),
        (facets.switched, switched_forward),
    ]
    for wanted, wrap in wrappers:
        forward = wrap(forward) if wanted else forward
    body: dict[str, Any] = {name: _tensor_property(name) for name in sorted(facets.tensors)}
    if forward is not base.forward:
        body["forward"] = functools.wraps(base.forward)(_with_own_code(forward))
    if facets.root:
        body["train"] = _train
    if facets.switched:
        body["_replicate_for_data_parallel"] = _replicate
    body |= _members(base)
    body |= {
        "__reduce_ex__": _reduce_ex,
        "_lowpeft_base": base,
        "_lowpeft_facets": facets,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    try:
        return type(base.__name__, (base,), body)
    except Exception as error:  # the user's metaclass or `__init_subclass__` rejects the subclass
        raise PlanError(f"{base.__name__} cannot be specialised: {type(error).__name__}: {error}") from error


def _members(base: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """Return methods that hide the slot when a container is iterated, because some networks call every member."""

    def own(self: nn.Module) -> dict[str, nn.Module | None]:
        return {name: module for name, module in self._modules.items() if name != SLOT}

    def item(self: nn.Sequential, index: int | slice) -> Any:
        if not isinstance(index, slice):
            return list(own(self).values())[index]
        return base(OrderedDict(list(own(self).items())[index]))

    if issubclass(base, nn.Sequential):
        members = {"__iter__": lambda self: iter(own(self).values()), "__len__": lambda self: len(own(self))}
        return members | ({"__getitem__": item} if base.__getitem__ is nn.Sequential.__getitem__ else {})
    if issubclass(base, nn.ModuleDict):  # timm's feature extractors
        return {
            "__iter__": lambda self: iter(own(self)),
            "__len__": lambda self: len(own(self)),
            "keys": lambda self: own(self).keys(),
            "values": lambda self: own(self).values(),
            "items": lambda self: own(self).items(),
        }
    return {}


def _with_own_code(function: Any) -> Callable[..., Any]:
    """Copy a function with a new code object: `torch.compile` counts recompilations per code object."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def facets_of(module: nn.Module) -> Facets:
    """Return the facets of the module's class."""
    return getattr(type(module), "_lowpeft_facets", Facets())


def set_facets(module: nn.Module, **changes: Any) -> None:
    """Change some facets of a module's class; without any facet left, restore the user's class."""
    facets = replace(facets_of(module), **changes)
    base = original_class(module)
    module.__class__ = base if facets == Facets() else specialised(base, facets)


def _block_forward(base: type[nn.Module], name: str, *, fused: bool) -> Callable[..., Any]:
    block = get_block(name)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slot = slot_of(self)
        adapters = at_ports(slot) if slot is not None else {}
        if fused and block.fused is not None and not captured():
            output = block.fused(self, BlockPorts(adapters), *args, **kwargs)
            if output is not NotImplemented:
                return output
        if block.forward is None or (not adapters and block.exact):
            return base.forward(self, *args, **kwargs)
        return block.forward(self, BlockPorts(adapters), *args, **kwargs)

    return forward


LOW_RANK_FORWARDS = (nn.Linear.forward, *(cls.forward for cls in layers.CONVOLUTIONS))
"""Forwards of the layers whose low-rank changes may run as two thin products."""


def _low_rank_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Run low-rank changes of a linear layer or convolution as two thin products, where that is cheaper."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        factors = low_rank_changes(self)
        if not factors or len(args) != 1 or kwargs:
            return inner(self, *args, **kwargs)
        bias = self.bias
        if isinstance(self, nn.Linear):
            return Affine(cast(Tensor, self._parameters["weight"]), bias, factors).plain(args[0])
        if not layers.is_convolution(self, original_class(self)) or (bias is not None and bias.requires_grad):
            return inner(self, *args, **kwargs)
        return layers.run_low_rank(self, args[0], bias, factors)

    return forward


def _lean_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if captured() or not args or not layers.can_run(self, args[0]):
            return inner(self, *args, **kwargs)
        return layers.run(self, inner, *args, **kwargs)

    return forward


def _memory_forward(inner: Callable[..., Any], memory: Memory | None) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if captured():  # a compiled graph does its own recomputation
            return inner(self, *args, **kwargs)
        if memory == "checkpoint":
            return recomputed(self, inner, args, kwargs)
        with rebuilding(Level.CHEAP if memory == "keep" else Level.PRODUCTS):
            return inner(self, *args, **kwargs)

    return forward


def _output_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slot = slot_of(self)
        if slot is None:
            return inner(self, *args, **kwargs)
        read = kept_input(self, slot, args, kwargs)
        before = None if read is None or captured() or read.is_inference() else read._version
        output = inner(self, *args, **kwargs)
        if read is not None and before is not None and read._version != before:
            raise PlanError(
                f"{original_class(self).__name__} overwrites its input, which adapters beside it read: name other "
                "modules with target=, or let it work on a copy"
            )
        return with_deltas(self, slot, output, args, kwargs, read)

    return forward


def _replicate(self: nn.Module) -> nn.Module:
    """Make a DataParallel replica (in the caller's thread) and store the setting on it: its own thread sees none."""
    replica: nn.Module = original_class(self)._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]
    setting = in_force(getattr(self, RECORD).switches)
    if setting.images is not None:
        raise PlanError("DataParallel splits batches, so each strength must be one number, not one for each image")
    replica.__dict__[REPLICA] = setting
    return replica


def _tensor_property(name: str) -> property:
    def read(self: nn.Module) -> Tensor | None:
        weight = self._parameters[name]
        slot = slot_of(self)
        adapters = on_tensor(slot, name) if slot is not None and weight is not None else []
        try:
            return adapted_tensor(self, name, adapters) if adapters else weight
        except AttributeError as error:  # else torch falls back to `__getattr__`, the frozen parameter
            raise RuntimeError(f"an adapter of {name} failed: {error}") from error

    return property(read, doc=f"The base's {name} plus what its adapters add.")


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Set adapters to train or eval mode; the frozen base stays in eval mode. Replaces `nn.Module.train`."""
    original_class(self).train(self, False)
    for module in self.modules():
        if isinstance(module, Slot):
            module.train(mode)
        elif original_class(module).__name__ in DIFFERENTIABLE_IN_TRAINING_ONLY:
            module.training = mode
    return self


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Pickle and copy by the user's class and the facets, because a generated class cannot be imported by name."""
    base, facets = original_class(self), facets_of(self)
    reduced: Any = base.__reduce_ex__(self, max(2, int(protocol)))
    function, args, *rest = reduced
    if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
        raise PlanError(f"{base.__name__} has its own way of pickling, so it cannot be pickled or copied once adapted")
    return (_new, (base, facets, *args[1:]), *rest)


def _new(base: type[nn.Module], facets: Facets, *args: Any) -> nn.Module:
    cls = specialised(base, facets)
    return cls.__new__(cls, *args)
