"""Settings per call: results while other threads change the network, interruptions, costs, recompilations.

    python benchmarks/switches.py --minutes 10 --out benchmarks/results/switches.json

Needs the extra `spandrel`; it runs the tests' own helpers. Times are medians of calls that take turns within one run,
on one thread; ratios are of these.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import lowpeft
from common import median_seconds, options_of, provenance, write
from lowpeft.core.attachment import slots
from lowpeft.core.attachment.running import strengths_in
from lowpeft.core.attachment.specialise import set_facets
from lowpeft.ports.facts import RECORD

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from interrupts import CALLS, interrupt_everywhere
from stress import stress, switched
from zoo import image


def at_once(minutes: float) -> dict[str, object]:
    """Results that differ from serial ones: threads, asyncio tasks, a compiled model, a third of the time each."""
    ways = (("threads", "hat"), ("tasks", "hat"), ("compiled", "edsr"))
    found: dict[str, object] = {}
    for how, name in ways:
        with tempfile.TemporaryDirectory() as folder:
            outcome = stress(Path(folder), 60 * minutes / len(ways), name=name, how=how)
        found[f"{how}, {name}"] = {**vars(outcome), "beside": dict(outcome.beside)}
        print(how, outcome, flush=True)
    return found


def interruptions() -> dict[str, object]:
    """Places at which each call was interrupted, and how many of these left the network between two states."""
    found: dict[str, object] = {}
    for name, (make, call) in CALLS.items():
        number, between = interrupt_everywhere(make, call, runs_of_a_line=(0, 0.5, 1))
        found[name] = {"interrupted": number, "left between": len(between), "where": between}
        print(name, number, len(between), flush=True)
    return found


def switch_microseconds() -> dict[str, float]:
    """One switch: entering and leaving a block, and setting the default."""
    model = switched("hat")

    def block() -> None:
        with lowpeft.using(model, {"a": 1.0, "b": 0.5}):
            pass

    def by_image() -> None:
        with lowpeft.using(model, {"a": [1.0, 0.5, 0.0, 0.3]}):
            pass

    calls = {
        "using": block,
        "using, strengths of 4 images": by_image,
        "set_strength": lambda: lowpeft.set_strength(model, 1.0, name="a"),
    }
    return {name: round(seconds * 1e6, 1) for name, seconds in median_seconds(calls, 2000).items()}


def hat(width: int, blocks: int) -> nn.Module:
    """HAT of some width with two groups, and a spatial adapter in every block."""
    from spandrel.architectures.HAT import HAT

    heads = 6
    sizes = {"embed_dim": width, "depths": [blocks] * 2, "num_heads": [heads] * 2, "window_size": 16}
    model = HAT(**sizes, compress_ratio=3, squeeze_factor=30, overlap_ratio=0.5, mlp_ratio=2, upscale=4).eval()
    return lowpeft.adapt(model, "spatial", name="a")


def forward_ratios() -> dict[str, object]:
    """A forward of HAT with the gate and the context variables, over one that reads neither."""
    model, x = hat(180, 6), torch.rand(1, 3, 64, 64)
    strengths = {"a": 1.0}
    ungated = copy.deepcopy(model)
    set_facets(ungated, switched=False)

    @torch.no_grad()
    def plain() -> None:
        with mock.patch.object(slots, "strengths_in", return_value=strengths):
            ungated(x)

    @torch.no_grad()
    def gated() -> None:
        model(x)

    @torch.no_grad()
    def used() -> None:
        with lowpeft.using(model, {"a": 0.5}):
            model(x)

    def trained() -> None:
        model(x).sum().backward()

    def trained_in_a_block() -> None:
        with lowpeft.using(model, {"a": 1.0}):
            model(x).sum().backward()

    for call in (plain, gated, used, trained, trained_in_a_block):
        call()
    forward = median_seconds({"none": plain, "default": gated, "using": used}, 15)
    step = median_seconds({"default": trained, "using": trained_in_a_block}, 9)
    tiny, small = switched("hat"), image("hat", 1)
    lookups = median_seconds({"strengths of one site": lambda: strengths_in(tiny.__dict__[RECORD].switches)}, 2000)
    with torch.no_grad():
        tiny(small)
    return {
        "network": "HAT, 180 channels, 2 groups of 6 blocks, 64x64 px, one spatial adapter in each block",
        "forward: default over none": round(forward["default"] / forward["none"], 4),
        "forward: using over none": round(forward["using"] / forward["none"], 4),
        "training step: using over default": round(step["using"] / step["default"], 4),
        "forward seconds": {name: round(seconds, 4) for name, seconds in forward.items()},
        "step seconds": {name: round(seconds, 4) for name, seconds in step.items()},
        "reading the setting at one site, microseconds": round(lookups["strengths of one site"] * 1e6, 2),
    }


def recompilations() -> dict[str, int]:
    """Graphs that `torch.compile(fullgraph=True)` makes over 1,000 strengths."""
    from torch._dynamo.utils import counters

    model, x = switched("edsr"), image("edsr", 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = {}

    def graphs() -> int:
        count = counters["stats"]["unique_graphs"]
        counters.clear()
        return int(count)

    with torch.no_grad():
        counters.clear()
        for i in range(1000):
            with lowpeft.using(model, {"a": i / 1000, "low": 1 - i / 1000}):
                compiled(x)
        found["using, 1,000 strengths of one set of names"] = graphs()
        for i in range(1000):
            with lowpeft.using(model, {"a": [i / 1000, 1 - i / 2000]}):
                compiled(x)
        found["using, 1,000 pairs of strengths by image"] = graphs()
        for i in range(1000):
            lowpeft.set_strength(model, i / 1000, name="a")
            compiled(x)
        found["set_strength, 1,000 strengths"] = graphs()
    return found


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of all threads and tasks together")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.meshgrid")
    torch.set_num_threads(1)
    results: dict[str, object] = {
        **provenance(f"python benchmarks/switches.py --minutes {options.minutes:g}", "spandrel"),
        "switch_microseconds": switch_microseconds(),
        "forward": forward_ratios(),
        "graphs_compiled": recompilations(),
        "interruptions": interruptions(),
        "at_once": {"minutes": options.minutes, **at_once(options.minutes)},
    }
    write(results, options.out)


if __name__ == "__main__":
    main()
