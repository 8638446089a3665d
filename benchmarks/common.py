"""What benchmarks share: options, times, and what every results file records of its run."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import lowpeft
from lowpeft.ports.layouts import Size
from lowpeft.restoration.data import Example
from lowpeft.storage import new_file, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def peak_memory_bytes() -> int:
    """Largest memory that this process had so far (Linux).

    Not `ru_maxrss` of `getrusage`: in a child process that begins at the peak of its parent.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])


def median_seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall time of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


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
