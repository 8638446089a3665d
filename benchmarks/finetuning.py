"""The paper's `finetuning` table at a small scale: real weights, real pairs, a budget for two CPU cores.

    python benchmarks/finetuning.py --data DATA --runs RUNS --jobs 2 --out benchmarks/results/finetuning.json

Trains the rows of `finetuning.toml` (beside this file) with three seeds, `scratch` with one, on `DATA/stereo/train`,
and measures them on the 20 KITTI 2015 pairs with the archive's LR views and on the 5 Middlebury pairs of `DATA/stereo`,
whose scenes no training or tuning saw. Run it again after an interruption: what is finished in RUNS is taken over. At
the end every row's step is timed; nothing else should run on the machine then.

Needs the extra `demo` and a folder with `stereo/train`, `stereo/test`, `stereo/test_lr_x4_matlab` and `weights`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lowpeft
from common import provenance, write
from lowpeft.data import Crops, find_scenes, scenes_with_lr
from lowpeft.experiments import Experiment, load_experiment
from lowpeft.recipes import recipe_to_dict
from lowpeft.reproduce import Line, Settings, Sources, Table, reproduce
from lowpeft.training import build_model, train

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
ONE_SEED = ("scratch",)
"""Rows whose distance from the others is far above any spread."""

ROUNDS, TIMED_STEPS = 3, 12


def test_sets(data: Path, folder: Path) -> dict[str, Path]:
    """KITTI 2015 in the layout with LR views beside the HR views, and Middlebury without."""
    kitti, others = scenes_with_lr(data / "stereo" / "test", lr_folder=data / "stereo" / "test_lr_x4_matlab")
    sets = {"kitti2015": folder / "kitti2015", "middlebury": folder / "middlebury"}
    for scene in kitti:
        for level, views in (("hr", scene.hr), ("lr_x4", scene.lr)):
            place = sets["kitti2015"] / level / scene.name
            place.mkdir(parents=True, exist_ok=True)
            for number, view in enumerate(views):
                shutil.copyfile(view, place / f"{level.partition('_')[0]}{number}.png")
    sets["middlebury"].mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "stereo" / "test").glob("*.png")):
        if path.stem[:-2] in others:
            shutil.copyfile(path, sets["middlebury"] / path.name)
    return sets


def measured(experiment: Experiment, sources: Sources, options: argparse.Namespace) -> Table:
    """Every row with all seeds, but those of `ONE_SEED` with the first."""
    lines: dict[str, Line] = {}
    for seeds, once in ((options.seeds, False), (options.seeds[:1], True)):
        rows = tuple(row for row in experiment.rows if (row.name in ONE_SEED) is once)
        part, settings = replace(experiment, rows=rows), Settings(seeds=seeds, jobs=options.jobs)
        found = reproduce(part, sources, options.runs, settings=settings, report=print)
        lines |= {line.row: line for line in found.lines}
    order = ("frozen", *(row.name for row in experiment.rows))
    return Table(experiment=experiment, lines=tuple(lines[name] for name in order))


def gains(table: Table) -> dict[str, Any]:
    """Of every trained row, dB over the frozen network and over the other view being the same one, seed by seed."""
    frozen, *rows = table.lines
    column, alone = "PSNR (L+R)/2", "same view PSNR (L+R)/2"
    found: dict[str, Any] = {}
    for name in table.test_sets:
        base = frozen.outcomes[0].figures[name][column]
        for row in rows:
            seeds = [outcome.figures[name] for outcome in row.outcomes]
            gain = {"over_frozen_db": [round(each[column] - base, 4) for each in seeds]}
            if alone in seeds[0]:
                gain["from_other_view_db"] = [round(each[column] - each[alone], 4) for each in seeds]
            found.setdefault(name, {})[row.row] = gain
    return found


def cost(experiment: Experiment, sources: Sources) -> dict[str, dict[str, float]]:
    """Seconds of a training step of every row, timed in turns, and in units of full fine-tuning."""
    taken: dict[str, list[float]] = {row.name: [] for row in experiment.rows}
    for _ in range(ROUNDS):
        for row in experiment.rows:
            backbone = lowpeft.load_backbone(sources.weights / row.weights)
            settings = replace(row.recipe.training, steps=TIMED_STEPS, warmup_steps=0, save_every_steps=0)
            model = build_model(backbone, replace(row.recipe, training=settings))
            crop_px = (settings.crop_height_px, settings.crop_width_px)
            crops = Crops(find_scenes(sources.data), row.scale, crop_px=crop_px, seed=0)
            ends: list[float] = []
            train(model, crops, settings, report=lambda step, ends=ends: ends.append(step.seconds))
            taken[row.name] += [b - a for a, b in pairwise(ends)]
    seconds = {name: median(values) for name, values in taken.items()}
    return {
        name: {"seconds_per_step": round(value, 3), "of_full": round(value / seconds["full"], 2)}
        for name, value in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for runs, kept between calls")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of all rows but scratch")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    experiment = load_experiment(HERE / "finetuning.toml")
    sources = Sources(
        weights=options.data / "weights",
        data=options.data / "stereo" / "train",
        tests=test_sets(options.data, options.runs / "sets"),
    )
    table = measured(experiment, sources, options)
    print(table)
    results: dict[str, object] = {
        **provenance("python benchmarks/finetuning.py --data DATA --runs RUNS --jobs 2", "spandrel", "scikit-image"),
        "seeds": list(options.seeds),
        "spread": "standard deviation over the seeds",
        "recipes": {row.name: recipe_to_dict(row.recipe) for row in experiment.rows},
        **table.as_dict(),
        "gains": gains(table),
        "cost": cost(experiment, sources),
    }
    write(json.loads(json.dumps(results)), options.out)


if __name__ == "__main__":
    main()
