"""The setting of a forward pass: when it starts, while it runs, and when checkpointing repeats it.

Each adapted network has a default setting in its `Switches`. `lowpeft.using` puts another in force for one thread or
async task, by a context variable. The root of the network reads the setting in force once for each forward, and all its
adapters find it in `RUNNING`. So one forward never mixes two settings.

When activation checkpointing repeats a forward during `backward`, it must use the same setting, although the `using`
block may have ended, or another may be open. Therefore the setting is noted on the nodes of the forward's autograd
graph; code that runs while such a node is evaluated finds it there.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from ...errors import PlanError
from .settings import Setting, Strength
from .switches import Switches

if TYPE_CHECKING:
    from ...kinds import Forward


class Use(NamedTuple):
    """A setting that a `using` block has put in force for one network in a thread or task.

    Attributes:
        switches: Switches of the network.
        setting: Setting in force.
        owner: Weak reference to the block. If the block was freed without ending (because of an interruption), its
            setting is no longer in force.
        home: Thread and task that opened the block. Tasks that inherited the setting keep it after the block ends.
        node: Autograd node that was being evaluated when the block was opened, or None outside a backward pass.
    """

    switches: Switches
    setting: Setting
    owner: weakref.ref[object]
    home: object
    node: object

    @property
    def is_open(self) -> bool:
        """True if the block exists, or was opened in another thread or task."""
        return self.owner() is not None or self.home != home()


def home() -> object:
    """Return an identifier of this thread and async task."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        task = None
    return threading.get_ident(), id(task)


USING: ContextVar[tuple[Use, ...]] = ContextVar("lowpeft_using", default=())
"""Settings that this thread or task has put in force, the innermost last."""


class Running:
    """A running forward pass, linked to the enclosing one.

    Attributes:
        switches: Switches of its network.
        setting: Setting that its adapters use.
        called: Setting of the call of the root: before the batch was split into groups and before root parts routed.
        forward: State that its root parts see; None if there is none.
        outer: Enclosing forward, of any network; None if there is none.
        over: True after it has ended; tasks that were started in it may still see it.
    """

    def __init__(
        self, switches: Switches, setting: Setting, called: Setting, forward: Forward | None, outer: Running | None
    ) -> None:
        self.switches, self.setting, self.called = switches, setting, called
        self.forward, self.outer = forward, outer
        self.over = False


RUNNING: ContextVar[Running | None] = ContextVar("lowpeft_running", default=None)
"""Innermost running forward of an adapted network in this thread or task."""


def running_in(switches: Switches) -> Running | None:
    """Return the innermost running forward of one network in this thread or task, or None."""
    running = RUNNING.get()
    while running is not None and (running.over or running.switches is not switches):
        running = running.outer
    return running


def in_force(switches: Switches) -> Setting:
    """Return the setting that a forward gets if it starts now in this thread or task."""
    noted = _noted(switches)
    return _in_block(switches) if noted is None else noted.called


def _in_block(switches: Switches) -> Setting:
    uses = uses_of(switches)
    return uses[-1].setting if uses else switches.default


def uses_of(switches: Switches) -> list[Use]:
    """Return the open `using` blocks for one network in this thread or task, the innermost last."""
    uses = [use for use in USING.get() if use.switches is switches]
    return uses if torch.compiler.is_dynamo_compiling() else [use for use in uses if use.is_open]


def strengths_in(switches: Switches) -> Mapping[str, Strength]:
    """Return the strengths, by adapter name, that apply to adapters of one network at this moment."""
    running = running_in(switches)
    if running is not None:
        return running.setting.tensors if compiling() else running.setting.values
    noted = _noted(switches)
    if noted is None:  # a part of the network is called directly, not through the root
        setting = _in_block(switches)
        if not torch.is_grad_enabled() and not torch.compiler.is_dynamo_compiling():
            _note_on_checkpoints(switches, Noted(setting, setting, switches.owners_of(setting)))
    else:
        setting = noted.setting
        if noted.is_reentrant and setting.has_gradient:
            raise PlanError(
                "a part of this network sets strengths that are trained, and reentrant checkpointing "
                "(use_reentrant=True) would lose their gradient: use torch.utils.checkpoint with use_reentrant=False"
            )
    return _as_inputs(switches, setting) if compiling() else setting.values


def _as_inputs(switches: Switches, setting: Setting) -> Mapping[str, Tensor]:
    """Return the strengths as tensors, with strengths by scene repeated for each view."""
    if switches.views == 1:
        return setting.tensors
    return {n: t.repeat_interleave(switches.views) if t.dim() else t for n, t in setting.tensors.items()}


def forget(switches: Switches, names: Iterable[str]) -> None:
    """Remove merged adapters from the settings that this thread or task has put in force."""
    uses = list(USING.get())
    for name in names:
        uses = [u._replace(setting=u.setting.without(name)) if u.switches is switches else u for u in uses]
    USING.set(tuple(uses))


def compiling() -> bool:
    """Return whether `torch.compile` traces the forward; strengths are then inputs of the compiled code."""
    return torch.compiler.is_dynamo_compiling() and not exporting()


def exporting() -> bool:
    """Return whether `torch.export` captures the forward."""
    asked: Callable[[], bool] | None = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return asked is not None and asked()


def run(
    switches: Switches,
    setting: Setting,
    call: Callable[[], Any],
    inputs: object,
    *,
    called: Setting | None = None,
    forward: Forward | None = None,
) -> Any:
    """Run a forward in a setting, and note the setting on its autograd graph.

    `called` is the setting of the call of the root, by default that of the enclosing forward of the network, or else
    `setting`. `inputs` are the arguments of the forward, where its graph begins.
    """
    outer = running_in(switches)
    called = called or (setting if outer is None else outer.called)
    around = RUNNING.get()
    running = Running(switches, setting, called, forward, around)
    try:  # no `RUNNING.reset(token)`: an interruption before the token is stored would leave the variable set
        RUNNING.set(running)
        output = call()
    finally:
        running.over = True
        RUNNING.set(around)
    note(switches, setting, called, inputs, output)
    return output


# --- forwards that checkpointing repeats -----------------------------------------------------------------------------


class Noted(NamedTuple):
    """Note of a forward on an autograd node: the settings of `Running`, and the adapters that their names stood for.

    Attributes:
        setting: Setting that the adapters used.
        called: Setting of the call of the root.
        owners: Identity of each adapter by its name at that time; see `Switches.owners`.
        several: True if one checkpoint contains calls in several settings.
        is_reentrant: True in the result of `_noted` if a reentrant checkpoint is repeating the forward.
    """

    setting: Setting
    called: Setting
    owners: Mapping[str, object]
    several: bool = False
    is_reentrant: bool = False


def note(switches: Switches, setting: Setting, called: Setting, inputs: object, output: object) -> None:
    """Note the settings of a forward on the nodes of its autograd graph, back to the nodes of its inputs.

    Without gradients there is no graph. If reentrant checkpoints run the whole network, use their nodes instead.
    """
    if torch.compiler.is_dynamo_compiling():  # a compiled graph does its own checkpointing
        return
    # Strengths set by root parts are in the graph themselves: a node that refers to them would keep itself alive.
    noted = Noted(setting.detached(), called, switches.owners_of(called))
    if not torch.is_grad_enabled():
        _note_on_checkpoints(switches, noted)
        return
    before = {t.grad_fn for t in _tensors(inputs)}
    todo = [t.grad_fn for t in _tensors(output)]
    while todo:
        node = todo.pop()
        following = node.next_functions if node is not None and node not in before else ()
        if node is None or not following:
            continue
        metadata: Any = node.metadata
        if switches not in metadata:
            metadata[switches] = noted
            todo += [n for n, _ in following]


def _note_on_checkpoints(switches: Switches, noted: Noted) -> None:
    """Note settings on the nodes of the reentrant checkpoints that are running this code, found on the call stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            metadata = frame.f_locals["ctx"].metadata
            before: Noted | None = metadata.get(switches)
            several = before is not None and (before.several or not before.called.same_as(noted.called))
            metadata[switches] = noted._replace(several=several)
        frame = frame.f_back


def _is_repeated(node: Any) -> bool:
    """Return whether the code that runs while a node is evaluated repeats a forward; False for the code of a hook.

    It repeats a forward if `torch.utils.checkpoint` is on the call stack, or if the node is the backward of a custom
    `Function`, which may do its own checkpointing.
    """
    forward = getattr(node, "_forward_cls", None)
    if forward is not None and forward is not BackwardHookFunction:
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == CheckpointFunction.forward.__code__.co_filename:
            return True
        frame = frame.f_back
    return False


def _noted(switches: Switches) -> Noted | None:
    """Return the note of the forward that checkpointing is repeating here, with current adapter names; else None.

    Raises:
        PlanError: Adapters that acted in it have been removed, merged or calibrated since, or one checkpoint contains
            calls in several settings.
    """
    node: Any = None if torch.compiler.is_dynamo_compiling() else torch._C._current_autograd_node()
    if node is None:
        return None
    uses = uses_of(switches)
    noted: Noted | None = node.metadata.get(switches)
    opened_here = bool(uses) and uses[-1].node is node  # a block opened in this step takes precedence
    if noted is None or opened_here or not _is_repeated(node):
        return None
    if noted.several:
        raise PlanError(
            "a reentrant checkpoint contains calls of this network in several settings, which its backward pass cannot "
            "repeat: checkpoint each call separately, or with use_reentrant=False"
        )
    if not torch.is_grad_enabled():  # a checkpoint nested in the repeated one
        _note_on_checkpoints(switches, noted)
    names = {owner: name for name, owner in switches.owners.items()}
    gone = [name for name, owner in noted.owners.items() if owner not in names]
    if gone:
        raise PlanError(
            f"checkpointing must repeat a forward with {', '.join(gone)}, but that was removed, merged or calibrated "
            "since: run `backward` first"
        )
    renamed = {name: names[owner] for name, owner in noted.owners.items() if names[owner] != name}
    setting, called = noted.setting.renamed(renamed), noted.called.renamed(renamed)
    reentrant = getattr(node, "_forward_cls", None) is CheckpointFunction
    return Noted(setting, called, noted.owners, is_reentrant=reentrant)


def _tensors(value: object, depth: int = 8) -> list[Tensor]:
    """Return the tensors in arguments or results, also in sets and object attributes, at most `depth` levels deep."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.nn.Module, type)):
        return []
    if isinstance(value, Mapping):
        parts: Iterable[object] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    else:
        slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
        parts = [*getattr(value, "__dict__", {}).values(), *(getattr(value, n, None) for n in slots)]
    return [tensor for part in parts for tensor in _tensors(part, depth - 1)]
