"""Many threads or tasks with settings of their own, beside threads that plan, check, adapt, load and restore."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import lowpeft
from states import randomise_adapters
from zoo import build, image

Setting = Mapping[str, float | list[float]]

SETTINGS: tuple[Setting, ...] = (
    {"a": 1.0},
    {"b": 1.0},
    {"a": 0.5, "b": 0.25},
    {},
    {"low": 0.7},
    {"a": [0.0, 1.0]},
    {"low": [0.3, 0.9], "b": 0.5},
    {"a": 0.1, "b": 0.2, "low": 1.0},
)

FOR_ONE_GRAPH: tuple[Setting, ...] = (
    {"a": 1.0},
    {"a": 0.1},
    {"b": 1.0},
    {"b": 0.3},
    {"a": 0.5, "b": 0.25},
    {},
    {"a": [0.0, 1.0]},
    {"low": 1.0},
)


def switched(name: str = "hat") -> nn.Module:
    """A network of the zoo with two adapters of features and one of weights, all of them random."""
    model = build(name)
    for adapter in ("a", "b"):
        lowpeft.adapt(model, "spatial", name=adapter)
    target = "**.qkv" if name in ("hat", "swinir") else "body.**"
    lowpeft.adapt(model, lowpeft.LoRAConfig(target=target, rank=2), name="low")
    return randomise_adapters(model, std=0.2)


@dataclass
class Outcome:
    """What came out: results that were compared, those that differed, and what ran beside how often."""

    results: int = 0
    wrong: int = 0
    beside: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def stress(folder: Path, seconds: float, *, name: str = "hat", how: str = "threads") -> Outcome:
    """Run every setting by itself, then all at once for some time, and compare each result with that of its setting.

    Args:
        folder: Empty; an adapter is saved there, to be loaded again and again.
        seconds: How long.
        name: Row of the zoo.
        how: `threads`, `tasks` (asyncio, on one thread), or `compiled` (threads that call one compiled model, with
            settings that one graph can hold).
    """
    run = _Run(switched(name), image(name, 2), folder, how)
    workers = [threading.Thread(target=run.repeat, args=(change,)) for change in run.changes]
    if how == "tasks":
        workers.append(threading.Thread(target=asyncio.run, args=(run.all_tasks(),)))
    else:
        workers += [threading.Thread(target=run.one_thread, args=(i,)) for i in range(len(run.settings))]
    for worker in workers:
        worker.start()
    time.sleep(seconds)
    run.done.set()
    for worker in workers:
        worker.join()
    return run.outcome


class _Run:
    def __init__(self, model: nn.Module, x: Tensor, folder: Path, how: str) -> None:
        self.model, self.x, self.folder = model, x, folder
        self.outcome, self.done = Outcome(), threading.Event()
        self.changes = (self.plan, self.check, self.adapt_load_rename_delete_restore, self.disable_overlapping)
        self.call: Callable[[Tensor], Tensor] = model
        self.settings = SETTINGS
        if how == "compiled":
            self.call, self.settings = torch.compile(model, fullgraph=True, backend="eager"), FOR_ONE_GRAPH
        lowpeft.save_adapter(model, folder, name="b")
        self.expected = []
        with torch.no_grad():
            for setting in self.settings:
                with lowpeft.using(model, setting):
                    self.expected.append(self.call(x))

    def compare(self, i: int) -> None:
        with torch.no_grad():
            self.outcome.wrong += not torch.equal(self.call(self.x), self.expected[i])
        self.outcome.results += 1

    def one_thread(self, i: int) -> None:
        def call() -> None:
            with lowpeft.using(self.model, self.settings[i]):
                self.compare(i)

        torch._dynamo.config.recompile_limit = 64  # graphs, one for each set of names; each thread has its own limit
        self.repeat(call)

    async def one_task(self, i: int) -> None:
        while not self.done.is_set():
            with lowpeft.using(self.model, self.settings[i]):
                await asyncio.sleep(0)
                self.compare(i)
                await asyncio.sleep(0)

    async def all_tasks(self) -> None:
        await asyncio.gather(*map(self.one_task, range(len(self.settings))))

    def repeat(self, change: Callable[[], None]) -> None:
        while not self.done.is_set():
            try:
                change()
            except Exception as error:  # noqa: BLE001  (it is a failure of the run, whatever it is)
                self.outcome.failures.append(f"{change.__name__}: {type(error).__name__}: {error}")
                return
            if change in self.changes:
                self.outcome.beside[change.__name__] += 1

    def plan(self) -> None:
        lowpeft.plan(self.model, "spatial", name="c")

    def check(self) -> None:
        lowpeft.check_trainable(self.model, self.x)

    def adapt_load_rename_delete_restore(self) -> None:
        lowpeft.adapt(self.model, "spatial", name="d")
        lowpeft.load_adapter(self.model, self.folder, name="e")
        lowpeft.rename(self.model, "e", "f")
        lowpeft.delete(self.model, "f")
        lowpeft.restore(self.model, "d")

    def disable_overlapping(self) -> None:
        first, second = lowpeft.disabled(self.model), lowpeft.disabled(self.model, name="a")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        time.sleep(0.01)
