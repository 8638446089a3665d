"""Methods of parameter-efficient fine-tuning for super-resolution, at one budget of trained parameters.

    python benchmarks/methods.py --data DATA --out benchmarks/results/methods.json [ROW …]

Two tasks for a frozen network x4. `near`: bicubic LR images, as it was trained on, of other images. `far`: the LR
images have Gaussian noise of 25 of 255, fresh in every crop. Every row is trained with three learning rates by the
first seed, and with more until none beside the best one is better, but with none below one that is no better
than the frozen network; the rate that is best on held-out training images is then trained with the other seeds. A cell
is NETWORK/BUDGET/TASK/ROW/RATE/seed-N; it is trained and measured once and written at once, so an interrupted run goes
on where it stopped, and several processes can share the file, with rows of their own. `--forgetting` trains rows on
`far` once more and measures them on `near` too. `--cost` writes what a step of each row costs, all rows in turns, and
needs a machine that does nothing else.

More rows (any bundled recipe), budgets and networks are options; a GPU takes `--device cuda --steps 20000 --batch 16
--out OTHER.json`. Needs the extra `demo`, `--plot` also `train`, `pip install peft` for the row of peft, and a folder
with `single/BSDS500`, `single/Kodak24` and `weights`; about three minutes a cell on one core.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import lowpeft
from cells import (
    DIVERGED,
    best_rate,
    cells_of,
    checked,
    errors_in_words,
    facts_of,
    options_of_cells,
    positive,
    results_in,
    run_cells,
    settings_without_rate,
    unfinished,
)
from common import median_seconds, middle, provenance
from counting import kept_bytes
from lowpeft.core.attachment.record import module_of
from lowpeft.errors import DivergedError
from lowpeft.kinds import get_kind
from lowpeft.ports.layouts import Size
from lowpeft.recipes import TrainSettings, load_recipe
from lowpeft.recipes.budget import parameters_of as allowed_by
from lowpeft.recipes.table import bundled
from lowpeft.restoration.data import Crops, Loading, Scene, find_scenes, load_example
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.evaluation import by_bicubic, by_network, measure
from lowpeft.restoration.evaluation.measure import Enhance
from lowpeft.restoration.metrics import WHOLE_RGB
from lowpeft.restoration.training import Trained, train
from lowpeft.tables import text
from same_budget_figures import (
    FORGETTING_HEAD,
    HEAD,
    NEW,
    OLD,
    OWN_SIZE,
    UNTRAINED,
    draw,
    forgetting_rows,
    held_out_by_rate,
    rows_of,
    task_rows,
)
from same_budget_rows import PEFT, PEFT_PACKAGE, ROWS, model_of, recipe_of, row_of

NETWORKS = {"dctlsa": "DCTLSA_x4.pt", "craft": "CRAFT_x4.pth"}
SCALE = 4
"""Of the networks and of the tasks."""

TASKS = {OLD: Loading(), NEW: Loading(degrade=degradation("down:4,noise:25,8bit"))}
HELD_OUT = 20
"""Training images, the last by name, that choose the rate and are not trained on."""

HELD_OUT_LR_PX, TEST_LR_PX = (64, 64), (80, 80)
"""The middle of an image that is measured, at most."""

FIRST_RATE = {OLD: 3e-4, NEW: 3e-3}
"""The lowest of the three that are tried first."""


@dataclass(frozen=True)
class Cell:
    """One training: its name is NETWORK/BUDGET/TASK/ROW/RATE/seed-N."""

    network: str
    budget: str
    task: str
    row: str
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.network}/{self.budget}/{self.task}/{self.row}/{self.rate:g}/seed-{self.seed}"


def trained(options: Namespace, cell: Cell) -> tuple[object, Trained]:
    """Train the model of a cell."""
    base = lowpeft.load_backbone(options.data / "weights" / NETWORKS[cell.network])
    settings = settings_of(options, cell.rate, cell.seed)
    crop, scenes = (settings.crop_height_px, settings.crop_width_px), training_scenes(options.data)[:-HELD_OUT]
    source = Crops(scenes, SCALE, crop_px=crop, seed=cell.seed, loading=TASKS[cell.task])
    model: Any = model_of(base, cell.row, cell.budget, settings)
    module_of(model).to(options.device)
    return model, train(model, source, settings)


def run_cell(options: Namespace, cell: Cell) -> dict[str, object]:
    """Train one cell, and measure it on the held-out images and on the test images."""
    try:
        model, done = trained(options, cell)
    except DivergedError as error:
        return {DIVERGED: error.message, "held_out_db": 0.0}
    return facts_of(done) | figures_of(options.data, TASKS[cell.task], by_network(model))


def run_untrained(options: Namespace, network: str, task: str, name: str) -> dict[str, object]:
    """Measure the frozen network, or bicubic."""
    base = lowpeft.load_backbone(options.data / "weights" / NETWORKS[network])
    module_of(base).to(options.device)
    return figures_of(options.data, TASKS[task], by_bicubic(SCALE) if name == "bicubic" else by_network(base))


def parameters_of(data: Path, network: str) -> int:
    base = lowpeft.load_backbone(data / "weights" / NETWORKS[network])
    return sum(parameter.numel() for parameter in module_of(base).parameters())


def training_scenes(data: Path) -> Sequence[Scene]:
    return find_scenes(data / "single" / "BSDS500" / "train", views=1)


def test_scenes(data: Path) -> Sequence[Scene]:
    return find_scenes(data / "single" / "Kodak24", views=1)


def figures_of(data: Path, loading: Loading, enhance: Enhance) -> dict[str, object]:
    """PSNR on the held-out training images, their mean, and on every test image."""

    def db(scenes: Sequence[Scene], lr_px: Size) -> list[float]:
        examples = (middle(load_example(scene, SCALE, loading=loading), lr_px) for scene in scenes)
        report = measure(enhance, examples, scale=SCALE, protocol=WHOLE_RGB)
        return [round(row.values[0], 4) for row in report.rows]

    held_out = db(training_scenes(data)[-HELD_OUT:], HELD_OUT_LR_PX)
    return {"held_out_db": round(fmean(held_out), 4), "test_db": db(test_scenes(data), TEST_LR_PX)}


def settings_of(options: Namespace, rate: float, seed: int) -> TrainSettings:
    return TrainSettings(
        steps=options.steps,
        batch=options.batch,
        crop_height_px=options.crop,
        crop_width_px=options.crop,
        learning_rate=rate,
        betas=(0.9, 0.99),
        final_learning_rate=rate / 100,
        warmup_steps=options.steps // 20,
        clip_norm=0.1,
        save_every_steps=0,
        seed=seed,
    )


def run_row(options: Namespace, head: dict[str, object], network: str, task: str, name: str) -> None:
    """Train a row with its rates by the first seed, and with the best one by the others."""
    if name in UNTRAINED:
        cell = f"{network}/{task}/{name}"
        run_cells(options.out, head, [cell], lambda _: run_untrained(options, network, task, name))
        return
    first, *others = options.seeds
    size = options.budget if row_of(name).sized else OWN_SIZE

    def run(rates: Sequence[float], seeds: Sequence[int] = (first,)) -> None:
        cells = {str(c): c for c in (Cell(network, size, task, name, r, s) for r in rates for s in seeds)}
        run_cells(options.out, head, list(cells), lambda key: run_cell(options, cells[key]))

    def found() -> dict[float, float]:
        return held_out_by_rate(cells_of(options.out), f"{network}/{size}/{task}/{name}", first)

    untrained = cells_of(options.out)[f"{network}/{task}/frozen"]["held_out_db"]
    run([best_rate(FIRST_RATE[task], run, found, slower=row_of(name).slower, untrained=untrained)], others)
    run(options.rates, options.seeds)


def run_forgetting(options: Namespace, head: dict[str, object]) -> None:
    """Train rows on the new task once more, with their rate there, and measure them on the old one too."""
    for network in options.networks:
        for task in TASKS:
            for name in UNTRAINED:
                run_row(options, head, network, task, name)
        rates = {row.name: row.rate for row in rows_of(results_in(options.out), network, options.budget, NEW)}
        if missing := [name for name in options.rows if name not in rates]:
            raise SystemExit(f"{options.out} has no cells {network}/…/{NEW}/ of {', '.join(missing)}: run these first")
        for seed in options.seeds:
            for name in options.rows:
                size = options.budget if row_of(name).sized else OWN_SIZE
                cell = Cell(network, size, NEW, name, rates[name], seed)
                key = f"{network}/{options.budget}/forgetting/{name}/{seed}"
                run_cells(options.out, head, [key], lambda _, cell=cell: _forgetting(options, cell))
        lines = forgetting_rows(results_in(options.out), network, options.budget)
        print(f"\n{network}\n{text([FORGETTING_HEAD, *lines])}")


def _forgetting(options: Namespace, cell: Cell) -> dict[str, object]:
    """Train a cell, and measure it on both tasks."""
    model, done = trained(options, cell)
    figures = {task: figures_of(options.data, loading, by_network(model)) for task, loading in TASKS.items()}
    return {**facts_of(done), "rate": cell.rate, **figures}


def run_cost(options: Namespace, head: dict[str, object]) -> None:
    """Write what a step of each row costs: kept bytes, and seconds of a step, the rows taking turns."""
    for network in options.networks:
        cell = f"{network}/{options.budget}/cost"
        if not unfinished(options.out, [cell]):
            print(f"{cell}: in {options.out} already, with the rows {', '.join(cells_of(options.out)[cell])}")
            continue
        steps, result = {}, {}
        for name in dict.fromkeys([*options.rows, "full"]):
            base = lowpeft.load_backbone(options.data / "weights" / NETWORKS[network])
            model = module_of(model_of(base, name, options.budget, settings_of(options, 1e-3, 0)))
            model.to(options.device).train()
            steps[name] = _step(model, options)
            steps[name]()
            kept, _ = kept_bytes(lambda model=model: _loss(model, options))
            kinds = [get_kind(config.kind) for config in recipe_of(name, options.budget).adapters]
            merges = all(kind.on_weights for kind in kinds)
            result[name] = {"mergeable": merges, "kept_bytes": kept, **_file_of(name, model)}
        seconds = median_seconds(steps, rounds=options.rounds)
        for name, value in seconds.items():
            result[name]["step_of_full"] = round(value / seconds["full"], 3)
        run_cells(options.out, head, [cell], lambda _, result=result: result)


def _loss(model: nn.Module, options: Namespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(options.batch, 3, options.crop // SCALE, options.crop // SCALE, generator=generator)
    output: torch.Tensor = model(lr.to(options.device))
    return output.abs().mean()


def _step(model: nn.Module, options: Namespace) -> Any:
    def step() -> None:
        model.zero_grad()
        _loss(model, options).backward()
        if options.device != "cpu":
            torch.cuda.synchronize()

    return step


def _file_of(name: str, model: nn.Module) -> dict[str, object]:
    if name == PEFT:
        return {}
    with TemporaryDirectory() as folder:
        lowpeft.save_adapter(model, folder)
        return {"file_bytes": sum(file.stat().st_size for file in Path(folder).iterdir())}


def check(parser: ArgumentParser, options: Namespace) -> None:
    """End with a message where the options do not fit, before anything is measured."""
    if unknown := [name for name in options.rows if name not in {*ROWS, *bundled()}]:
        parser.error(f"ROW is one of {', '.join(ROWS)}, or another bundled recipe, not {', '.join(unknown)}")
    if pairs := [name for name in options.rows if load_recipe(row_of(name).recipe).views > 1]:
        parser.error(f"the tasks have single images, and {', '.join(pairs)} adapts pairs: see benchmarks/evidence.py")
    try:
        allowed_by(options.budget, 1_000_000)
    except lowpeft.PlanError as error:
        parser.error(error.message)
    if PEFT in options.rows and not find_spec(PEFT_PACKAGE):
        parser.error(f"the row {PEFT} needs `pip install {PEFT_PACKAGE}`")
    if options.crop % 8:
        parser.error(f"--crop {options.crop} is no multiple of 8 px")
    if options.plot and len(options.networks) > 1:
        parser.error("--plot draws one network")


def main() -> None:
    parser = options_of_cells(__doc__)
    parser.add_argument("rows", nargs="*", default=[*ROWS], metavar="ROW", help="rows, or bundled recipes")
    parser.add_argument("--networks", nargs="+", default=["dctlsa"], choices=NETWORKS)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=TASKS)
    parser.add_argument("--budget", default="2%", help="share of trained parameters (default: 2%%)")
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="rates to run with all seeds besides")
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--crop", type=positive, default=128, help="side of the square HR crops, in px")
    parser.add_argument("--cost", action="store_true", help="write what a step of each row costs, and nothing else")
    parser.add_argument("--forgetting", action="store_true", help="measure on `near` what was trained on `far`")
    parser.add_argument("--rounds", type=positive, default=15, help="of --cost")
    options = checked(parser, ("single/BSDS500", "single/Kodak24", "weights"))
    check(parser, options)
    if options.plot:
        draw(results_in(options.out), options.networks[0], options.budget, options.plot)
        return
    beside = [PEFT_PACKAGE] if find_spec(PEFT_PACKAGE) else []
    head = {
        **provenance("python benchmarks/methods.py --data DATA", "spandrel", "scikit-image", *beside),
        "device": f"{options.device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "parameters": {
            **results_in(options.out).get("parameters", {}),
            **{name: parameters_of(options.data, name) for name in options.networks},
        },
        "steps": options.steps,
        "first_seed": options.seeds[0],
        "data": {"train": len(training_scenes(options.data)), "test": len(test_scenes(options.data))},
        "settings": settings_without_rate(settings_of(options, 1, 0)),
        "tasks": {name: str(loading.degrade or "MATLAB's bicubic") for name, loading in TASKS.items()},
        "what": "PSNR in dB of whole RGB, middles of 24 Kodak images; held out: 20 of the 200 images of BSDS500",
    }
    if options.cost:
        run_cost(options, head)
        return
    if options.forgetting:
        run_forgetting(options, head)
        return
    for network in options.networks:
        for task in options.tasks:
            for name in dict.fromkeys([*UNTRAINED, *options.rows]):  # the frozen network ends the search of rates
                run_row(options, head, network, task, name)
            lines = task_rows(results_in(options.out), network, options.budget, task)
            print(f"\n{network}, {task}\n{text([HEAD, *lines])}")


if __name__ == "__main__":
    with errors_in_words():
        main()
