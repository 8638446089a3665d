"""Time and memory of a forward pass for every row of an experiment on one network with random weights."""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

import torch
from torch import Tensor, nn

from ... import checks, tables
from ...core.attachment.record import module_of
from ...core.attachment.views import MultiViewModel
from ...core.observation.describe import describe
from ...core.operations.state import adapter_parameters
from ...errors import LowpeftError
from ...restoration.inference.memory import MB, peak_bytes
from ...restoration.training import build_model
from ...storage import write_json
from ...version import version
from ..experiments import Experiment, Row
from .job import device_name
from .networks import published_network, tiny_network
from .smoke import smoke_experiment

VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Time and memory of a row's forward pass on a pair, over rounds in which the rows take turns.

    Attributes:
        row: Name of the row.
        trained: Number of parameters of the row's adapters.
        seconds: Seconds of the forward pass in each round.
        peak_bytes: Peak memory in addition to the network and the pair: of tensors on the CPU, of the allocator on
            CUDA.
    """

    row: str
    trained: int
    seconds: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Result of `measure_speed`; ratios are to the first row's time in the same round, and to its memory.

    Attributes:
        experiment: Name of the experiment.
        network: Description of the network: name, scale, number of parameters.
        size_px: LR height and width of each view.
        device: Description of the device.
        rows: Measurements in the experiment's order.
    """

    experiment: str
    network: str
    size_px: tuple[int, int]
    device: str
    rows: tuple[Measured, ...]

    def ratios(self, row: Measured) -> list[float]:
        """Return the row's time divided by that of the first row, for each round."""
        return [ours / first for ours, first in zip(row.seconds, self.rows[0].seconds, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: medians and standard deviations over the rounds, date, device and versions."""
        first = self.rows[0]
        return {
            "date": datetime.date.today().isoformat(),
            "device": self.device,
            "versions": {"lowpeft": version(), "torch": torch.__version__},
            "experiment": self.experiment,
            "network": self.network,
            "size_px": self.size_px,
            "rounds": len(first.seconds),
            "ratios_to": first.row,
            "rows": [
                {
                    "row": row.row,
                    "trained": row.trained,
                    "seconds": _summary(row.seconds, digits=6),
                    "time_ratio": _summary(self.ratios(row), digits=4),
                    "peak_mb": round(row.peak_bytes / MB, 2),
                    "peak_ratio": round(row.peak_bytes / first.peak_bytes, 4),
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        plain = self.as_dict()
        first = f"of row {plain['ratios_to']}"
        table = [["row", "trained", "seconds", first, "peak MB", first]]
        for row in plain["rows"]:
            seconds, ratio = (
                f"{row[key]['median']:.{digits}f} ± {row[key]['spread']:.{digits}f}"
                for key, digits in (("seconds", 4), ("time_ratio", 3))
            )
            peak = [f"{row['peak_mb']:.1f}", f"{row['peak_ratio']:.3f}"]
            table.append([row["row"], f"{row['trained']:,}", seconds, ratio, *peak])
        height, width = self.size_px
        about = (
            f"{self.experiment}: a forward of {VIEWS} views of {height}x{width} LR px; {self.network}, random weights; "
            f"{self.device}\nmedian and standard deviation of {plain['rounds']} rounds in which the rows take turns"
        )
        return f"{about}\n\n{tables.text(table)}"


def measure_speed(
    experiment: Experiment,
    *,
    size_px: tuple[int, int] | None = None,
    repeats: int = 5,
    device: str = "cpu",
    smoke: bool = False,
    report: Callable[[str], None] = lambda note: None,
) -> Speed:
    """Time a forward pass of every row of an experiment whose rows are adapters on one network.

    The network has its published size and random weights, so nothing is read or downloaded; the rows share its
    parameters. Each row runs once per round, and every other round is in reverse order, so that other load on the
    machine affects all rows equally. Before that, each row runs to warm up and to measure memory.

    Args:
        experiment: Experiment with the rows to time.
        size_px: LR height and width of each view; None for the crop that the first row is trained on.
        repeats: Number of rounds, at least 2.
        device: `cpu` or a CUDA device.
        smoke: True to use a tiny network and small views.
        report: Function that is called with a line of text before each row and round.

    Raises:
        LowpeftError: The rows have several networks or are trained from scratch; the published sizes of the network
            are not known here; or size, repeats or device do not fit.
    """
    experiment = smoke_experiment(experiment) if smoke else experiment
    where, row = torch.device(device), experiment.rows[0]
    network = _network(experiment, smoke=smoke)
    training, facts = row.recipe.training, describe(network)
    height, width = size_px or (training.crop_height_px // row.scale, training.crop_width_px // row.scale)
    multiple = facts.size_multiple or 1
    problems = checks.whole("repeats", repeats, least=2)
    if min(height, width) < 1 or height % multiple or width % multiple:
        problems.append(f"{height}x{width} px: the network takes sides in multiples of {multiple} px")
    if where.type not in ("cpu", "cuda"):
        problems.append(f"time is measured on cpu and cuda devices, not on {where}")
    if problems:
        raise LowpeftError(f"the speed of {experiment.name!r} cannot be measured:", problems=problems)
    network.to(where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = torch.rand(VIEWS, facts.channels or 3, height, width).to(where)
    calls: dict[str, Callable[[], object]] = {}
    trained: dict[str, int] = {}
    for each in experiment.rows:
        report(f"row {each.name}")
        calls[each.name], trained[each.name] = _call(network, each, pair)
    with torch.no_grad():
        peaks = {name: _peak(call, where) for name, call in calls.items()}
        seconds = _in_turns(calls, where, repeats, report)
    return Speed(
        experiment=experiment.name,
        network=f"{'tiny ' * smoke}{row.weights.partition('_')[0]} x{row.scale}, {facts.parameters:,} parameters",
        size_px=(height, width),
        device=device_name(where),
        rows=tuple(
            Measured(row=name, trained=trained[name], seconds=tuple(seconds[name]), peak_bytes=peaks[name])
            for name in calls
        ),
    )


def write_speed(speed: Speed, out: str | Path, *, command: str) -> Path:
    """Write `speed.json` into a folder, with the command that repeats the measurement, and return its path."""
    path = Path(out) / "speed.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, {"command": command, **speed.as_dict()})


def _network(experiment: Experiment, *, smoke: bool) -> nn.Module:
    """Build the rows' common network, with random weights."""
    if len({row.weights for row in experiment.rows}) > 1:
        raise LowpeftError(f"rows of {experiment.name!r} have different networks; choose rows of one network (--row)")
    for row in experiment.rows:
        if row.recipe.from_scratch:
            raise LowpeftError(f"row {row.name!r} of {experiment.name!r} has no adapters; choose other rows (--row)")
    return (tiny_network if smoke else published_network)(experiment.rows[0])


def _call(network: nn.Module, row: Row, pair: Tensor) -> tuple[Callable[[], object], int]:
    """Return a function that runs the row's model on the pair, and the number of its adapters' parameters."""
    alike = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    model = module_of(build_model(alike, row.recipe)).to(pair.device).eval()
    trained = sum(p.numel() for _, p in adapter_parameters(model))
    views = pair.chunk(VIEWS) if isinstance(model, MultiViewModel) else (pair,)
    return lambda: model(*views), trained


def _peak(call: Callable[[], object], device: torch.device) -> int:
    """Measure the peak bytes of a call in addition to memory that was in use before; also warms up."""
    if device.type == "cpu":
        return peak_bytes(call)
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _in_turns(
    calls: dict[str, Callable[[], object]], device: torch.device, repeats: int, report: Callable[[str], None]
) -> dict[str, list[float]]:
    """Measure the seconds of every call in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats):
        report(f"round {number + 1}/{repeats}")
        for name in list(calls) if number % 2 == 0 else reversed(calls):
            seconds[name].append(seconds_of(calls[name], device))
    return seconds


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call: by the clock on a CPU, by events on a CUDA device."""
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        before.record()
        call()
        after.record()
        torch.cuda.synchronize()
    return float(before.elapsed_time(after)) / 1000


def _summary(values: Sequence[float], *, digits: int) -> dict[str, float]:
    return {"median": round(median(values), digits), "spread": round(stdev(values), digits)}
