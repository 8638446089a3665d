"""Atomic changes of an adapted network: one at a time, and only while no forward pass is running."""

from __future__ import annotations

import copy
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import PlanError
from ...ports.base import all_modules, all_parameters
from ...ports.facts import RECORD
from .record import Record, has_record, record_of, root_of, unwrap
from .root_forwards import SWITCHED_CODE
from .running import running_in
from .specialise import set_facets
from .switches import POLL_S, Switches, hold

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")

_switches_by_network: Any = WeakIdKeyDictionary()  # by identity: networks may compare equal or be unhashable
_switches_lock = threading.RLock()


def switches_for(root: nn.Module) -> Switches:
    """Return the switches of a network; the same object during its whole life, even while it has no adapters."""

    def find() -> Switches:
        if RECORD in root.__dict__:
            _switches_by_network[root] = record_of(root).switches
        known: Switches = _switches_by_network.setdefault(root, Switches())
        return known

    return hold(_switches_lock, find)


def one_at_a_time(function: Function) -> Function:
    """Make a function hold the structure lock of its first argument, `model`, while it runs.

    Other such calls for the same network wait; forward passes do not, see `Switches.alone`.
    """

    @functools.wraps(function)
    def locked(*args: Any, **kwargs: Any) -> Any:
        model = args[0] if args else kwargs.get("model")
        switches = switches_for(unwrap(model) if has_record(model) else root_of(model))
        call = functools.partial(function, *args, **kwargs)
        # Within a forward the structure cannot change. Taking the lock here could deadlock: its holder may be waiting
        # for this forward.
        return hold(switches.structure, call) if running_in(switches) is None else call()

    return cast(Function, locked)


def change(root: nn.Module, body: Callable[[Undo], Result], *, record: Record | None = None) -> Result:
    """Run `body`, which changes the network, while no forward is running; an exception undoes all changes.

    Args:
        root: The network.
        body: Function that makes the changes. It gets an `Undo` and passes it every tensor that it will write;
            modules, modes and flags are saved without that.
        record: New record; required if the network has none yet.

    Raises:
        PlanError: A forward of the network is running in this thread, or the network has no record and none is given.
    """

    def attempt() -> Result:
        with Undo(root) as undo:
            return body(undo)

    def attach_gate() -> Result:
        with Undo(root):
            # Forwards that start from now on wait at the gate. Those that started before have no gate, so look for
            # them in the stacks of other threads.
            root.__dict__[RECORD] = record
            set_facets(root, switched=True)
            while any(_is_in_ungated(root, t) for t in sys._current_frames() if t != threading.get_ident()):
                time.sleep(POLL_S)
            return record_of(root).switches.alone(attempt)

    if running_in(switches_for(root)) is not None or _is_in_ungated(root, threading.get_ident()):
        raise PlanError("a network cannot be changed during its own forward")
    if RECORD in root.__dict__:
        return hold(switches_for(root).structure, lambda: record_of(root).switches.alone(attempt))
    if record is None:
        raise PlanError(f"this {type(root).__name__} has no adapters")
    return hold(switches_for(root).structure, attach_gate)


_CALLS = {nn.Module._call_impl.__code__, nn.Module._wrapped_call_impl.__code__}


def _is_in_ungated(root: nn.Module, thread: int) -> bool:
    """Return whether a thread is in a forward of the network that started before the network had a gate."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code == SWITCHED_CODE and frame.f_locals.get("self") is root:
            return False
        if frame.f_code in _CALLS and frame.f_locals.get("self") is root:
            return True
        frame = frame.f_back
    return False


class Undo:
    """Context manager that saves a network's state and restores it if the block is left by an exception.

    The state is every module's class, mode and children, the `requires_grad` of parameters, the record, the switches
    (such as default strengths), and the tensors given to `keep`.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = [
            (m, type(m), m.training, dict(m._modules)) for _, m in all_modules(root) if isinstance(m._modules, dict)
        ]
        self.parameters = [(p, p.requires_grad) for _, p in all_parameters(root)]
        self.record: Record | None = root.__dict__.get(RECORD)
        self.fields: dict[str, Any] = {}
        if self.record is not None:
            self.fields = {name: copy.copy(value) for name, value in vars(self.record).items() if name != "switches"}
            self.switches = self.record.switches.state()
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self.layouts: list[tuple[nn.Parameter, tuple[int, ...]]] = []

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Save copies of tensors that are about to be written."""
        self.tensors += [(t, t.detach().clone()) for t in tensors]

    def keep_layouts(self, parameters: Iterable[nn.Parameter]) -> None:
        """Save the strides of parameters that are about to be laid out in another way."""
        self.layouts += [(p, p.stride()) for p in parameters]

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while kind is not None:
            try:
                self._put_back()
            except KeyboardInterrupt:  # interrupted again: restart, so that everything is restored
                continue
            return

    def _put_back(self) -> None:
        if self.record is not None:
            self.root.__dict__[RECORD] = self.record
            vars(self.record).update(self.fields)
            vars(self.record.switches).update(self.switches)
        for module, cls, training, children in self.modules:
            if list(module._modules.items()) != list(children.items()):
                module._modules.clear()
                module._modules.update(children)
            module.__dict__["training"] = training
            if type(module) is not cls:
                module.__class__ = cls
        for parameter, required in self.parameters:
            if parameter.requires_grad is not required:
                parameter.requires_grad_(required)
        with torch.no_grad():
            for tensor, old in self.tensors:
                tensor.copy_(old)
        for parameter, strides in self.layouts:
            lay_out(parameter, strides)
        if self.record is None:
            self.root.__dict__.pop(RECORD, None)


def lay_out(parameter: nn.Parameter, strides: tuple[int, ...]) -> None:
    """Give a parameter other strides; its values and its identity stay the same."""
    if parameter.stride() != strides:
        with torch.inference_mode(False):  # made in it, the weight could not be trained afterwards
            new = torch.empty_strided(parameter.shape, strides, dtype=parameter.dtype, device=parameter.device)
            parameter.data = new.copy_(parameter.data)
