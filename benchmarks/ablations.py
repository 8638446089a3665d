"""The paper's ablations at a small scale: small pre-trained networks, real pairs, a budget for two CPU cores.

    python benchmarks/ablations.py count --data DATA --runs RUNS --jobs 2 --out benchmarks/results/count.json
    python benchmarks/ablations.py count --show

Trains the rows of `ablations/NAME.toml` with three seeds, `scratch` with one, on `DATA/stereo/train`, and measures them
on the 20 KITTI 2015 pairs with the archive's LR views and on the 5 Middlebury pairs of `DATA/stereo`, whose scenes no
training or tuning saw: whole for `finetuning`, for the others the middle of each, `MIDDLE_HR_PX`. Results are written
after every seed; run it again after an interruption, and what is finished in RUNS is taken over. `--cost` times every
row's step at the end; nothing else should run on the machine then. `--submit slurm --slurm time=600` runs the cells as
jobs of a cluster.

`--show` runs nothing: it prints the paper's table, ours from `results/NAME.json`, and of each of the paper's findings
(claims.py) whether ours agree.

Needs the extra `demo` and a folder with `stereo/train`, `stereo/test`, `stereo/test_lr_x4_matlab` and `weights`;
`--weights` names another folder of checkpoints. Those of `pretraining` are made by pretrain.py, as its head says.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

import lowpeft
from claims import CLAIMS, directions, with_spread
from common import options_of, provenance, write
from lowpeft import tables
from lowpeft.cli.cluster import add_cluster, cluster_of
from lowpeft.paper.experiments import Experiment, load_experiment
from lowpeft.paper.experiments.show import shown
from lowpeft.paper.reproduce import Line, Settings, Sources, Table, reproduce
from lowpeft.paper.reproduce.job import MEAN, RESULT, SAME_VIEW
from lowpeft.paper.reproduce.table import FROZEN
from lowpeft.recipes import recipe_to_dict
from lowpeft.restoration.data import Crops, find_scenes, scenes_with_lr
from lowpeft.restoration.training import build_model, train

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
ONE_SEED = ("scratch",)
"""Rows whose distance from the others is far above any spread."""

WHOLE = ("finetuning",)
MIDDLE_HR_PX = (192, 640)
"""Of each test pair; that of KITTI starts at a multiple of 4, as its LR views are given."""

SHORT: Mapping[str, Any] = {
    "steps": 200,
    "batch": 2,
    "crop_height_px": 64,
    "crop_width_px": 320,
    "learning_rate": 1e-3,
    "betas": [0.9, 0.99],
    "final_learning_rate": 1e-6,
    "warmup_steps": 20,
    "clip_norm": 0.0,
    "ema_decay": 0.98,
    "save_every_steps": 50,
}
"""Settings of all rows of the other ablations: those of `both` in `finetuning`, at half of the steps."""

UNPADDED = {"crop_height_px": 96, "crop_width_px": 192}
"""The crop of `pretraining`: whole windows of EDT, which would pad the other one to nearly twice its size."""

SAME_CELLS = {"count": ("3", "placement", "attention")}
"""The row of an ablation that is a row of another one: what that left is taken over, where it was run before."""

ROUNDS, TIMED_STEPS = 3, 12


def test_sets(data: Path, folder: Path, *, whole: bool) -> dict[str, Path]:
    """KITTI 2015 in the layout with LR views beside the HR views, and Middlebury without."""
    kitti, others = scenes_with_lr(data / "stereo" / "test", lr_folder=data / "stereo" / "test_lr_x4_matlab")
    sets = {"kitti2015": folder / "kitti2015", "middlebury": folder / "middlebury"}
    put = shutil.copyfile if whole else middle
    for scene in kitti:
        for level, views in (("hr", scene.hr), ("lr_x4", scene.lr)):
            place = sets["kitti2015"] / level / scene.name
            place.mkdir(parents=True, exist_ok=True)
            for number, view in enumerate(views):
                put(view, place / f"{level.partition('_')[0]}{number}.png")
    sets["middlebury"].mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "stereo" / "test").glob("*.png")):
        if path.stem[:-2] in others:
            put(path, sets["middlebury"] / path.name)
    return sets


def middle(source: Path, target: Path) -> None:
    """Write the middle of an HR view, or of an LR view of x4."""
    image = Image.open(source)
    scale = 4 if target.name.startswith("lr") else 1
    sides = [
        (side * scale, min(most, side * scale // 4 * 4))
        for side, most in zip(image.size[::-1], MIDDLE_HR_PX, strict=True)
    ]
    (top, height), (left, width) = [((side - most) // 8 * 4 // scale, most // scale) for side, most in sides]
    image.crop((left, top, left + width, top + height)).save(target)


def measured(experiment: Experiment, sources: Sources, settings: Settings, runs: Path) -> Table:
    """Every row with all seeds, but those of `ONE_SEED` with the first."""
    lines: dict[str, Line] = {}
    for seeds, once in ((settings.seeds, False), (settings.seeds[:1], True)):
        rows = tuple(row for row in experiment.rows if (row.name in ONE_SEED) is once)
        if rows:
            part = replace(experiment, rows=rows)
            found = reproduce(part, sources, runs, settings=replace(settings, seeds=seeds), report=print)
            lines |= {line.row: line for line in found.lines}
    order = [name for name in lines if name.startswith(FROZEN)] + [row.name for row in experiment.rows]
    return Table(experiment=experiment, lines=tuple(lines[name] for name in order))


def take_over(name: str, seeds: Sequence[int], runs: Path) -> None:
    """Results of the same cells in another ablation; `reproduce` refuses one that differs in anything but its name."""
    row, other, its_row = SAME_CELLS[name]
    for seed in seeds:
        source, target = runs / other / its_row / f"seed-{seed}", runs / name / row / f"seed-{seed}"
        if (source / RESULT).exists() and not target.exists():
            result = json.loads((source / RESULT).read_text(encoding="utf-8"))
            result["identity"]["row"] = result["outcome"]["row"] = row
            target.mkdir(parents=True)
            (target / RESULT).write_text(json.dumps(result), encoding="utf-8")


def gains(table: Table) -> dict[str, Any]:
    """Of every trained row, dB over the frozen network and over the other view being the same one, seed by seed."""
    lines = {line.row: line for line in table.lines}
    found: dict[str, Any] = {}
    for name in table.test_sets:
        for row in (line for line in table.lines if not line.row.startswith(FROZEN)):
            frozen = lines.get(FROZEN) or lines[f"{FROZEN}, {row.row}"]
            base = frozen.outcomes[0].figures[name][MEAN]
            seeds = [outcome.figures[name] for outcome in row.outcomes]
            gain = {"over_frozen_db": [round(each[MEAN] - base, 4) for each in seeds]}
            if SAME_VIEW + MEAN in seeds[0]:
                gain["from_other_view_db"] = [round(each[MEAN] - each[SAME_VIEW + MEAN], 4) for each in seeds]
            found.setdefault(name, {})[row.row] = gain
    return found


def cost(experiment: Experiment, sources: Sources, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of a training step of every row, timed in turns, and in units of full fine-tuning."""
    taken: dict[str, list[float]] = {row.name: [] for row in experiment.rows}
    for _ in range(ROUNDS):
        for row in experiment.rows:
            backbone = lowpeft.load_backbone(sources.weights / row.weights)
            short = replace(row.recipe.training, **settings, steps=TIMED_STEPS, warmup_steps=0, save_every_steps=0)
            model = build_model(backbone, replace(row.recipe, training=short))
            crops = Crops(
                find_scenes(sources.data), row.scale, crop_px=(short.crop_height_px, short.crop_width_px), seed=0
            )
            ends: list[float] = []
            train(model, crops, short, report=lambda step, ends=ends: ends.append(step.seconds))
            taken[row.name] += [b - a for a, b in pairwise(ends)]
    seconds = {name: median(values) for name, values in taken.items()}
    return {
        name: {"seconds_per_step": round(value, 3), "of_full": round(value / seconds["full"], 2)}
        for name, value in seconds.items()
    }


def run(options: argparse.Namespace) -> None:
    """Train and measure; the results are written after every seed."""
    whole = options.name in WHOLE
    experiment = load_experiment(HERE / "ablations" / f"{options.name}.toml")
    sources = Sources(
        weights=options.weights or options.data / "weights",
        data=options.data / "stereo" / "train",
        tests=test_sets(options.data, options.runs / ("whole" if whole else "middle"), whole=whole),
    )
    unpadded = UNPADDED if options.name == "pretraining" else {}
    settings = Settings(
        jobs=options.jobs,
        cluster=cluster_of(options),
        device="auto" if options.submit else "cpu",
        training={} if whole else {**SHORT, **unpadded},
    )
    if options.name in SAME_CELLS:
        take_over(options.name, options.seeds, options.runs)
    command = f"python benchmarks/ablations.py {options.name} --data DATA --runs RUNS --jobs {options.jobs or 1}"
    command += f" --submit {options.submit}" if options.submit else ""
    for count in range(1, len(options.seeds) + 1):
        seeds = options.seeds[:count]
        table = measured(experiment, sources, replace(settings, seeds=seeds), options.runs / options.name)
        results: dict[str, object] = {
            **provenance(command, "spandrel", "scikit-image"),
            "seeds": list(seeds),
            "spread": "standard deviation over the seeds",
            "recipes": {row.name: recipe_to_dict(row.recipe) for row in experiment.rows},
            "training_of_all": dict(settings.training),
            "test_images": "whole" if whole else f"the middle {MIDDLE_HR_PX[0]}x{MIDDLE_HR_PX[1]} px",
            **table.as_dict(),
            "gains": gains(table),
        }
        if options.cost and count == len(options.seeds):
            results["cost"] = cost(experiment, sources, settings.training)
        write(json.loads(json.dumps(results)), options.out)


def show(name: str) -> str:
    """The paper's table, ours, and whether ours agree with its findings."""
    experiment = load_experiment(name)
    results = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    sets = list(results["gains"])
    ours = [["row", "trained", "seeds", *(f"{each}: {MEAN}" for each in sets), *(f"{each}: gain, dB" for each in sets)]]
    for row in results["rows"]:
        outcomes = row["outcomes"]
        figures = [with_spread([outcome["figures"][each][MEAN] for outcome in outcomes]) for each in sets]
        found = [results["gains"][each].get(row["row"], {}).get("over_frozen_db") for each in sets]
        gain = ["–" if values is None else with_spread(values, sign="+") for values in found]
        ours.append([row["row"], f"{outcomes[0]['trained']:,}", str(len(outcomes)), *figures, *gain])
    claims = [["the paper finds", "by, dB", *(f"{each}, dB" for each in sets), *sets]]
    for each in directions(name, experiment, results):
        paper = "–" if each["paper_db"] is None else f"{each['paper_db']:+.2f}"
        values = [with_spread(found["db"], sign="+", digits=4) for found in each["sets"].values()]
        claims.append([each["says"], paper, *values, *(found["verdict"] for found in each["sets"].values())])
    made = f"{results['command']}, {results['date']}, {results['device']}; ± is the {results['spread']}."
    here = load_experiment(HERE / "ablations" / f"{name}.toml")
    return "\n\n".join(
        [shown(experiment), f"Here: {here.summary}\n{made}", tables.text(ours), "The findings:", tables.text(claims)]
    )


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("name", choices=CLAIMS)
    parser.add_argument("--show", action="store_true", help="print what was measured; run nothing")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of checkpoints, if not DATA/weights")
    parser.add_argument("--runs", type=Path, help="folder for runs, kept between calls")
    add_cluster(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of all rows but scratch")
    parser.add_argument("--cost", action="store_true", help="time every row's step, too; the rows must have a `full`")
    options = parser.parse_args()
    if options.show:
        print(show(options.name))
    elif options.data is None or options.runs is None:
        parser.error("give --data and --runs, or --show")
    else:
        run(options)


if __name__ == "__main__":
    main()
