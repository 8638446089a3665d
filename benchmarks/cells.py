"""Benchmarks of many trainings: their options, cells that a results file gets one by one, and learning rates."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import lowpeft
from common import options_of
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.training import Trained
from lowpeft.storage import write_json

SKIPPED = "skipped"
"""Key of the reason in the result of a cell that could not be run; it is tried again in the next run."""

DIVERGED = "diverged"
"""Key of the reason in the result of a training whose loss was not finite; its figure is 0 dB."""

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Peak learning rates that are tried."""


def positive(text: str) -> int:
    """A whole number above 0, of the command line."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A whole number from 0, of the command line."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if (number := int(text)) < least:
        raise argparse.ArgumentTypeError(f"{number} is below {least}")
    return number


def options_of_cells(doc: str | None) -> argparse.ArgumentParser:
    """Parser of the options that benchmarks of trained cells have; its help is the module's docstring."""
    parser = options_of(doc)
    parser.add_argument("--data", type=Path, help="folder of images and weights")
    parser.add_argument("--seeds", nargs="+", type=not_negative, default=[0, 1, 2])
    parser.add_argument("--batch", type=positive, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--plot",
        type=Path,
        help="draw the results of --out into this PNG file, and measure nothing (needs matplotlib: the extra `train`)",
    )
    return parser


def checked(parser: argparse.ArgumentParser, folders: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; end with a message where `--out`, the device or a folder of the data cannot be used."""
    options = parser.parse_args()
    options.seeds = sorted({*options.seeds})
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    if options.out is None:
        parser.error("--out is needed: rates are chosen from what it holds")
    if options.plot:
        if not options.out.exists():
            parser.error(f"--plot draws the results of --out, but there is no {options.out}")
    elif options.data is None:
        parser.error("--data is needed: the folder of images and weights")
    elif missing := [name for name in folders if not (options.data / name).is_dir()]:
        parser.error(f"{options.data} has no {', '.join(missing)}")
    results_in(options.out)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out.parent).close()
    except OSError as error:
        parser.error(f"cannot write into {options.out.parent}: {error.strerror}")
    return options


@contextmanager
def errors_in_words() -> Iterator[None]:
    """End the program with the message of an error that lowpeft raises on purpose, without a traceback."""
    try:
        yield
    except lowpeft.LowpeftError as error:
        raise SystemExit(f"error: {error}") from error


def run_cells(
    out: Path | None, head: Mapping[str, object], names: Sequence[str], run: Callable[[str], Mapping[str, object]]
) -> None:
    """Run named cells that the results file `out` does not have yet, and write each into it at once.

    Several processes may share the file, each with names of its own.

    Raises:
        SystemExit: The file has cells of other settings, or of another sort of device.
    """
    if out is not None and out.exists() and (problem := _other_settings(results_in(out), head)):
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


def facts_of(done: Trained) -> dict[str, object]:
    """What a cell says of its training: trained parameters, seconds, and the processor."""
    return {"trained": done.parameters, "seconds": round(done.seconds), "processor": processor()}


def processor() -> str:
    """The processor, on which the last bits of a training depend: its vendor, family and model, and what torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    found = dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)
    names = (found.get(key, "") for key in ("vendor_id", "cpu family", "model"))
    return " ".join([*names, torch.backends.cpu.get_cpu_capability()]).strip()


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
        script = str(values.get("command")).split()[1:2]
        same = {name: values.get(name) for name in ("steps", "first_seed", "data")}
        return {"script": script, "device": device, "torch": torch_version, **same, **settings}

    old, new = made_with(there), made_with(json.loads(json.dumps(head)))
    for name, value in old.items():
        if value is not None and new.get(name) not in (None, value):
            return f"{name} {value}, and these would have {new[name]}"
    return None


def unfinished(out: Path | None, names: Sequence[str]) -> list[str]:
    """The named cells that the results file does not have, or that were skipped there for a reason."""
    cells = cells_of(out)
    return [name for name in names if SKIPPED in cells.get(name, {SKIPPED: "not run"})]


def results_in(out: Path) -> dict[str, Any]:
    """What a results file has; empty as long as there is none.

    Raises:
        SystemExit: It is no results file.
    """
    if not out.exists():
        return {}
    try:
        results = json.loads(out.read_text(encoding="utf-8"))
        cells = results["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{out} is no file of results ({error!r}): give another one as --out") from error
    return {**results, "cells": dict(cells)}


def cells_of(out: Path | None) -> dict[str, Any]:
    """The cells that a results file has; none without a file."""
    return {} if out is None else dict(results_in(out).get("cells", {}))


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
    """Run three learning rates, then more until none beside the best one is better; return it.

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
        if 0 < figures[best] <= untrained:  # 0: all of them diverged
            wanted = {rate for rate in wanted if rate > best}
    return best


def settings_without_rate(settings: TrainSettings) -> dict[str, object]:
    """Settings for the head of a results file whose cells have rates, seeds and lengths of their own.

    Without those that change no result.
    """
    of_cells = {"learning_rate", "final_learning_rate", "warmup_steps", "steps", "seed", "rates"}
    without_effect = {"save_every_steps", "keep_checkpoints", "validate_every_steps"}
    return {name: value for name, value in vars(settings).items() if name not in of_cells | without_effect}
