"""What training and inference cost on a CUDA device: the allocator's bytes, seconds, kernels of attention, compiling.

    python benchmarks/cost_cuda.py --out benchmarks/results/cost_cuda.json [PART …] [--network NAME …] [--row PATTERN …]

Parts: `attention` (which kernel runs `scaled_dot_product_attention`, by head size, and what it allocates), `step`
(memory and time of every row of `benchmarks/cost.py` on every network), `compile` (a few rows with `torch.compile`
beside the same without it). As in that benchmark, a call is one pair of 32x80 LR crops, x4, float32; rows take turns,
ratios are to full fine-tuning (`train`) and to the stock network (`infer`) in the same round, and cells that are in the
results file already are not run again. Memory is `torch.cuda.max_memory_allocated` above what was allocated before.
The optimised rows of HAT-L and SwinIR-M must run no attention in the math kernel, which stores the scores; the exit
status is 1 if one does. `--seconds` starts no network or compilation after so many seconds. Takes about two minutes,
compiling another one or two.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cells import SKIPPED, cells_of, run_cells, unfinished
from common import options_of
from cost import REFERENCES, chosen, head_of, selection, wanted_rows
from cost_rows import (
    NETWORKS,
    REFERENCE,
    STOCK,
    UnavailableError,
    loss_of,
    mode_row,
    pair,
    rows,
    run,
    trained,
)
from counting import MATH, attention_kernels
from lowpeft.paper.reproduce.speed import seconds_of

PARTS = ("attention", "step", "compile")
DEVICE = "cuda"
MEASURED = ("hat-l", "swinir-m", "edt-b", "dctlsa")
FUSED = ("hat-l", "swinir-m")
COMPILED = ("swinir-2", "hat-1")
HEAD_SIZES = (30, 32, 15, 16)
WINDOWS = {"HAT-L": (20, 6, 256), "SwinIR-M": (80, 6, 64)}
"""Windows of a pair of 32x80 crops, heads, and pixels of a window."""


def seconds(call: Callable[[], object]) -> float:
    """Seconds on the device."""
    return seconds_of(call, torch.device(DEVICE))


class Allocated:
    """Bytes that the block allocates: `now`, and `peak` once it is left; what is there before does not count."""

    def __enter__(self) -> Allocated:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before, self.peak = torch.cuda.memory_allocated(), 0
        return self

    def __exit__(self, *error: object) -> None:
        torch.cuda.synchronize()
        self.peak = torch.cuda.max_memory_allocated() - self._before

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated() - self._before


# --- Attention
def attention_cells(out: Path | None, head: Mapping[str, object]) -> None:
    names = [
        f"attention/{windows}, head size {size}, {dtype}{', mask' * mask}/kernel"
        for windows in WINDOWS
        for size in HEAD_SIZES
        for dtype in ("float32", "bfloat16")
        for mask in (False, True)
    ]
    run_cells(out, head, names, attention_cell)


def attention_cell(name: str) -> dict[str, object]:
    """Kernel, bytes at the peak and seconds of attention in windows, forward and backward."""
    windows, size, dtype, *mask = name.split("/")[1].split(", ")
    number, heads, length = WINDOWS[windows]
    options = {"device": DEVICE, "dtype": getattr(torch, dtype)}
    shape = (number, heads, length, int(size.removeprefix("head size ")))
    q, k, v = (torch.rand(shape, **options, requires_grad=True) for _ in range(3))
    bias = torch.rand(1, heads, length, length, **options) if mask else None

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def both() -> None:
        forward().sum().backward()

    kernels = attention_kernels(forward)
    both()
    with Allocated() as allocated:
        both()
    times = [seconds(both) for _ in range(10)]
    return {"kernels": kernels, "peak_bytes": allocated.peak, "seconds": round(median(times), 6)}


# --- Steps
def training_call(model: nn.Module) -> Callable[[], None]:
    """One step, which changes no parameter."""
    lr, hr = pair(DEVICE)
    optimizer = torch.optim.AdamW(trained(model), lr=0.0)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, lr, hr).backward()
        optimizer.step()

    return step


def inference_call(model: nn.Module) -> Callable[[], None]:
    lr, _ = pair(DEVICE)

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            run(model, lr)

    return infer


CALLS = {"train": training_call, "infer": inference_call}


def memory(model: nn.Module, *, trains: bool) -> dict[str, object]:
    """Bytes of a step and of inference, and the kernels of attention of one forward."""
    lr, hr = pair(DEVICE)
    found: dict[str, object] = {"trained": sum(p.numel() for p in trained(model))}
    if trains:
        model.train().zero_grad(set_to_none=True)
        with Allocated() as allocated:
            loss = loss_of(model, lr, hr)
            found["kept_bytes"] = allocated.now
            loss.backward()
        del loss
        found["peak_bytes"] = allocated.peak
        found["attention"] = attention_kernels(partial(loss_of, model, lr, hr))
        model.zero_grad(set_to_none=True)
    infer = inference_call(model)
    infer()
    with Allocated() as allocated:
        infer()
    return {**found, "inference_peak_bytes": allocated.peak}


def built(name: str, wanted: Sequence[str]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Models on the device, by row, and the reasons for those that cannot be had."""
    models, reasons, every = {}, {}, rows()
    for row in wanted:
        try:
            models[row] = every[row].build(NETWORKS[name].build().to(DEVICE))
        except UnavailableError as reason:
            reasons[row] = str(reason).splitlines()[0]
    return models, reasons


def step_cells(name: str, patterns: Sequence[str], out: Path | None, head: Mapping[str, object], rounds: int) -> None:
    """Memory and times of a network's rows; the models of all rows are on the device together."""
    parts = {part: wanted_rows(part, patterns) for part in CALLS}
    wanted = list(dict.fromkeys([STOCK, REFERENCE, *parts["train"], *parts["infer"]]))
    cells = {part: [f"{name}/{row}/{part}/{i}" for row in parts[part] for i in range(rounds)] for part in parts}
    names = [f"{name}/{row}/memory" for row in wanted]
    if not unfinished(out, [*names, *cells["train"], *cells["infer"]]):
        print(f"{name}: in {out} already", flush=True)
        return
    models, reasons = built(name, wanted)
    calls = {part: {row: CALLS[part](models[row]) for row in each if row in models} for part, each in parts.items()}
    for part, reference in REFERENCES.items():
        if reference in models:
            calls[part].setdefault(reference, CALLS[part](models[reference]))
        for call in calls[part].values():
            call()

    def memory_cell(of: str) -> dict[str, object]:
        row = of.split("/")[1]
        return {SKIPPED: reasons[row]} if row in reasons else memory(models[row], trains=rows()[row].trains)

    run_cells(out, head, names, memory_cell)
    for part in calls:
        for number in range(rounds):
            _round(name, part, number, calls[part], out, head)


def _round(
    name: str,
    part: str,
    number: int,
    calls: Mapping[str, Callable[[], object]],
    out: Path | None,
    head: Mapping[str, object],
) -> None:
    cells = unfinished(out, [f"{name}/{row}/{part}/{number}" for row in calls])
    if not cells or REFERENCES[part] not in calls:
        return
    whole = seconds(calls[REFERENCES[part]])

    def cell(of: str) -> dict[str, object]:
        row = of.split("/")[1]
        own = whole if row == REFERENCES[part] else seconds(calls[row])
        return {"seconds": round(own, 6), "ratio": round(own / whole, 4)}

    run_cells(out, head, cells if number % 2 == 0 else cells[::-1], cell)


# --- Compiling
def compile_cell(of: str) -> dict[str, object]:
    """Seconds with `torch.compile` and without, in turns, and those of the first compiled call."""
    name, row, _ = of.split("/")
    part = "infer" if row == STOCK else "train"
    plain_models, reasons = built(name, [row])
    if row in reasons:
        return {SKIPPED: reasons[row]}
    compiled_model = built(name, [row])[0][row]
    compiled_model.compile()
    plain, compiled = CALLS[part](plain_models[row]), CALLS[part](compiled_model)
    plain()
    start = time.perf_counter()
    compiled()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    compiled()
    times = [(seconds(compiled), seconds(plain)) for _ in range(10)]
    return {
        "part": part,
        "first_call_seconds": round(first, 1),
        "seconds": round(median(own for own, _ in times), 6),
        "ratio_to_eager": round(median(own / eager for own, eager in times), 4),
    }


def compile_rows() -> list[str]:
    """Rows that are compiled: compiling one takes up to a minute."""
    return [STOCK, REFERENCE, "stereo", mode_row("stereo", "keep")]


# --- The command line
def wrong(out: Path | None) -> list[str]:
    """Cells of optimised rows in which the math kernel ran, on networks whose attention is rewritten."""
    cells = cells_of(out)
    fused = {f"{name}/{row}/memory" for name in FUSED for row, each in rows().items() if each.fused}
    return [name for name in sorted(fused & cells.keys()) if MATH in cells[name].get("attention", {})]


def work(options: argparse.Namespace, head: Mapping[str, object]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What there is to do, in order, with its name."""
    out = options.out
    for part in options.parts or PARTS:
        if part == "attention":
            yield part, partial(attention_cells, out, head)
        elif part == "step":
            for name in options.network or MEASURED:
                yield name, partial(step_cells, name, options.row, out, head, options.rounds)
        else:
            for name, row in product(options.network or COMPILED, chosen(options.row, compile_rows())):
                cell = f"{name}/{row}/compile"
                yield cell, partial(run_cells, out, head, [cell], compile_cell)


def main() -> None:
    start = time.perf_counter()
    parser = options_of(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    selection(parser)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing after so many")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        parser.exit(2, "cost_cuda.py: there is no CUDA device\n")
    head = {**head_of("python benchmarks/cost_cuda.py"), "device": torch.cuda.get_device_name()}
    for name, do in work(options, head):
        if time.perf_counter() - start > options.seconds:
            print(f"{name}: not begun, {options.seconds:g} seconds are over", flush=True)
        else:
            do()
            torch.cuda.empty_cache()
    if found := wrong(options.out):
        parser.exit(1, "the math kernel of attention ran in " + "; ".join(found) + "\n")


if __name__ == "__main__":
    main()
