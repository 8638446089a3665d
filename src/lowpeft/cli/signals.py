"""Stop a run at a signal of a cluster, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..restoration.training import Callback

SIGNALS = ("SIGTERM", "SIGUSR1")
"""Signals by which clusters announce the end of a job, where the system has them."""


@contextmanager
def stop_on_signal() -> Iterator[tuple[Callback, Sequence[int]]]:
    """Yield a callback that ends training after the step in which one of `SIGNALS` comes, and the signals that came.

    The checkpoint and the result are written then. Only the main thread of a process can receive signals; elsewhere
    the callback does nothing.
    """
    from ..restoration.training import Callback, Step, StopTraining

    came: list[int] = []

    class Stop(Callback):
        def on_step(self, step: Step) -> None:
            if came:
                raise StopTraining(f"{signal.Signals(came[0]).name} came; continue with --resume")

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    known = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.signal(number, remember) for number in known} if main else {}
    try:
        yield Stop(), came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
