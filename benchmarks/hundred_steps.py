"""Every recipe for single images, 100 steps on frozen networks whose LR images have noise: does the loss fall?

    python benchmarks/hundred_steps.py --data DATA --out benchmarks/results/hundred_steps.json [NETWORK/RECIPE …]

Gaussian noise of 25 of 255 on the LR images of BSDS500, fresh in every crop, then 8 bit: far from what the networks
were trained for. They are DCTLSA x4 and the demo's small transformer (HAT x2). One seed, one learning rate and few
steps: this shows that the methods train, not which is best. A cell is NETWORK/RECIPE, trained in float32, or
NETWORK/RECIPE/bf16, a few steps under autocast to bfloat16; it is written at once, so an interrupted run goes on where
it stopped. A recipe that does not fit a network leaves the reason. Needs the extra `demo`, and a folder with
`single/BSDS500` and `weights`; about a minute a cell on one core.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import lowpeft
from cells import run_cells
from common import options_of, provenance
from lowpeft.demo import demo_backbone
from lowpeft.ports.facts import Backbone
from lowpeft.recipes import TrainSettings, bundled, load_recipe
from lowpeft.restoration.data import Crops, find_scenes
from lowpeft.restoration.images import to_float, to_uint8
from lowpeft.restoration.training import build_model, train
from stereo_start import WEIGHTS

NOISE = 25 / 255
SETTINGS = TrainSettings(
    steps=100,
    batch=1,
    learning_rate=1e-3,
    warmup_steps=5,
    clip_norm=0.1,
    save_every_steps=0,
    calibration=8,
)
CROP_LR_PX = 24
BF16_STEPS = 4
ENDS = 10
"""Number of steps at each end of a run whose losses are averaged."""


REFUSED = "refused"

NETWORKS: dict[str, Callable[[Path], Backbone]] = {
    "dctlsa": lambda data: lowpeft.load_backbone(data / "weights" / WEIGHTS),
    "demo": lambda data: demo_backbone(),
}


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
        views = [noisy(to_uint8(v), self.noise, f"{self.seed} {index} {i}") for i, v in enumerate(lr)]
        return torch.stack([to_float(view) for view in views]), hr


def recipes() -> list[str]:
    """Bundled recipes of adapters for single images, and full fine-tuning as a change of all weights."""
    known = {name: load_recipe(name) for name in bundled()}
    return [name for name, recipe in known.items() if recipe.adapters and recipe.views == 1]


def run_cell(data: Path, cell: str) -> dict[str, object]:
    network, name, *precision = cell.split("/")
    settings = replace(SETTINGS, precision="bf16", steps=BF16_STEPS) if precision else SETTINGS
    base = NETWORKS[network](data)
    scale = lowpeft.describe(base).scale or 4
    settings = replace(settings, crop_height_px=CROP_LR_PX * scale, crop_width_px=CROP_LR_PX * scale)
    source = NoisyCrops(
        find_scenes(data / "single" / "BSDS500" / "train", views=1),
        scale,
        crop_px=(settings.crop_height_px, settings.crop_width_px),
        noise=NOISE,
    )
    torch.manual_seed(settings.seed)
    # The statistics of the network's batch norms stay as they are, also for `full`.
    recipe = replace(load_recipe(name), training=settings, freeze_statistics=True)
    try:
        model = build_model(base, recipe)
    except lowpeft.PlanError as error:
        return {REFUSED: error.message}
    losses: list[float] = []
    done = train(model.train(), source, settings, report=lambda step: losses.append(step.loss))
    tensors = lowpeft.adapter_state_dict(model)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise RuntimeError(f"{cell}: an adapter holds NaN or infinity")
    with TemporaryDirectory() as folder:
        saved = lowpeft.save_adapter(model, folder)
        size = sum(file.stat().st_size for file in Path(saved).glob("*.safetensors"))
    ends = min(ENDS, len(losses) // 2)
    return {
        "trained": done.parameters,
        "file_bytes": size,
        "loss_first": round(statistics.fmean(losses[:ends]), 5),
        "loss_last": round(statistics.fmean(losses[-ends:]), 5),
        "seconds": round(done.seconds, 1),
    }


def main() -> None:
    parser = options_of(__doc__, data=True)
    every = [f"{network}/{recipe}" for network in NETWORKS for recipe in recipes()]
    parser.add_argument("cells", nargs="*", default=every, metavar="NETWORK/RECIPE")
    options = parser.parse_args()
    head = {
        **provenance("python benchmarks/hundred_steps.py --data DATA", "spandrel"),
        "weights": {"dctlsa": WEIGHTS, "demo": "built in"},
        "noise": "sigma 25 of 255 on the LR images",
        "settings": {name: value for name, value in vars(SETTINGS).items() if not name.startswith("crop_")},
        "crop_lr_px": CROP_LR_PX,
        "bf16_steps": BF16_STEPS,
        "averaged_steps": ENDS,
    }
    cells = [f"{name}{precision}" for name in options.cells for precision in ("", "/bf16")]
    run_cells(options.out, head, cells, lambda cell: run_cell(options.data, cell))


if __name__ == "__main__":
    main()
