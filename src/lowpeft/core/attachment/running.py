"""The setting of a forward: what is in force where it starts, while it runs, and when it is repeated.

Each adapted network has a default setting in its `Switches`; `lowpeft.using` puts another in force for one thread or
async task, by a context variable. The root of the network reads what is in force once for each forward, and all its
adapters find it in `RUNNING`, so that one forward never mixes two settings.

A forward that activation checkpointing repeats during `backward` is the same forward, although no block of `using` may
be open then, or another one. Its setting is therefore noted on the nodes of its autograd graph, and whatever runs while
such a node is evaluated finds it there.
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
    """A setting that a block of a thread or task has put in force for one network.

    Attributes:
        switches: Of the network.
        setting: What is in force.
        owner: The block. Where it is gone without having ended (an interruption came before), so is its setting.
        home: The thread and task that opened it; those that inherited the setting keep it when the block is gone.
        node: The step of a backward pass in which it was opened, if in any.
    """

    switches: Switches
    setting: Setting
    owner: weakref.ref[object]
    home: object
    node: object

    @property
    def is_open(self) -> bool:
        """Whether the block is there, or was opened elsewhere."""
        return self.owner() is not None or self.home != home()


def home() -> object:
    """What tells this thread and async task from others."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        task = None
    return threading.get_ident(), id(task)


USING: ContextVar[tuple[Use, ...]] = ContextVar("lowpeft_using", default=())
"""What this thread or task has put in force, the innermost last."""


class Running:
    """A forward that is under way, and the one around it.

    Attributes:
        switches: Of its network.
        setting: What its adapters use.
        called: The setting in which the root was called: before a batch was split into groups, and before parts routed.
        forward: What its root parts see.
        outer: The forward around it, of any network.
        over: Whether it has ended; tasks that were started in it may still see it.
    """

    def __init__(
        self, switches: Switches, setting: Setting, called: Setting, forward: Forward | None, outer: Running | None
    ) -> None:
        self.switches, self.setting, self.called = switches, setting, called
        self.forward, self.outer = forward, outer
        self.over = False


RUNNING: ContextVar[Running | None] = ContextVar("lowpeft_running", default=None)
"""The innermost forward of an adapted network that is under way in this thread or task."""


def running_in(switches: Switches) -> Running | None:
    """The forward of that network that is under way here."""
    running = RUNNING.get()
    while running is not None and (running.over or running.switches is not switches):
        running = running.outer
    return running


def in_force(switches: Switches) -> Setting:
    """The setting that a forward which starts now in this thread or task gets."""
    noted = _noted(switches)
    return _in_block(switches) if noted is None else noted.called


def _in_block(switches: Switches) -> Setting:
    uses = uses_of(switches)
    return uses[-1].setting if uses else switches.default


def uses_of(switches: Switches) -> list[Use]:
    """What is in force here for one network, the innermost last."""
    uses = [use for use in USING.get() if use.switches is switches]
    return uses if torch.compiler.is_dynamo_compiling() else [use for use in uses if use.is_open]


def strengths_in(switches: Switches) -> Mapping[str, Strength]:
    """The strengths by adapter name for what an adapter of that network computes now."""
    running = running_in(switches)
    if running is not None:
        return running.setting.tensors if compiling() else running.setting.values
    noted = _noted(switches)
    if noted is None:  # a part of the network that is called by itself
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
    """The strengths as tensors, those by scene once for each view."""
    if switches.views == 1:
        return setting.tensors
    return {n: t.repeat_interleave(switches.views) if t.dim() else t for n, t in setting.tensors.items()}


def forget(switches: Switches, names: Iterable[str]) -> None:
    """Take adapters out of what this thread or task has put in force, because they are part of the base now."""
    uses = list(USING.get())
    for name in names:
        uses = [u._replace(setting=u.setting.without(name)) if u.switches is switches else u for u in uses]
    USING.set(tuple(uses))


def compiling() -> bool:
    """Whether `torch.compile` traces the forward, and strengths are inputs of what it compiles."""
    return torch.compiler.is_dynamo_compiling() and not exporting()


def exporting() -> bool:
    """Whether `torch.export` captures the forward."""
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
    """Run a forward in a setting; `called` is that of the root, where it is another one."""
    outer = running_in(switches)
    called = called or (setting if outer is None else outer.called)
    around = RUNNING.get()
    running = Running(switches, setting, called, forward, around)
    try:  # an interruption between setting the variable and keeping its token would leave it set
        RUNNING.set(running)
        output = call()
    finally:
        running.over = True
        RUNNING.set(around)
    note(switches, setting, called, inputs, output)
    return output


# --- forwards that checkpointing repeats -----------------------------------------------------------------------------


class Noted(NamedTuple):
    """What is noted of a forward: the settings of `Running`, and which adapters the names stood for.

    `several` says whether one checkpoint holds calls in other settings, too; `is_reentrant`, of what was found, whether
    it is repeated by a reentrant checkpoint.
    """

    setting: Setting
    called: Setting
    owners: Mapping[str, object]
    several: bool = False
    is_reentrant: bool = False


def note(switches: Switches, setting: Setting, called: Setting, inputs: object, output: object) -> None:
    """Note the settings of a forward on the nodes of its autograd graph, down to the graph that its inputs came with.

    Without gradients there is no graph, unless reentrant checkpoints run the whole network: then on their nodes.
    """
    if torch.compiler.is_dynamo_compiling():  # a graph that is compiled checkpoints by itself
        return
    # The strengths of a router belong to the graph themselves; a node that held them would keep itself alive.
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
    """Note settings on the nodes of the reentrant checkpoints that are running this code, which torch keeps there."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            metadata = frame.f_locals["ctx"].metadata
            before: Noted | None = metadata.get(switches)
            several = before is not None and (before.several or before.called.values != noted.called.values)
            metadata[switches] = noted._replace(several=several)
        frame = frame.f_back


def _is_repeated(node: Any) -> bool:
    """Whether the code that runs while a node is evaluated is a forward's again, and not that of a hook.

    It is below `torch.utils.checkpoint`, or in the backward of a Function that somebody wrote for the same purpose.
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
    """What is noted of the forward that checkpointing is repeating here; None for code that repeats none.

    Raises:
        PlanError: Adapters that acted in it have been taken out or started anew.
    """
    node: Any = None if torch.compiler.is_dynamo_compiling() else torch._C._current_autograd_node()
    if node is None:
        return None
    uses = uses_of(switches)
    noted: Noted | None = node.metadata.get(switches)
    opened_here = bool(uses) and uses[-1].node is node  # a block that was opened in this very step is newer
    if noted is None or opened_here or not _is_repeated(node):
        return None
    if noted.several:
        raise PlanError(
            "a reentrant checkpoint holds calls of this network in several settings, and repeats them for its backward "
            "pass: checkpoint each call by itself, or with use_reentrant=False"
        )
    if not torch.is_grad_enabled():  # a checkpoint inside the checkpoint that is repeated
        _note_on_checkpoints(switches, noted)
    names = {owner: name for name, owner in switches.owners.items()}
    gone = [name for name, owner in noted.owners.items() if owner not in names]
    if gone:
        raise PlanError(
            f"{', '.join(gone)} acted in a forward that checkpointing repeats for its backward pass now, and has been "
            "taken out, merged or started anew since: run `backward` before"
        )
    renamed = {name: names[owner] for name, owner in noted.owners.items() if names[owner] != name}
    setting, called = noted.setting.renamed(renamed), noted.called.renamed(renamed)
    reentrant = getattr(node, "_forward_cls", None) is CheckpointFunction
    return Noted(setting, called, noted.owners, is_reentrant=reentrant)


def _tensors(value: object, depth: int = 8) -> list[Tensor]:
    """The tensors in arguments or results, also in sets and in attributes of objects."""
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
