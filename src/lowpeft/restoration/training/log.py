"""Log of a training run: one row per step, as JSON Lines, CSV and, if TensorBoard is installed, its event files.

The JSON Lines and CSV files grow by whole rows. A checkpoint stores their lengths, and a run that resumes from it
truncates them to these. So every step is logged exactly once, whenever the run was killed.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ...storage import fsync, new_file

JSONL, CSV, CURVES, TENSORBOARD = "training.jsonl", "training.csv", "training.png", "tensorboard"


class Log:
    """Log files in a run's folder, open for writing."""

    def __init__(self, out: Path, columns: tuple[str, ...], *, step: int, lengths: Mapping[str, int]) -> None:
        """Open the files.

        Args:
            out: Folder of the run.
            columns: Names of the columns.
            step: Number of steps taken before; 0 starts new files.
            lengths: Length in bytes of each file after that step, by name.
        """
        out.mkdir(parents=True, exist_ok=True)
        self._columns = columns
        self._files: dict[str, IO[bytes]] = {}
        self._events: Any = None
        try:
            for name in (JSONL, CSV):
                self._files[name] = _cut(out / name, lengths.get(name, 0) if step else 0)
            if not self._files[CSV].tell():
                self._files[CSV].write((",".join(columns) + "\n").encode())
            self._events = _event_writer(out / TENSORBOARD, step)
        except BaseException:
            self.close()
            raise

    def write(self, row: Mapping[str, float | None]) -> None:
        """Add a step's row."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[name] for name in self._columns])
        self._files[JSONL].write((json.dumps(dict(row)) + "\n").encode())
        self._files[CSV].write(line.getvalue().encode())
        for file in self._files.values():
            file.flush()
        if self._events is not None:
            for name in self._columns:
                if name != "step" and row[name] is not None:
                    self._events.add_scalar(name, row[name], row["step"])

    def lengths(self) -> dict[str, int]:
        """Flush the files to the disk (fsync) and return the lengths of JSON Lines and CSV in bytes, by name."""
        if self._events is not None:
            self._events.flush()
        for file in self._files.values():
            fsync(Path(file.name))
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        """Close the files."""
        for file in (*self._files.values(), *filter(None, [self._events])):
            file.close()


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
