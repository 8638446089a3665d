"""What the other view gives on real pairs: a frozen DCTLSA x4, with and without noise, beside controls, cell by cell.

    python benchmarks/evidence.py --data DATA --out benchmarks/results/evidence.json [CELL …]

A cell is TASK/RECIPE/seed-N, or TASK/RECIPE/seed-N/control; each is trained and measured once, and written at once, so
an interrupted run goes on where it stopped, and several processes can share the file. Without names, all cells of
`CELLS` are run. Tasks: `clean` (bicubic x4), and `noise10` (Gaussian noise of 10 of 255 on the LR views, fresh in
every crop, then 8 bit). A control is the same recipe, trained and measured with each view given twice, with the same
images in every step.

Only training scenes are used: 8 of the 42 are held out and measured on, at most 48x160 LR px of each. Needs the extra
`demo` and a folder with `stereo/train` and `weights`; about five minutes a cell on one core.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowpeft
from common import options_of, provenance, run_cells
from lowpeft.recipes import load_recipe, override
from lowpeft.restoration.data import Crops, EachViewTwice, Example, find_scenes, read_clean_crops
from lowpeft.restoration.evaluation import by_network, by_network_alone, measure
from lowpeft.restoration.images import to_float, to_uint8
from lowpeft.restoration.metrics import WHOLE_RGB
from lowpeft.restoration.training import build_model, train
from stereo_start import HELD_OUT, WEIGHTS, middle

NOISE = {"clean": 0.0, "noise10": 10 / 255}
RECIPES = {
    "parallax": load_recipe("parallax"),
    "parallax-spatial": load_recipe("parallax-spatial"),
    "stereo": override(load_recipe("stereo"), {"every": 1}),
    "stereo-only": override(load_recipe("stereo-only"), {"every": 1}),
    "spatial": load_recipe("spatial"),
}
SETTINGS = replace(
    load_recipe("parallax").training,
    steps=300,
    batch=2,
    crop_height_px=64,
    crop_width_px=320,
    learning_rate=3e-3,
    warmup_steps=20,
    save_every_steps=0,
    calibration=8,
)
CELLS = tuple(
    f"{task}/{cell}"
    for task in NOISE
    for cell in (
        "parallax/seed-0",
        "parallax/seed-0/control",
        "stereo-only/seed-0",
        "parallax-spatial/seed-0",
        "parallax-spatial/seed-0/control",
        "stereo/seed-0",
        "spatial/seed-0",
    )
)


def noisy(view: Tensor, noise: float, key: str) -> Tensor:
    """Return an LR view (3,h,w), uint8, with Gaussian noise (values 0..1) that depends on the key alone, as uint8."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return to_uint8((to_float(view) + noise * torch.randn(view.shape, generator=generator)).clamp(0, 1))


@dataclass(kw_only=True)
class NoisyCrops(Crops):
    """Crops whose LR views have noise (standard deviation for values 0..1) of their own in every crop."""

    noise: float

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        lr, hr = super().__getitem__(index)
        if self.noise:
            views = [noisy(to_uint8(v), self.noise, f"{self.seed} {index} {i}") for i, v in enumerate(lr)]
            lr = torch.stack([to_float(view) for view in views])
        return lr, hr


def run_cell(data: Path, cell: str, adapters: Path) -> dict[str, object]:
    """Train one cell, and measure it on the held-out scenes."""
    task, name, seed_name, *control = cell.split("/")
    seed, noise = int(seed_name.removeprefix("seed-")), NOISE[task]
    base = lowpeft.load_backbone(data / "weights" / WEIGHTS)
    scale, folder = lowpeft.describe(base).scale or 4, data / "stereo" / "train"
    scenes = find_scenes(folder, scale=scale)
    tests: list[Example] = []
    for scene in scenes:
        if scene.name in HELD_OUT:
            example = middle(scene, scale)
            lr = tuple(noisy(v, noise, f"{scene.name} {i}") for i, v in enumerate(example.lr)) if noise else example.lr
            tests.append(replace(example, lr=lr))
    settings = replace(SETTINGS, seed=seed)
    source: Any = NoisyCrops(
        [s for s in scenes if s.name not in HELD_OUT],
        scale,
        crop_px=(settings.crop_height_px, settings.crop_width_px),
        seed=seed,
        clean_crops=read_clean_crops(folder),
        noise=noise,
    )
    if control:
        source = EachViewTwice(source)
        settings = replace(settings, batch=2 * settings.batch, calibration=2 * settings.calibration)

    def db(enhance: Any) -> float:
        return round(measure(enhance, tests, scale=scale, protocol=WHOLE_RGB).means()["PSNR"], 4)

    frozen = db(by_network(base))
    torch.manual_seed(seed)
    model = build_model(base, replace(RECIPES[name], training=settings))
    done = train(model.train(), source, settings)
    lowpeft.save_adapter(model, adapters / cell.replace("/", "-"), facts={"training": f"benchmarks/evidence.py {cell}"})
    results: dict[str, object] = {"frozen_db": frozen, "parameters": done.parameters, "seconds": round(done.seconds)}
    if RECIPES[name].views == 2:
        results["same_view_db"] = db(by_network_alone(model))
    if not control:
        results["adapted_db"] = db(by_network(model))
    return results


def main() -> None:
    parser = options_of(__doc__, data=True)
    parser.add_argument("cells", nargs="*", default=CELLS, metavar="CELL")
    parser.add_argument("--adapters", type=Path, default=Path("runs/evidence"), help="folder of the trained adapters")
    options = parser.parse_args()
    head = {
        **provenance("python benchmarks/evidence.py --data DATA", "spandrel", "scikit-image"),
        "weights": WEIGHTS,
        "held_out": list(HELD_OUT),
        "settings": vars(SETTINGS),
        "what": "PSNR in dB of whole RGB views, mean of both views and of 8 held-out training scenes",
    }
    run_cells(options.out, head, options.cells, lambda cell: run_cell(options.data, cell, options.adapters))


if __name__ == "__main__":
    main()
