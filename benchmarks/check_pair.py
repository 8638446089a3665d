"""What `check_pair` finds, against what was done to real rectified pairs.

    python benchmarks/check_pair.py --data DATA --out benchmarks/results/check_pair.json

Each right view is moved up by 0, 0.5, 1 or 2 px (a spline of order 5) and multiplied by 0.9, 1 or 1.1. Both views then
get Gaussian noise, or none, and are rounded to 8 bits. This is measured at the pairs' own size, and on views that
MATLAB's bicubic reduced by 4 after the move, where 1 px is 4 px of the pair. A rectified pair has an offset and a gain
of its own; what `check_pair` finds on the untouched views is recorded with each run.

Only training scenes are used. Needs the extra `train` and a folder with `stereo/train`; takes ten minutes on one core.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from common import options_of, provenance, write
from lowpeft import PairCheck, check_pair
from lowpeft.restoration.data import Scene, find_scenes
from lowpeft.restoration.images import matlab_downscale, mod_crop, read_image

SCENES = (
    "kitti2015_000151",
    "kitti_redtail",
    "mb2003q_Teddy",
    "mb2005t_Dolls",
    "mb2006t_Aloe",
    "mb2006t_Cloth4",
    "mb2006t_Lampshade1",
    "mb2014q_Recycle",
)
REDUCED_BY = (1, 4)
OFFSETS_PX = (0.0, 0.5, 1.0, 2.0)
GAINS = (0.9, 1.0, 1.1)
NOISES = (0, 10)
"""Standard deviations of the noise, of 255."""


def moved_up(view: Tensor, rows_px: float) -> Tensor:
    """A view whose content is `rows_px` further up."""
    if not rows_px:
        return view
    moved = ndimage.shift(view.numpy().astype(float), (0, -rows_px, 0), order=5, mode="mirror")
    return torch.from_numpy(moved.round().clip(0, 255).astype("uint8"))


def taken(view: Tensor, gain: float, noise: int, rng: np.random.Generator) -> Tensor:
    """A view as a camera of this gain and noise gives it."""
    values = view.numpy() * gain + noise * rng.standard_normal(view.shape)
    return torch.from_numpy(values.round().clip(0, 255).astype("uint8"))


def runs_of(paths: tuple[Path, ...], name: str, by: int) -> list[dict[str, object]]:
    """Every offset, gain and noise of one scene at one size."""
    left, right = (mod_crop(read_image(path), by) for path in paths)
    left_seen = matlab_downscale(left, by) if by > 1 else left
    own: PairCheck | None = None
    runs: list[dict[str, object]] = []
    for offset in OFFSETS_PX:
        moved = moved_up(right, offset * by)
        right_seen = matlab_downscale(moved, by) if by > 1 else moved
        own = own or check_pair(left_seen, right_seen)
        for gain, noise in itertools.product(GAINS, NOISES):
            rng = np.random.default_rng(0)
            views = taken(left_seen, 1.0, noise, rng), taken(right_seen, gain, noise, rng)
            start = time.process_time()
            found = check_pair(*views)
            runs.append(
                {
                    "scene": name,
                    "reduced_by": by,
                    "noise": noise,
                    "offset_px": offset,
                    "gain": gain,
                    "found_offset_px": round(found.offset_px, 4),
                    "own_offset_px": round(own.offset_px, 4),
                    "found_gain": round(found.gain, 4),
                    "own_gain": round(own.gain, 4),
                    "points": found.points,
                    "cpu_seconds": round(time.process_time() - start, 2),
                }
            )
    return runs


def untouched(scene: Scene) -> dict[str, object]:
    """What is found on a scene's own views."""
    found = check_pair(*scene.hr)
    return {
        "scene": scene.name,
        "offset_px": round(found.offset_px, 3),
        "spread_px": round(found.spread_px, 3),
        "gain": round(found.gain, 3),
        "disparity_px": [round(disparity, 1) for disparity in found.disparity_px],
        "points": found.points,
    }


def main() -> None:
    options = options_of(__doc__, data=True).parse_args()
    scenes = {scene.name: scene for scene in find_scenes(options.data / "stereo" / "train")}
    runs = []
    for name, by in itertools.product(SCENES, REDUCED_BY):
        runs += runs_of(scenes[name].hr, name, by)
        print(runs[-1], flush=True)
    own = [untouched(scene) for scene in scenes.values()]
    command = "python benchmarks/check_pair.py --data DATA"
    write({**provenance(command, "scikit-image", "scipy"), "runs": runs, "untouched": own}, options.out)


if __name__ == "__main__":
    main()
