"""What the other view gives on real pairs: DCTLSA x4 adapted in several ways, beside controls, cell by cell.

    python benchmarks/evidence.py --data DATA --runs FOLDER --out benchmarks/results/evidence.json [TASK/ROW …]

Two tasks. `noise10`: Gaussian noise of 10 of 255 on the LR views, of its own in each view, fresh in every crop, then 8
bit. `clean`: bicubic x4. Training pairs are those of `stereo/train` without 8 that are held out, on which learning
rates are chosen: every row tries three in runs of a third of the steps by the first seed, and more until none beside
the best one is better (cells TASK/ROW/short/RATE). The best one and the next lower one are trained in full by the
first seed, the better of the two by the other seeds (TASK/ROW/RATE/seed-N), and measured on the 25 pairs of
`stereo/test`. A control (TASK/ROW/control/…) is the same recipe, trained and measured with each view given twice, with
the same images in every step; its rate is chosen in the same way.

A cell is written at once, and training writes checkpoints into its folder, so an interrupted run goes on where it
stopped; several processes can share the file, with rows of their own. Other rows are bundled recipes. On a GPU:
`--device cuda --steps 20000 --batch 8 --out OTHER.json --runs OTHER`. Needs the extra `demo`, `--plot` also `train`,
and a folder with `stereo/train`, `stereo/test`, `stereo/test_lr_x4_matlab` and `weights`; five to forty minutes a cell
on one core (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowpeft
from cells import (
    DIVERGED,
    LADDER,
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
)
from common import middle, provenance
from evidence_figures import BASELINES, HEAD, chosen_rate, draw, held_out_by_rate, task_rows
from lowpeft.core.attachment.record import module_of
from lowpeft.errors import DivergedError
from lowpeft.ports.facts import Backbone
from lowpeft.recipes import Recipe, TrainSettings, load_recipe, override
from lowpeft.recipes.table import bundled
from lowpeft.restoration.data import (
    Crops,
    EachViewTwice,
    Example,
    Loading,
    Scene,
    find_scenes,
    load_example,
    read_clean_crops,
    scenes_with_lr,
)
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.evaluation import by_bicubic, by_network, by_network_alone, measure
from lowpeft.restoration.evaluation.measure import Enhance
from lowpeft.restoration.metrics import LITERATURE, WHOLE_RGB, Column, Protocol, psnr
from lowpeft.restoration.training import build_model, train
from lowpeft.tables import text
from stereo_start import HELD_OUT, LR_CROP_PX, WEIGHTS

SCALE = 4


@dataclass(frozen=True)
class Task:
    """What the LR views are, and how long their cells are trained.

    Attributes:
        loading: How LR views are made.
        steps: Steps of a whole run; short runs have a third of them.
        first_rate: Lowest of the three learning rates that are tried first.
        test_lr_px: The middle of a test scene that is measured, at most; None for whole views, with the archive's own
            LR files where there are some.
        rows: Rows, each with whether it has a control; other rows have none.
    """

    loading: Loading
    steps: int
    first_rate: float
    test_lr_px: tuple[int, int] | None
    rows: Mapping[str, bool]


TASKS = {
    "noise10": Task(
        loading=Loading(degrade=degradation("down:4,noise:10,8bit")),
        steps=300,
        first_rate=1e-3,
        test_lr_px=(96, 160),
        rows={
            "parallax-spatial": True,
            "parallax": True,
            "full": False,
            "spatial": False,
            "stereo-only": False,
            "stereo": False,
        },
    ),
    "clean": Task(
        loading=Loading(),
        steps=600,
        first_rate=1e-3,
        test_lr_px=None,
        rows={"parallax": True, "stereo": False},
    ),
}
SETS: dict[str, dict[str, Any]] = {"stereo": {"every": 1}, "stereo-only": {"every": 1}}
"""What is changed in a recipe: DCTLSA has few stages, so all of them get an adapter."""

SLOWER = {"full": 2}
"""How many places lower on the ladder the learning rates of a row begin."""


def _left_shaved(sr: Sequence[Tensor], hr: Sequence[Tensor], scale: int) -> float:
    return psnr(sr[0], hr[0], border_px=scale)


PROTOCOL = Protocol(
    name="evidence",
    views=2,
    summary="RGB, whole views, mean of both; and the left view without as many px at each edge as the scale",
    columns=(*LITERATURE.columns[2:], Column(name="PSNR left, shaved", digits=3, measure=_left_shaved)),
    source="(L+R)/2 of the stereo tables; the shaved one as in the data's own list of published networks",
)


def recipe_of(row: str) -> Recipe:
    return override(load_recipe(row), {"freeze_statistics": True, **SETS.get(row, {})})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        task: Name of the task.
        row: Name of the row.
        rate: Peak learning rate.
        seed: Seed.
        steps: Steps.
        control: True to give each view twice.
        curve: True to measure on the held-out pairs during training too.
    """

    task: str
    row: str
    rate: float
    seed: int
    steps: int
    control: bool = False
    curve: bool = False

    def settings(self, options: Namespace) -> TrainSettings:
        times = 2 if self.control else 1
        tenth = max(1, self.steps // 10)
        return TrainSettings(
            steps=self.steps,
            batch=times * options.batch,
            crop_height_px=64,
            crop_width_px=320,
            learning_rate=self.rate,
            betas=(0.9, 0.99),
            final_learning_rate=self.rate / 100,
            warmup_steps=max(1, self.steps // 20),
            clip_norm=0.1,
            save_every_steps=tenth,
            validate_every_steps=tenth if self.curve else 0,
            calibration=times * 8,
            seed=self.seed,
        )

    def trained(self, options: Namespace, folder: Path) -> tuple[Any, dict[str, object]]:
        """Train, or go on in a folder; return the model, and the figures of the training."""
        base, task = backbone(options), TASKS[self.task]
        settings = self.settings(options)
        source: Any = Crops(
            training_scenes(options.data),
            SCALE,
            crop_px=(settings.crop_height_px, settings.crop_width_px),
            seed=self.seed,
            clean_crops=read_clean_crops(options.data / "stereo" / "train"),
            loading=task.loading,
        )
        source = EachViewTwice(source) if self.control else source
        model: Any = build_model(base, replace(recipe_of(self.row), training=settings))
        module_of(model).to(options.device)
        pairs = held_out(options.data, task)
        by = by_network_alone if self.control else by_network
        done = train(
            model,
            source,
            settings,
            out=folder,
            resume=True,
            validate=(lambda model: db(by(model), pairs)) if self.curve else None,
        )
        figures: dict[str, object] = {**facts_of(done), "rate": self.rate, "steps": self.steps}
        return model, figures | ({"held_out_curve": curve(folder)} if self.curve else {})


def backbone(options: Namespace) -> Backbone:
    base = lowpeft.load_backbone(options.data / "weights" / WEIGHTS)
    module_of(base).to(options.device)
    return base


def training_scenes(data: Path) -> list[Scene]:
    return [s for s in find_scenes(data / "stereo" / "train", scale=SCALE) if s.name not in HELD_OUT]


def held_out(data: Path, task: Task) -> list[Example]:
    """The held-out pairs; the middle of each."""
    scenes = find_scenes(data / "stereo" / "train", scale=SCALE)
    examples = (load_example(s, SCALE, loading=task.loading) for s in scenes if s.name in HELD_OUT)
    return [middle(example, LR_CROP_PX) for example in examples]


def test_pairs(data: Path, task: Task) -> Iterable[Example]:
    """The test pairs, read one by one."""
    folder = data / "stereo" / "test"
    scenes = find_scenes(folder, scale=SCALE)
    if task.test_lr_px is None:
        archived, _ = scenes_with_lr(folder, lr_folder=data / "stereo" / "test_lr_x4_matlab")
        with_files = {scene.name: scene for scene in archived}
        return (load_example(with_files.get(s.name, s), SCALE, loading=task.loading) for s in scenes)
    cut = partial(middle, lr_px=task.test_lr_px)
    return (cut(load_example(s, SCALE, loading=task.loading)) for s in scenes)


def db(enhance: Enhance, examples: Iterable[Example]) -> float:
    """Mean PSNR of whole views."""
    return round(measure(enhance, examples, scale=SCALE, protocol=WHOLE_RGB).means()["PSNR"], 4)


def figures_of(enhance: Enhance, examples: Iterable[Example]) -> dict[str, object]:
    """Means of the protocol, and its figures of every scene in the order of its columns."""
    report = measure(enhance, examples, scale=SCALE, protocol=PROTOCOL)
    return {
        "mean": {name: round(value, 4) for name, value in report.means().items()},
        "scenes": {row.scene: [round(value, 4) for value in row.values] for row in report.rows},
    }


def curve(folder: Path) -> dict[str, float]:
    """Figures on the held-out pairs by step, from the log of a run."""
    rows = (json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines())
    return {str(row["step"]): row["validation"] for row in rows if row.get("validation") is not None}


def run_cell(options: Namespace, cell: str, run: Run, *, tested: bool = True) -> dict[str, object]:
    """Train one cell, and measure it on the held-out pairs and, unless it is for a rate alone, on the test pairs."""
    task = TASKS[run.task]
    try:
        model, figures = run.trained(options, options.runs / cell.replace("/", "-"))
    except DivergedError as error:
        return {DIVERGED: error.message, "rate": run.rate, "held_out_db": 0.0}
    by = by_network_alone if run.control else by_network
    figures["held_out_db"] = db(by(model), held_out(options.data, task))
    if tested and not run.control:
        figures["adapted"] = figures_of(by_network(model), test_pairs(options.data, task))
    if tested and recipe_of(run.row).views == 2:
        figures["same view"] = figures_of(by_network_alone(model), test_pairs(options.data, task))
    return figures


def run_row(options: Namespace, head: Mapping[str, object], task_name: str, row: str, *, control: bool = False) -> None:
    """Choose the rate of a row, or of its control, and train it with every seed."""
    task, prefix = TASKS[task_name], f"{task_name}/{row}" + "/control" * control
    first, *others = options.seeds
    steps = options.steps or task.steps
    run = Run(task=task_name, row=row, rate=0, seed=first, steps=steps, control=control)

    def run_short(rates: Sequence[float]) -> None:
        for rate in rates:
            short = replace(run, rate=rate, steps=max(1, steps // 3))
            run_cells(
                options.out,
                head,
                [f"{prefix}/short/{rate:g}"],
                lambda cell, short=short: run_cell(options, cell, short, tested=False),
            )

    def run_long(rate: float, seed: int) -> None:
        long = replace(run, rate=rate, seed=seed, curve=seed == first)
        run_cells(options.out, head, [f"{prefix}/{rate:g}/seed-{seed}"], lambda cell: run_cell(options, cell, long))

    best = best_rate(
        task.first_rate, run_short, lambda: held_out_by_rate(cells_of(options.out), prefix), slower=SLOWER.get(row, 0)
    )
    for rate in dict.fromkeys((best, LADDER[max(0, LADDER.index(best) - 1)])):
        run_long(rate, first)
    for seed in others:
        run_long(chosen_rate(cells_of(options.out), prefix), seed)


def run_baselines(options: Namespace, head: Mapping[str, object], task_name: str) -> None:
    """Measure bicubic, and the frozen network."""
    for name in BASELINES:

        def run(_: str, name: str = name) -> dict[str, object]:
            enhance = by_bicubic(SCALE) if name == "bicubic" else by_network(backbone(options))
            task = TASKS[task_name]
            return {
                "held_out_db": db(enhance, held_out(options.data, task)),
                "adapted": figures_of(enhance, test_pairs(options.data, task)),
            }

        run_cells(options.out, head, [f"{task_name}/{name}"], run)


def main() -> None:
    every = [f"{task}/{row}" for task, found in TASKS.items() for row in (*BASELINES, *found.rows)]
    parser = options_of_cells(__doc__)
    parser.add_argument("rows", nargs="*", default=every, metavar="TASK/ROW")
    parser.add_argument("--runs", type=Path, help="folder of the trained adapters, of its own for each --out")
    parser.add_argument(
        "--steps", type=positive, help="of a whole run, in place of the task's; short ones have a third"
    )
    options = checked(parser, ("stereo/train", "stereo/test", "stereo/test_lr_x4_matlab", "weights"))
    rows = [(task, row) for task, _, row in (name.partition("/") for name in options.rows)]
    known = {*BASELINES, *bundled()}
    if unknown := [f"{task}/{row}" for task, row in rows if task not in TASKS or row not in known]:
        parser.error(f"TASK/ROW is one of {', '.join(every)}, or another bundled recipe, not {', '.join(unknown)}")
    if options.plot:
        draw(results_in(options.out), options.plot)
        return
    if options.runs is None:
        parser.error("--runs is needed: the folder of the trained adapters")
    folders = {name: find_scenes(options.data / "stereo" / name, scale=SCALE) for name in ("train", "test")}
    if missing := {*HELD_OUT} - {scene.name for scene in folders["train"]}:
        parser.error(f"the training pairs lack {', '.join(sorted(missing))}, which are held out")
    head = {
        **provenance("python benchmarks/evidence.py --data DATA --runs FOLDER", "spandrel", "scikit-image"),
        "device": f"{options.device}, {torch.get_num_threads()} threads",
        "weights": WEIGHTS,
        "held_out": list(HELD_OUT),
        "data": {name: len(scenes) for name, scenes in folders.items()},
        "first_seed": options.seeds[0],
        "columns": [column.name for column in PROTOCOL.columns],
        "settings": settings_without_rate(Run(task="", row="", rate=1, seed=0, steps=1).settings(options)),
        "steps": {name: options.steps or task.steps for name, task in TASKS.items()},
        "tasks": {name: str(task.loading.degrade or "MATLAB's bicubic") for name, task in TASKS.items()},
        "test_lr_px": {name: task.test_lr_px or "whole" for name, task in TASKS.items()},
    }
    for task, row in rows:
        if row in BASELINES:
            run_baselines(options, head, task)
            continue
        run_row(options, head, task, row)
    for task, row in rows:  # controls come last: they take twice as long
        if TASKS[task].rows.get(row, False):
            run_row(options, head, task, row, control=True)
    for task in dict.fromkeys(task for task, _ in rows):
        print(f"\n{task}\n" + text([HEAD, *task_rows(results_in(options.out), task)]))


if __name__ == "__main__":
    with errors_in_words():
        main()
