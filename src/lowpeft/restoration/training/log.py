"""Log of a training run: one row per step in JSON Lines, from which the curves are drawn.

If TensorBoard is installed, its event files get the same rows. A checkpoint stores the length of the log, and a run
that resumes from it truncates the log to that. So every step is logged once, whenever the run was killed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import TrainingError
from ...storage import fsync, new_file
from .checkpoint import Progress

JSONL, CURVES, TENSORBOARD = "training.jsonl", "training.png", "tensorboard"


class Log:
    """Log of a run in its folder `out`, open for writing."""

    def __init__(self, out: Path, progress: Progress) -> None:
        """Open the log in the run's folder, truncated to its length after the steps taken so far."""
        self.out, path = out, out / JSONL
        out.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b")
        try:
            self._file.truncate(min(progress.logs.get(JSONL, 0), path.stat().st_size))
            self._file.seek(0, os.SEEK_END)
            self._events = _event_writer(out / TENSORBOARD, progress.step)
        except BaseException:
            self._file.close()
            raise

    def write(self, row: Mapping[str, float | None]) -> None:
        """Add a step's row."""
        self._file.write((json.dumps(dict(row)) + "\n").encode())
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._events.add_scalar(name, value, row["step"])

    def lengths(self) -> dict[str, int]:
        """Flush the log to the disk (fsync) and return its length in bytes under its name, for a checkpoint."""
        if self._events is not None:
            self._events.flush()
        fsync(Path(self._file.name))
        return {JSONL: self._file.tell()}

    def close(self) -> None:
        """Close the log."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def check_log(out: Path, progress: Progress) -> None:
    """Check that the log contains all the steps that a checkpoint counts. A missing log is accepted, and starts anew.

    Raises:
        TrainingError: The log is shorter. A killed run cannot cause this, because the log is flushed first.
    """
    path, length = out / JSONL, progress.logs.get(JSONL, 0)
    if path.exists() and (size := path.stat().st_size) < length:
        raise TrainingError(
            f"{path} has {size} bytes, but had {length} at the checkpoint of step {progress.step}: restore it, or "
            f"remove it for a log that starts at step {progress.step + 1}"
        )


def _event_writer(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer that purges events after `step` left by a killed run; None without TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from TensorBoard's own dependencies
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), purge_step=step + 1)


def draw_curves(out: Path, title: str) -> Path | None:
    """Plot the logged loss, learning rate and validation figures to `training.png`.

    Returns:
        Path of the plot; None if the log has no rows or matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (out / JSONL).read_text(encoding="utf-8").splitlines()]
    if not rows:
        return None
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    measured = [(r["step"], r["validation"]) for r in rows if r["validation"] is not None]
    figure = Figure(figsize=(8, 6 if measured else 4), layout="constrained")
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
    with new_file(out / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return out / CURVES


def _smooth(values: list[float]) -> list[float]:
    """Return running means: of each value and those before it, over a window of 2 % of the run."""
    width = max(1, math.ceil(len(values) / 50))
    sums = [0.0, *itertools.accumulate(values)]
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in range(1, len(sums))]
