"""What training and inference cost: bytes, FLOPs and CPU seconds of every recipe and memory mode, cell by cell.

    python benchmarks/cost.py --out benchmarks/results/cost.json [PART …] [--network NAME …] [--row PATTERN …]
    python benchmarks/cost.py --out benchmarks/results/cost.json --plot docs/images/performance.png

Parts: `count` (bytes and FLOPs; deterministic, on meta tensors but for DCTLSA), `train` and `infer` (CPU seconds of one
thread). A cell is NETWORK/ROW/count, NETWORK/ROW/train/ROUND or NETWORK/ROW/infer/ROUND, and is written at once, so an
interrupted run goes on where it stopped. Networks and rows are those of `benchmarks/cost_rows.py`: inference of the
stock network, full fine-tuning (the reference), every bundled recipe, LoRA of lowpeft and of peft, and the stereo
recipes in every memory mode of `lowpeft.optimize`. A row that cannot be had (the recipe does not fit, peft is not
installed) has the reason in its cell, and is tried again in the next run.

One call is one pair of 32x80 LR crops, x4: a step is forward, L1 loss, backward and AdamW. Kept bytes are those of
storages that the forward made and that are alive when backward begins; peak bytes, the most that are alive at once in
both. In each round of times the rows take turns, and a row's time is divided by the reference's in the same round: full
fine-tuning for `train`, the stock network for `infer`. Needs the extra `spandrel`, and for DCTLSA the folder with
`weights` that LOWPEFT_DATA names. Counting takes an hour of one core, all times several hours; `--row` chooses.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cells import SKIPPED, run_cells, unfinished
from common import options_of, provenance
from cost_figures import draw
from cost_rows import (
    LR_PX,
    NETWORKS,
    REFERENCE,
    SCALE,
    STOCK,
    Network,
    Row,
    UnavailableError,
    loss_of,
    pair,
    rows,
    run,
    trained,
)
from counting import (
    attention_as_on_cpu,
    attention_kernels,
    flops,
    forward_flops,
    kept_bytes,
    on_meta,
    optimizer_bytes,
    peak_bytes,
    step_peak_bytes,
)

PARTS = ("count", "train", "infer")
REFERENCES = {"train": REFERENCE, "infer": STOCK}
ROUNDS = 5


# --- Bytes and FLOPs
def count(network: Network, row: Row) -> dict[str, object]:
    """Bytes and FLOPs of a row, on meta tensors where these go through the model."""
    if network.meta:
        try:
            return counted(network, row, "meta")
        except RuntimeError as error:
            print(f"{network.title}: not on meta tensors, so on the CPU: {error}", flush=True)
    return counted(network, row, "cpu")


def counted(network: Network, row: Row, device: str) -> dict[str, object]:
    model, (lr, hr) = row.build(network.build()), pair(device)
    if device == "meta":
        on_meta(model)
    with attention_as_on_cpu():
        step = _step_counts(model, lr, hr) if row.trains else {}
        model.eval()
        return {
            "tensors": device,
            "trained": sum(p.numel() for p in trained(model)),
            **step,
            "inference_peak_bytes": peak_bytes(partial(run, model, lr)),
            "inference_flops": forward_flops(partial(run, model, lr)),
        }


def _step_counts(model: nn.Module, lr: Tensor, hr: Tensor) -> dict[str, object]:
    def fresh() -> Callable[[], Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        return partial(loss_of, model, lr, hr)

    kept, kept_with_weights = kept_bytes(fresh())
    peak = step_peak_bytes(fresh())
    forward, step = flops(fresh())
    return {
        "kept_bytes": kept,
        "kept_with_weights_bytes": kept_with_weights,
        "peak_bytes": peak,
        "forward_flops": forward,
        "step_flops": step,
        "optimizer_bytes": optimizer_bytes(trained(model)),
        "attention": attention_kernels(fresh()),
    }


def count_cells(name: str, wanted: Sequence[str], out: Path | None, head: Mapping[str, object]) -> None:
    every = rows()

    def cell(of: str) -> dict[str, object]:
        try:
            return count(NETWORKS[name], every[of.split("/")[1]])
        except UnavailableError as reason:
            return {SKIPPED: str(reason).splitlines()[0]}

    run_cells(out, head, [f"{name}/{row}/count" for row in wanted], cell)


# --- Times
def training_call(model: nn.Module) -> Callable[[], None]:
    """One step, which changes no parameter."""
    lr, hr = pair()
    optimizer = torch.optim.AdamW(trained(model), lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, lr, hr).backward()
        optimizer.step()

    return step


def inference_call(model: nn.Module) -> Callable[[], None]:
    lr, _ = pair()
    model.eval()

    def infer() -> None:
        with torch.no_grad():
            run(model, lr)

    return infer


CALLS = {"train": training_call, "infer": inference_call}


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of the process, which other load of the machine affects less than the clock's."""
    start = time.process_time()
    call()
    return time.process_time() - start


def time_cells(
    name: str, part: str, wanted: Sequence[str], out: Path | None, head: Mapping[str, object], rounds: int
) -> None:
    """Time the rows of a network that lack rounds, in turns, each round with the reference."""
    missing = [row for row in wanted if unfinished(out, [f"{name}/{row}/{part}/{i}" for i in range(rounds)])]
    if not missing:
        print(f"{name}: all times of {part} are in {out} already", flush=True)
        return
    reference = REFERENCES[part]
    models = available(NETWORKS[name], dict.fromkeys((reference, *missing)))
    calls = {row: CALLS[part](model) for row, model in models}
    if reference not in calls:
        return
    for call in calls.values():
        call()
    for number in range(rounds):
        cells = unfinished(out, [f"{name}/{row}/{part}/{number}" for row in calls if row in wanted])
        if not cells:
            continue
        whole = cpu_seconds(calls[reference])

        def cell(of: str, whole: float = whole) -> dict[str, object]:
            row = of.split("/")[1]
            seconds = whole if row == reference else cpu_seconds(calls[row])
            return {"cpu_seconds": round(seconds, 4), "ratio": round(seconds / whole, 4)}

        run_cells(out, head, cells if number % 2 == 0 else cells[::-1], cell)


def available(network: Network, wanted: Mapping[str, object]) -> Iterator[tuple[str, nn.Module]]:
    """Models of the rows that can be had on a network; the reasons for others are printed."""
    every = rows()
    for name in wanted:
        try:
            yield name, every[name].build(network.build())
        except UnavailableError as reason:
            print(f"{network.title}: {name}: {str(reason).splitlines()[0]}", flush=True)


# --- The command line
def head_of(command: str) -> dict[str, object]:
    """What a results file records of the run."""
    packages = ["spandrel", *(["peft"] if importlib.util.find_spec("peft") else [])]
    return {
        **provenance(command, *packages),
        "lr_px": list(LR_PX),
        "scale": SCALE,
        "seeds": {"weights": 0, "images": 1, "adapters": 3},
        "networks": {name: network.title for name, network in NETWORKS.items()},
        "rows": list(rows()),
        "what": "one pair of LR crops; ratios are to the reference in the same round",
        "references": REFERENCES,
    }


def chosen(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that fit a pattern; all where none is given."""
    return [name for name in names if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", action="append", default=[], choices=[*NETWORKS], help="may be repeated")
    parser.add_argument("--row", action="append", default=[], metavar="PATTERN", help="e.g. 'stereo*'; may be repeated")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of times (default: {ROUNDS})")


def wanted_rows(part: str, patterns: Sequence[str]) -> list[str]:
    found = rows()
    has = {"count": lambda row: row.counts, "train": lambda row: row.trains, "infer": lambda row: row.infers}[part]
    return [name for name in chosen(patterns, [*found]) if has(found[name])]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    selection(parser)
    parser.add_argument("--plot", type=Path, help="draw the results of --out into this PNG file, and measure nothing")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if options.plot:
        draw(options.out, options.plot)
        return
    torch.set_num_threads(1)
    head = head_of("python benchmarks/cost.py")
    for part in options.parts or PARTS:
        for name in options.network or NETWORKS:
            wanted = wanted_rows(part, options.row)
            if part == "count":
                count_cells(name, wanted, options.out, head)
            elif NETWORKS[name].timed:
                time_cells(name, part, wanted, options.out, head, options.rounds)


if __name__ == "__main__":
    main()
