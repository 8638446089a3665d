"""The figures of `lowpeft demo`, with seeds, beside the control and the published recipe; and the adapter it ships.

    python benchmarks/demo.py --out benchmarks/results/demo.json [CELL …]
    python benchmarks/demo.py --out benchmarks/results/demo.json --ship

A cell is RECIPE/seed-N, or RECIPE/seed-N/control, or RECIPE/seed-N/steps-M for runs of other lengths, trained and
measured once and written at once; see `cells.run_cells`.
A control is the same recipe, trained and measured with each view given twice, with the same images in every step.
`--ship` writes the adapter of seed 0 (trained if the folder beside the results does not have it) and the mean figures
into the package. Needs the extra `demo`; about four minutes a cell on one core.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from statistics import fmean, stdev

import lowpeft
from cells import run_cells
from common import options_of, provenance
from lowpeft.demo.run import ADAPTER, FIGURES, RECIPE, train_demo
from lowpeft.demo.task import NOISE, SETTINGS, training_scenes, unseen_scenes
from lowpeft.restoration.data import load_example
from lowpeft.restoration.evaluation import by_network_alone, compare, measure
from lowpeft.restoration.metrics import WHOLE_RGB
from lowpeft.storage import write_json

SCALE, SEEDS = 2, (0, 1, 2)
CELLS = tuple(cell for seed in SEEDS for cell in (f"{RECIPE}/seed-{seed}", f"{RECIPE}/seed-{seed}/control"))
CELLS += tuple(f"stereo/seed-{seed}" for seed in SEEDS) + tuple(
    f"{RECIPE}/seed-0/steps-{n}" for n in (30, 60, 120, 480)
)


def run_cell(cell: str, adapters: Path) -> dict[str, object]:
    """Train one cell on the demo's scenes, and measure it on the held-out ones."""
    recipe, seed, *rest = cell.split("/")
    control, steps = rest == ["control"], None if not rest or rest == ["control"] else int(rest[0].split("-")[1])
    with tempfile.TemporaryDirectory() as folder:
        scenes, held_out = training_scenes(Path(folder), SCALE), unseen_scenes(Path(folder), SCALE)
        tests = [load_example(scene, SCALE) for scene in held_out]
        model, seconds = train_demo(
            scenes, seed=int(seed.removeprefix("seed-")), steps=steps, recipe=recipe, control=control
        )
        lowpeft.save_adapter(model, adapters / cell.replace("/", "-"), facts={"training": f"benchmarks/demo.py {cell}"})
        if control:
            report = measure(by_network_alone(model), tests, scale=SCALE, protocol=WHOLE_RGB)
            db = {"same view": report.means()["PSNR"]}
        else:
            db = compare(model, tests).means_db()
    return {
        "db": {name: round(value, 4) for name, value in db.items()},
        "parameters": lowpeft.summary(model).trainable,
        "seconds": round(seconds),
    }


def ship(out: Path, adapters: Path) -> None:
    """Put the adapter of seed 0 and the mean figures into the package."""
    cells = json.loads(out.read_text())["cells"]
    seeds = [seed for seed in SEEDS if f"{RECIPE}/seed-{seed}/control" in cells]
    adapted, same, control = (
        [cells[f"{RECIPE}/seed-{seed}{which}"]["db"][name] for seed in seeds]
        for which, name in (("", "adapted"), ("", "same view"), ("/control", "same view"))
    )
    gains = {
        "control_db": control,
        "over_same_view_db": [a - b for a, b in zip(adapted, same, strict=True)],
        "over_control_db": [a - b for a, b in zip(adapted, control, strict=True)],
    }
    figures = {name: {"mean": round(fmean(v), 3), "stdev": round(stdev(v), 3)} for name, v in gains.items()}
    write_json(FIGURES, {"command": "python benchmarks/demo.py --ship", "seeds": seeds, **figures})
    shutil.rmtree(ADAPTER, ignore_errors=True)
    shutil.copytree(adapters / f"{RECIPE}-seed-0", ADAPTER)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("cells", nargs="*", default=CELLS, metavar="CELL")
    parser.add_argument("--ship", action="store_true", help="write the adapter and the figures of the package")
    parser.add_argument("--adapters", type=Path, default=Path("runs/demo"), help="folder of the trained adapters")
    options = parser.parse_args()
    if options.ship:
        ship(options.out, options.adapters)
        return
    head = {
        **provenance("python benchmarks/demo.py", "spandrel", "scikit-image"),
        "noise": NOISE,
        "settings": vars(SETTINGS),
        "what": "PSNR in dB of whole RGB views, mean of both views and of 4 unseen scenes; x2, noise 10/255",
    }
    run_cells(options.out, head, options.cells, lambda cell: run_cell(cell, options.adapters))


if __name__ == "__main__":
    main()
