"""Log of a training run: one row per step in JSON Lines, from which the curves are drawn.

A run that resumes from the checkpoint of a step removes the rows after that step. So every step is logged once,
whenever the run was killed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import TrainingError
from ...storage import fsync, new_file
from ..pages import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

JSONL, CURVES = "training.jsonl", "training.png"
COLUMNS = frozenset(("step", "loss", "learning_rate", "validation"))
"""Values of a row that the curves need."""


class Log:
    """Log of a run in its folder `out`, open for writing."""

    def __init__(self, out: Path, step: int) -> None:
        """Open the log in the run's folder, truncated to the rows of the steps up to `step`.

        Raises:
            TrainingError: The log is damaged; see `logged`.
        """
        self.out, path = out, out / JSONL
        _, length = logged(out, step)
        out.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b")
        try:
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise

    def write(self, row: Mapping[str, float | None]) -> None:
        """Add a step's row."""
        self._file.write((json.dumps(dict(row)) + "\n").encode())
        self._file.flush()

    def flush(self) -> None:
        """Flush the log to the disk (fsync), before a checkpoint counts its steps."""
        fsync(Path(self._file.name))

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def logged(out: Path, step: int | None) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of the steps up to `step` in a run's log, None for all, and the length of their lines in bytes.

    Later rows, and a last line without an end, are left out: a killed run wrote them after its last checkpoint. A log
    that is missing, or that starts after `step`, has no such rows; this is a log that was removed, and started anew.

    Raises:
        TrainingError: A line is damaged, or the log ends before `step`.
    """
    path, rows, length = out / JSONL, [], 0
    advice = "restore it, or remove it" + (f" to start a new log at step {step + 1}" if step is not None else "")
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], start=1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            if not row.keys() >= COLUMNS or type(row["step"]) is not int:
                raise ValueError(f"not a row with {', '.join(sorted(COLUMNS))}")
        except (AttributeError, ValueError) as error:
            raise TrainingError(f"line {number} of {path} is damaged ({error}): {advice}") from error
        if step is not None and row["step"] > step:
            break
        rows.append(row)
        length += len(line)
    if rows and step is not None and rows[-1]["step"] != step:
        raise TrainingError(f"{path} ends at step {rows[-1]['step']}, but the run is at step {step}: {advice}")
    return rows, length


def draw_curves(out: Path, step: int, title: str) -> Path | None:
    """Plot the logged loss, learning rate and validation figures of the steps up to `step` to `training.png`.

    Returns:
        Path of the plot; None if the log has no rows or matplotlib is not installed.

    Raises:
        TrainingError: The log is damaged; see `logged`.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    rows, _ = logged(out, step)
    if not rows:
        return None
    figure = Figure(figsize=(8, _height(rows, 2)), layout="constrained")
    _curves(figure, rows, title)
    with new_file(out / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return out / CURVES


def plot_curves(out: Path) -> Picture | None:
    """Plot the log of a run for a page, as `draw_curves` does.

    Returns:
        The plot; None if there is no log, it has no rows, or matplotlib is not installed.

    Raises:
        TrainingError: The log is damaged or cannot be read.
    """
    try:
        rows, _ = logged(out, None)
    except OSError as error:
        raise TrainingError(f"cannot read {out / JSONL}: {error.strerror or error}") from error
    if not rows:
        return None
    return plot(lambda figure: _curves(figure, rows, ""), height_inches=_height(rows, 1.4))


def _height(rows: Sequence[Mapping[str, Any]], inches: float) -> float:
    """Return the height of a plot: two parts for the loss, and one for the validation if it was measured."""
    return inches * (3 if _validation(rows) else 2)


def _validation(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(row["step"], row["validation"]) for row in rows if row["validation"] is not None]


def _curves(figure: Figure, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss, learning rate and validation over the steps."""
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    measured = _validation(rows)
    axes = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(steps, losses, color="0.8", linewidth=0.8, label="loss of a step")
    axes[0].plot(steps, _smooth(losses), color="tab:blue", label="mean of the last 2 %")
    axes[0].set(yscale="log", ylabel="loss", title=title)
    rate = axes[0].twinx()
    rate.plot(steps, [r["learning_rate"] for r in rows], color="tab:orange", linewidth=0.8)
    rate.set_ylabel("learning rate", color="tab:orange")
    axes[0].legend(loc="upper right")
    if measured:
        axes[1].plot(*zip(*measured, strict=True), marker=".", color="tab:green")
        axes[1].set_ylabel("validation")
    axes[-1].set_xlabel("step")


def _smooth(values: list[float]) -> list[float]:
    """Return running means: of each value and those before it, over a window of 2 % of the run."""
    width = max(1, math.ceil(len(values) / 50))
    sums = [0.0, *itertools.accumulate(values)]
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in range(1, len(sums))]
