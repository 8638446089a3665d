"""Interrupting a call at every line of lowpeft that it runs, as Ctrl-C could, and saying what it left behind."""

from __future__ import annotations

import copy
import functools
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import lowpeft
from lowpeft import DoRAConfig, LoRAConfig, SpatialConfig
from lowpeft.core.attachment.changes import change, one_at_a_time
from lowpeft.ports.facts import RECORD
from states import randomise_adapters
from zoo import build

PACKAGE = str(Path(lowpeft.__file__).parent)

State = dict[str, object]
Line = tuple[str, int]


def state_of(root: nn.Module) -> State:
    """All of a network that a call of lowpeft may change, as plain values."""
    record = root.__dict__.get(RECORD)
    return {
        "classes": [(path, type(m), m.training, [*m._modules]) for path, m in root.named_modules()],
        "parameters": [(path, p.requires_grad, p.detach().clone()) for path, p in root.named_parameters()],
        "buffers": [(path, b.detach().clone()) for path, b in root.named_buffers()],
        "adapters": None if record is None else {name: plan.sites for name, plan in record.plans.items()},
        "base": None
        if record is None
        else (record.base, {*record.calibrated}, {**record.forwards}, {**record.digests}),
        "default": None if record is None else (record.switches.default.values, record.switches.in_groups),
    }


def same(one: object, two: object) -> bool:
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and [*one] == [*two] and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(two, type(one)) and len(one) == len(two) and all(map(same, one, two))
    return one == two


class _Tracer:
    """Counts the lines of lowpeft that run, and raises at the `number`-th run of one of them."""

    def __init__(self, line: Line | None = None, number: int = 1) -> None:
        self.runs: dict[Line, int] = {}
        self.line, self.number = line, number

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            here = (frame.f_code.co_filename, frame.f_lineno)
            self.runs[here] = self.runs.get(here, 0) + 1
            if here == self.line and self.runs[here] == self.number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def _traced(tracer: _Tracer, call: Callable[[], object]) -> bool:
    """Whether the call came to its end."""
    sys.settrace(tracer)
    try:
        call()
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(None)
        torch.set_grad_enabled(True)  # raised while `no_grad` is being left, an interruption leaves it on
    return True


def _is_free(root: nn.Module) -> bool:
    """Whether another thread can read and change the network: no lock of it is still held."""

    def use() -> None:
        one_at_a_time(lambda model: None)(root)
        if lowpeft.list_adapters(root):
            change(root, lambda undo: None)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(10.0)
    return not thread.is_alive()


def interrupt_everywhere(
    make: Callable[[], nn.Module], call: Callable[[nn.Module], object], *, runs_of_a_line: tuple[float, ...] = (0, 1)
) -> tuple[int, list[str]]:
    """Interrupt a call at every line of lowpeft that it runs, each time on a new network.

    Args:
        make: Makes the network, always the same.
        call: What is interrupted.
        runs_of_a_line: Which runs of a line that runs several times: 0 is the first, 1 the last, 0.5 the middle one.

    Returns:
        The number of interruptions, and for each that left the network neither as before nor as after: where it was,
        and what differs from before.
    """
    root = make()
    before = state_of(root)
    counting = _Tracer()
    _traced(counting, lambda: call(root))
    after = state_of(root)
    places = {
        (line, 1 + round(share * (count - 1))) for line, count in counting.runs.items() for share in runs_of_a_line
    }
    done, between = 0, []
    for line, number in sorted(places):
        root = make()
        if _traced(_Tracer(line, number), lambda root=root: call(root)):  # type: ignore[misc]
            continue
        done += 1
        found = state_of(root)
        if not _is_free(root):
            between.append(f"{Path(line[0]).name}:{line[1]} run {number}: a lock is still held")
        if not same(found, before) and not same(found, after):
            wrong = [name for name in before if not same(found[name], before[name])]
            between.append(f"{Path(line[0]).name}:{line[1]} run {number}: {', '.join(wrong)}")
    return done, between


# --- the calls that change a network ---------------------------------------------------------------------------------

ADAPTERS = [SpatialConfig(), LoRAConfig(target="body.**", rank=1)]


@functools.cache
def _made(adapters: str) -> nn.Module:
    root = build("edsr")
    if adapters:
        randomise_adapters(lowpeft.adapt(root, ADAPTERS, name="a"))
    if adapters == "ab":
        randomise_adapters(lowpeft.adapt(root, DoRAConfig(target="body.**", rank=1), name="b"))
    return root


@functools.cache
def _saved() -> str:
    folder = tempfile.mkdtemp()
    lowpeft.save_adapter(_made("a"), folder)
    return folder


def with_adapters(adapters: str) -> Callable[[], nn.Module]:
    """What makes EDSR without adapters, with `a`, or with `a` and `b`; the same each time."""
    return lambda: copy.deepcopy(_made(adapters))


def _adapt(root: nn.Module) -> None:
    torch.manual_seed(0)
    lowpeft.adapt(root, ADAPTERS, name="new")


def _write(root: nn.Module) -> None:
    state = {key: tensor + 1 for key, tensor in lowpeft.adapter_state_dict(root).items()}
    lowpeft.load_adapter_state_dict(root, state)


Call = tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]

CALLS: dict[str, Call] = {
    "adapt": (with_adapters(""), _adapt),
    "adapt beside another": (with_adapters("a"), _adapt),
    "load_adapter": (with_adapters(""), lambda m: lowpeft.load_adapter(m, _saved())),
    "load_adapter beside another": (with_adapters("a"), lambda m: lowpeft.load_adapter(m, _saved(), name="new")),
    "load_adapter_state_dict": (with_adapters("a"), _write),
    "restore": (with_adapters("ab"), lowpeft.restore),
    "restore one": (with_adapters("ab"), lambda m: lowpeft.restore(m, "a")),
    "merge": (with_adapters("ab"), lowpeft.merge),
    "delete": (with_adapters("a"), lambda m: lowpeft.delete(m, "a")),
    "rename": (with_adapters("ab"), lambda m: lowpeft.rename(m, "a", "c")),
    "set_strength": (with_adapters("ab"), lambda m: lowpeft.set_strength(m, 0.5)),
}
"""What makes the network, and what is called, by the name of the call."""
