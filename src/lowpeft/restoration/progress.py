"""Progress with the remaining time, on standard error, and a filter for needless warnings.

On a terminal it is a bar; elsewhere (a log file of a cluster job) a plain line after the first step, then every
`SECONDS_BETWEEN_LINES`, and after the last.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

SECONDS_BETWEEN_LINES = 30.0


def quiet() -> None:
    """Silence, in this process, a warning that users cannot fix: spandrel 0.4.2's calls of torch.meshgrid."""
    warnings.filterwarnings("ignore", message=r"torch\.meshgrid: in an upcoming release", category=UserWarning)


def progress(title: str, total: int, before: int = 0) -> AbstractContextManager[Callable[[str], None]]:
    """Show the progress of `total` steps; yield a function to call after each step with a short note.

    Args:
        title: What is done.
        total: Number of steps, with those done before.
        before: Number of steps done before, by a run that is resumed.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return _bar(title, total, before) if terminal else _lines(title, total, before)


@contextmanager
def _bar(title: str, total: int, before: int) -> Iterator[Callable[[str], None]]:
    from rich import progress as parts
    from rich.console import Console

    columns = (
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TextColumn("{task.fields[note]}", markup=False),
        parts.TimeElapsedColumn(),
        parts.TextColumn("elapsed,"),
        parts.TimeRemainingColumn(),
        parts.TextColumn("left"),
    )
    with parts.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=before, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


@contextmanager
def _lines(title: str, total: int, before: int) -> Iterator[Callable[[str], None]]:
    lines = _Lines(title, total, before)
    try:
        yield lines.advance
    finally:
        lines.end()


class _Lines:
    """Plain lines, e.g. "training 120/2000  loss 0.0231  0.42 s/step  0:00:50 elapsed, 0:13:20 left"."""

    def __init__(self, title: str, total: int, before: int) -> None:
        self._title, self._total, self._before, self._note = title, total, before, ""
        self._started = self._written_at = self._first_at = time.monotonic()
        self._done = self._written = before

    def advance(self, note: str) -> None:
        """Count a step, and write a line if one is due."""
        self._done, self._note = self._done + 1, note
        if self._done == self._before + 1:
            self._first_at = time.monotonic()
        ends = (self._before + 1, self._total)
        if self._done in ends or time.monotonic() - self._written_at >= SECONDS_BETWEEN_LINES:
            self._write()

    def end(self) -> None:
        """Write the last line, of a run that ended before its last step."""
        if self._done > self._written:
            self._write()

    def _write(self) -> None:
        self._written_at, self._written = time.monotonic(), self._done
        elapsed = self._written_at - self._started
        later = self._done - self._before - 1  # the first step takes longer than the others
        each = (self._written_at - self._first_at) / later if later else elapsed
        left = max(0, self._total - self._done) * each
        print(  # noqa: T201  (what this module is for)
            f"{self._title} {self._done}/{self._total}  {self._note}  {each:.2f} s/step  "
            f"{_clock(elapsed)} elapsed, {_clock(left)} left",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    """Return a duration as text, e.g. "0:13:20"."""
    return str(timedelta(seconds=round(seconds)))
