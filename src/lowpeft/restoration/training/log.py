"""Log of a training run: one row per step in JSON Lines, from which the curves are drawn.

If TensorBoard is installed, its event files get the same rows. The log grows by whole rows. A checkpoint stores its
length, and a run that resumes from it truncates it to that. So every step is logged once, whenever the run was killed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ...storage import fsync, new_file

JSONL, CURVES, TENSORBOARD = "training.jsonl", "training.png", "tensorboard"


class Log:
    """Log of a run, open for writing."""

    def __init__(self, out: Path, *, step: int, lengths: Mapping[str, int]) -> None:
        """Open the log.

        Args:
            out: Folder of the run.
            step: Number of steps taken before; 0 starts a new log.
            lengths: Length in bytes of the log after that step, under its name.
        """
        out.mkdir(parents=True, exist_ok=True)
        self._file = _cut(out / JSONL, lengths.get(JSONL, 0) if step else 0)
        try:
            self._events = _event_writer(out / TENSORBOARD, step)
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


def _cut(path: Path, length: int) -> IO[bytes]:
    """Open a file for writing, truncated to `length` bytes or, if it is shorter than that, to its last whole row."""
    path.touch()
    file = path.open("r+b")
    if path.stat().st_size < length:
        length = file.read().rfind(b"\n") + 1
    file.truncate(length)
    file.seek(length)
    return file


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
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        means.append(total / min(i + 1, width))
    return means
