"""Why a short training of stereo adapters takes nothing from the other view, and what a sharp start changes.

    python benchmarks/stereo_start.py --data DATA --out benchmarks/results/stereo_start.json

A new stereo adapter draws its query projections at random, as the paper's code does. Here its logits are measured on
training crops, and the adapters are trained from that start and from another one: both queries g·(z - mean z), with z
the normalised features and g such that the logits of a row spread by `SPREAD`. All normalised features have the same
length, so such logits rank positions by their distance. Gates start at zero either way.

Only training scenes are used: 8 of the 42 are held out and measured on. Needs the extra `demo` and a folder with
`stereo/train` and `weights`; takes a quarter of an hour on one core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

import lowpeft
from common import middle, options_of, provenance, write
from lowpeft.core.attachment.record import pieces, unwrap
from lowpeft.kinds import StereoAdapter
from lowpeft.ports.layouts import Features
from lowpeft.recipes import load_recipe, override, recipe_to_dict
from lowpeft.restoration.data import Crops, find_scenes, load_example, read_clean_crops
from lowpeft.restoration.evaluation import by_network, by_network_alone, measure
from lowpeft.restoration.training import build_model, train

WEIGHTS = "DCTLSA_x4.pt"
HELD_OUT = (
    "kitti_redtail",
    "kitti_openstereo",
    "mb2003q_Teddy",
    "mb2005h_Reindeer",
    "mb2005t_Art",
    "mb2005t_Dolls",
    "mb2006t_Aloe",
    "mb2014q_Recycle",
)
LR_CROP_PX = (48, 160)
"""The middle of a held-out scene that is measured, at most."""

SPREAD = 8.0
SEEDS = (0, 1, 2)
LOOKED_AT = 6
"""Crops that the logits are measured on."""

RECIPE = override(load_recipe("stereo-only"), {"every": 1})
SETTINGS = replace(
    RECIPE.training,
    steps=200,
    batch=2,
    crop_height_px=64,
    crop_width_px=320,
    learning_rate=5e-3,
    betas=(0.9, 0.99),
    final_learning_rate=1e-6,
    warmup_steps=20,
    clip_norm=0.0,
    ema_decay=0.98,
    save_every_steps=0,
)


def rows_seen(model: nn.Module, left: Tensor, right: Tensor) -> dict[StereoAdapter, Tensor]:
    """The features that reach each stereo adapter: (2N,H,W,C), left and right of a pair as neighbours."""
    seen: dict[StereoAdapter, Tensor] = {}
    adapters = [piece for _, _, piece in pieces(unwrap(model)) if isinstance(piece, StereoAdapter)]

    def watch(adapter: StereoAdapter) -> Callable[[Features], Tensor]:
        original = adapter.delta

        def delta(features: Features) -> Tensor:
            seen[adapter] = features.rows
            return original(features)

        return delta

    for adapter in adapters:
        adapter.__dict__["delta"] = watch(adapter)
    try:
        with torch.no_grad():
            model.eval()(left, right)
    finally:
        for adapter in adapters:
            del adapter.__dict__["delta"]
    return seen


@torch.no_grad()
def sharpen(seen: dict[StereoAdapter, Tensor]) -> None:
    """Set the queries of both views to g·(z - mean z)."""
    for adapter, rows in seen.items():
        normed = adapter.norm_left(rows).double()  # new norms are alike; what is common is much larger than the rest
        mean = normed.mean((0, 1, 2))
        left, right = (normed - mean)[0::2], (normed - mean)[1::2]
        gain = (SPREAD / (left @ right.mT * adapter.scale).std(-1).mean()).sqrt()
        for query in (adapter.query_left, adapter.query_right):
            query.weight.copy_(torch.eye(len(query.weight)) * gain)
            query.bias.copy_(-mean * gain)


@torch.no_grad()
def sharpness(seen: dict[StereoAdapter, Tensor]) -> list[dict[str, float]]:
    """Of each adapter: how far its logits spread within a row, and the largest weight in units of the even one."""
    found = []
    for adapter, rows in seen.items():
        left = adapter.query_left(adapter.norm_left(rows[0::2]))
        logits = left @ adapter.query_right(adapter.norm_right(rows[1::2])).mT * adapter.scale
        peak = logits.softmax(-1).amax(-1).mean() * logits.shape[-1]
        found.append({"logit_spread": round(logits.std(-1).mean().item(), 4), "peak_over_even": round(peak.item(), 2)})
    return found


def one_run(data: Path, seed: int, *, sharp: bool) -> dict[str, object]:
    """Train once, and measure on the held-out scenes."""
    base = lowpeft.load_backbone(data / "weights" / WEIGHTS)
    folder = data / "stereo" / "train"
    scenes = find_scenes(folder, scale=base.scale)
    tests = [middle(load_example(s, base.scale), LR_CROP_PX) for s in scenes if s.name in HELD_OUT]
    settings = replace(SETTINGS, seed=seed)
    crops = Crops(
        [s for s in scenes if s.name not in HELD_OUT],
        base.scale,
        crop_px=(settings.crop_height_px, settings.crop_width_px),
        seed=seed,
        clean_crops=read_clean_crops(folder),
    )

    def db(model: object, *, alone: bool = False) -> float:
        enhance = (by_network_alone if alone else by_network)(model)
        return measure(enhance, tests, scale=base.scale).means()["PSNR (L+R)/2"]

    frozen = db(base)
    model = build_model(base, replace(RECIPE, training=settings))
    looked_at = torch.stack([crops[10**6 + i][0] for i in range(LOOKED_AT)])
    views = looked_at[:, 0], looked_at[:, 1]
    if sharp:
        sharpen(rows_seen(model, *views))
    start = sharpness(rows_seen(model, *views))
    with tempfile.TemporaryDirectory() as out:
        done = train(model.train(), crops, settings, out=Path(out) / "run")
    adapted, alone = db(model), db(model, alone=True)
    return {
        "start": "sharp" if sharp else "random",
        "seed": seed,
        "frozen_db": round(frozen, 4),
        "over_frozen_db": round(adapted - frozen, 4),
        "from_other_view_db": round(adapted - alone, 4),
        "seconds": round(done.seconds),
        "attention_before": start,
        "attention_after": sharpness(rows_seen(model, *views)),
    }


def main() -> None:
    options = options_of(__doc__, data=True).parse_args()
    runs = []
    for seed in SEEDS:
        for sharp in (False, True):
            runs.append(one_run(options.data, seed, sharp=sharp))
            print(runs[-1], flush=True)
    keys = ("over_frozen_db", "from_other_view_db")
    results: dict[str, object] = {
        **provenance("python benchmarks/stereo_start.py --data DATA", "spandrel", "scikit-image"),
        "weights": WEIGHTS,
        "held_out": list(HELD_OUT),
        "recipe": recipe_to_dict(replace(RECIPE, training=SETTINGS)),
        "mean": {
            start: {key: round(fmean(run[key] for run in runs if run["start"] == start), 4) for key in keys}
            for start in ("random", "sharp")
        },
        "runs": runs,
    }
    write(results, options.out)


if __name__ == "__main__":
    main()
