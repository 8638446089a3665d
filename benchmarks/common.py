"""What benchmarks share: options, times, and what every results file records of its run."""

from __future__ import annotations

import argparse
import datetime
import fcntl
import hashlib
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import lowpeft
from lowpeft.ports.layouts import Size
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.data import Example
from lowpeft.storage import new_file, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SKIPPED = "skipped"
"""Key of the reason in the result of a cell that could not be run; it is tried again in the next run."""

DIVERGED = "diverged"
"""Key of the reason in the result of a training whose loss was not finite; its figure is 0 dB."""

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Peak learning rates that are tried."""


def provenance(command: str, *packages: str) -> dict[str, object]:
    """The command, date, device and versions of a run on the CPU; `packages` are those beside lowpeft and torch."""
    versions = {"lowpeft": lowpeft.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": {**versions, **{name: metadata.version(name) for name in packages}},
    }


def write(results: Mapping[str, object], out: Path | None) -> None:
    """Print results as JSON, and write them to `out` where one is named."""
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, results)


def options_of(doc: str | None, *, data: bool = False) -> argparse.ArgumentParser:
    """Parser with `--out`, and with a required `--data` on demand; its help is the module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    if data:
        parser.add_argument("--data", type=Path, required=True, help="folder of images and weights")
    return parser


def median_seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall time of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def run_cells(
    out: Path | None, head: Mapping[str, object], names: Sequence[str], run: Callable[[str], Mapping[str, object]]
) -> None:
    """Run named cells that the results file `out` does not have yet, and write each into it at once.

    Several processes may share the file, each with names of its own.

    Raises:
        SystemExit: The file has cells of other settings, or of another sort of device.
    """
    if out is not None and out.exists() and (problem := _other_settings(json.loads(out.read_text()), head)):
        raise SystemExit(f"{out} has cells of {problem}: give another file as --out")
    for name in names:
        if not unfinished(out, [name]):
            print(f"{name}: in {out} already", flush=True)
            continue
        result = run(name)
        print(f"{name}: {json.dumps(result)}", flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            with _lock_of(out).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                cells = {**cells_of(out), name: result}
                write_json(out, {**head, "cells": dict(sorted(cells.items()))})


def _lock_of(out: Path) -> Path:
    """A file to lock for a results file, elsewhere and never removed, so that all processes lock the same one."""
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lowpeft-results-{name}.lock"


def _other_settings(there: Mapping[str, Any], head: Mapping[str, object]) -> str | None:
    """Return what the cells of a results file were made with, if these would be made with something else."""

    def made_with(values: Mapping[str, Any]) -> dict[str, object]:
        device, _, _ = str(values.get("device")).partition(",")
        torch_version = values.get("versions", {}).get("torch")
        settings = values.get("settings") or {}
        return {"device": device, "torch": torch_version, "steps": values.get("steps"), **settings}

    old, new = made_with(there), made_with(json.loads(json.dumps(head)))
    for name, value in old.items():
        if value is not None and new.get(name) not in (None, value):
            return f"{name} {value}, and these would have {new[name]}"
    return None


def unfinished(out: Path | None, names: Sequence[str]) -> list[str]:
    """The named cells that the results file does not have, or that were skipped there for a reason."""
    cells = {} if out is None else cells_of(out)
    return [name for name in names if SKIPPED in cells.get(name, {SKIPPED: "not run"})]


def cells_of(out: Path) -> dict[str, Any]:
    """The cells that a results file has."""
    return dict(json.loads(out.read_text())["cells"]) if out.exists() else {}


def rates_to_try(found: Mapping[float, float]) -> tuple[float, set[float]]:
    """Return the best learning rate, and those beside it on `LADDER` that were not tried.

    Args:
        found: Figure by rate; higher is better.
    """
    best = max(found, key=found.__getitem__)
    place = LADDER.index(best)
    return best, {*LADDER[max(0, place - 1) : place + 2]} - found.keys()


def best_rate(
    first: float,
    run: Callable[[Sequence[float]], object],
    found: Callable[[], Mapping[float, float]],
    *,
    slower: int = 0,
    untrained: float = -math.inf,
) -> float:
    """Run three learning rates, then more until the best one has a worse one on either side; return it.

    As long as none is better than no training, lower ones are not tried: they only come nearer to it.

    Args:
        first: The lowest of the three.
        run: Runs rates.
        found: Figure by rate of those that were run; higher is better.
        slower: Places on `LADDER` below `first` at which the three begin.
        untrained: Figure of the network that is not trained.
    """
    place = LADDER.index(first) - slower
    wanted = {*LADDER[place : place + 3]}
    while wanted:
        run(sorted(wanted))
        figures = found()
        best, wanted = rates_to_try(figures)
        if figures[best] <= untrained:
            wanted = {rate for rate in wanted if rate > best}
    return best


def settings_without_rate(settings: TrainSettings) -> dict[str, object]:
    """Settings for the head of a results file whose cells have rates, seeds and lengths of their own."""
    own = ("learning_rate", "final_learning_rate", "warmup_steps", "steps", "seed", "rates")
    return {name: value for name, value in vars(settings).items() if name not in own}


def middle(example: Example, lr_px: Size) -> Example:
    """The middle of an example, at most of this size; sides are multiples of 8 LR px."""
    size, scale = example.lr[0].shape[-2:], example.hr[0].shape[-1] // example.lr[0].shape[-1]
    height, width = (min(side, most) // 8 * 8 for side, most in zip(size, lr_px, strict=True))
    y, x = (size[0] - height) // 2, (size[1] - width) // 2

    def cut(views: Sequence[Tensor], s: int) -> tuple[Tensor, ...]:
        return tuple(view[:, s * y : s * (y + height), s * x : s * (x + width)] for view in views)

    return replace(example, lr=cut(example.lr, 1), hr=cut(example.hr, scale))


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure of matplotlib as a PNG file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
