"""Plain bicubic by lowpeft's protocols beside the printed figures: a self-test of data, resizing and metrics.

    python benchmarks/bicubic_anchors.py --data DATA --out benchmarks/results/bicubic_anchors.json

Needs the extra `demo` and a folder with `stereo/test` and `stereo/test_lr_x4_matlab`. No network takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from skimage.metrics import structural_similarity
from torch import Tensor

from common import options_of, provenance, write
from lowpeft.restoration.data import Example, find_scenes, load_example, scenes_with_lr
from lowpeft.restoration.evaluation import by_bicubic, measure
from lowpeft.restoration.images import bicubic_upscale
from lowpeft.restoration.metrics import LEFT_CUT_PX, PROTOCOLS

COLUMNS = ("PSNR Left", "SSIM Left", "PSNR (L+R)/2", "SSIM (L+R)/2")
PRINTED = {
    ("KITTI 2015", 4): (23.79, 0.7072, 24.38, 0.7340),
    ("KITTI 2015", 2): (27.81, 0.8814, 28.61, 0.8973),
    ("Middlebury", 4): (26.27, 0.7553, 26.40, 0.7572),
    ("Middlebury", 2): (30.46, 0.8979, 30.60, 0.8990),
}
SOURCE = "README of The-Learning-And-Vision-Atelier-LAVA/Stereo-Image-SR; Left from a public table"

SCENES = {
    "KITTI 2015": "20 pairs, 1240x372 px; the standard set by layout, count and size",
    "Middlebury": (
        "5 pairs. The names that are usually quoted for the literature's set (not confirmed) are Cloth2, Motorcycle, "
        "Piano, Pipes and Sword2: ladder (2021) stands for Sword2 here. The literature's sizes are not printed either; "
        "these are the halves of the full scenes (Piano a quarter, ladder as it is). Not comparable with print."
    ),
}


def scenes(data: Path, name: str, scale: int) -> tuple[list[Example], str]:
    """The examples of a set, and where their LR views are from."""
    folder, archive = data / "stereo" / "test", data / "stereo" / "test_lr_x4_matlab"
    kitti, others = scenes_with_lr(folder, lr_folder=archive)
    if name == "KITTI 2015" and scale == 4:
        return [load_example(s, scale) for s in kitti], "the archive's files"
    wanted = {s.name for s in kitti} if name == "KITTI 2015" else set(others)
    chosen = [s for s in find_scenes(folder) if s.name in wanted]
    return [load_example(s, scale) for s in chosen], "made by MATLAB's bicubic, symmetric border"


def ssim_as_printed(example: Example, scale: int) -> tuple[float, float]:
    """Left and (L+R)/2 as the first tables have it: bicubic not rounded to 8 bits, population covariance."""

    def value(sr: Tensor, hr: Tensor) -> float:
        options = {"channel_axis": 0, "data_range": 255, "use_sample_covariance": False}
        return float(structural_similarity(sr.numpy(), hr.double().numpy(), **options))

    sr = [bicubic_upscale(v.double(), scale).clamp(0, 255) for v in example.lr]
    left = value(sr[0][..., LEFT_CUT_PX:], example.hr[0][..., LEFT_CUT_PX:])
    return left, fmean(value(a, b) for a, b in zip(sr, example.hr, strict=True))


def row(data: Path, name: str, scale: int) -> dict[str, object]:
    """One set at one scale."""
    examples, lr = scenes(data, name, scale)
    reports = {p: measure(by_bicubic(scale), examples, scale=scale, protocol=PROTOCOLS[p]) for p in PROTOCOLS_USED}
    found = {p: _rounded(tuple(r.means().values())) for p, r in reports.items()}
    printed_ssim = [ssim_as_printed(e, scale) for e in examples]
    return {
        "set": name,
        "scale": scale,
        "scenes": SCENES[name],
        "lr": lr,
        "printed": dict(zip(COLUMNS, PRINTED[name, scale], strict=True)),
        **found,
        "SSIM of unrounded bicubic, population covariance": {
            "SSIM Left": round(fmean(v[0] for v in printed_ssim), 4),
            "SSIM (L+R)/2": round(fmean(v[1] for v in printed_ssim), 4),
        },
        "each scene": {r.scene: _rounded(r.values) for r in reports["literature"].rows},
    }


PROTOCOLS_USED = ("literature", "asteisr")


def _rounded(values: Sequence[float]) -> dict[str, float]:
    return {c: round(v, 4) for c, v in zip(COLUMNS, values, strict=True)}


def main() -> None:
    options = options_of(__doc__, data=True).parse_args()
    command = "python benchmarks/bicubic_anchors.py --data DATA"
    rows = [row(options.data, *key) for key in PRINTED]
    write({**provenance(command, "scikit-image"), "printed_in": SOURCE, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
