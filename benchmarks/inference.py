"""Whole-image inference: memory under a bound, and what strips, self-ensemble and local pools do to the result.

    python benchmarks/inference.py --data DATA --out benchmarks/results/inference.json

Needs the extra `demo`, Linux (peak memory is the process's high-water mark), 5 GB of memory, and a folder with
`stereo/test`, `stereo/test_lr_x4_matlab` and `weights`. Memory is that of tiny networks with random weights and the
stereo recipe, in a process for each; everything else is measured on trained networks. About 20 minutes of one core;
the file is written anew after each section, with the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

import lowpeft
from common import options_of, peak_memory_bytes, provenance, write
from lowpeft import Backbone
from lowpeft.demo import demo_backbone
from lowpeft.restoration.data import Example, find_scenes, load_example, scenes_with_lr
from lowpeft.restoration.evaluation import evaluate
from lowpeft.restoration.images import to_float, to_uint8
from lowpeft.restoration.inference import Tiling, boxes, local_pooling, reach_px

HEIGHT, WIDTH = 1080, 1920

CHECKPOINTS = ("DITN_Real_x4.pth", "DCTLSA_x4.pt", "CRAFT_x4.pth")
DEMO = "HAT x2 of the demo"
BOUNDS_MB = (
    ("Compact", "stereo", 1200),
    ("RCAN", "stereo", 1500),
    ("SwinIR", "stereo", 3000),
    (DEMO, "parallax", 4000),
)
LARGE = ("mb2014q_Piano", "mb2014h_Motorcycle")
FEW = 3
STRIPS = Tiling(strip_px=48)
DEMO_CROP_PX = 32
"""Of the demo network's pre-training, in LR px."""


# --- memory
def tiny(name: str) -> Backbone:
    """A network of a few thousand parameters."""
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.RCAN import RCAN
    from spandrel.architectures.SwinIR import SwinIR

    swin = {"depths": (2,) * 4, "num_heads": (2,) * 4, "img_size": 8, "embed_dim": 12, "window_size": 4}
    networks: dict[str, Callable[[], nn.Module]] = {
        "Compact": partial(Compact, num_feat=8, num_conv=4, upscale=2),
        "RCAN": partial(RCAN, n_resgroups=4, n_resblocks=2, n_feats=8, reduction=1, scale=2),
        "SwinIR": partial(SwinIR, **swin, upscale=2, upsampler="pixelshuffledirect"),
    }
    torch.manual_seed(0)
    module = networks[name]().eval()
    return lowpeft.describe(module, value_range=(0, 255 if name == "RCAN" else 1))


def held_mb() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def one_pair(name: str, recipe: str, memory_mb: float) -> dict[str, object]:
    """Run one 1080p pair in this process."""
    base = tiny(name)
    model = lowpeft.adapt(base, recipe)
    left, right = torch.rand(2, 3, HEIGHT, WIDTH)
    cuts = []
    original = boxes.strips
    boxes.strips = lambda *given: cuts.append(found := original(*given)) or found
    before = held_mb()
    views = lowpeft.enhance(model, left, right, tiling=Tiling(memory_mb=memory_mb))
    peak_mb = peak_memory_bytes() / 1e6
    return {
        "network": f"{name} x{base.scale}",
        "recipe": recipe,
        "lr_px": f"{WIDTH}x{HEIGHT}",
        "bound_mb": memory_mb,
        "peak_mb": round(peak_mb - before),
        "results_mb": round(sum(v.nbytes for v in views) / 1e6),
        "strips": len(cuts[0]),
        "strip_rows": cuts[0][0].kept.stop,
    }


def memory() -> list[dict[str, object]]:
    """Each bound in a process of its own."""
    rows = []
    for name, recipe, bound_mb in BOUNDS_MB:
        command = [sys.executable, "-W", "ignore", __file__, "--one", name, recipe, "--memory-mb", str(bound_mb)]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    return rows


# --- trained networks
def examples(data: Path, names: tuple[str, ...] | None, scale: int) -> list[Example]:
    """Test scenes: those of the names, or the first KITTI pairs with the archive's LR views."""
    if names is None:
        scenes, _ = scenes_with_lr(data / "stereo" / "test", lr_folder=data / "stereo" / "test_lr_x4_matlab")
        return [load_example(s, scale) for s in scenes[:FEW]]
    scenes = find_scenes(data / "stereo" / "test")
    return [load_example(s, scale) for s in scenes if s.name in names]


def networks(data: Path) -> dict[str, Backbone]:
    """The trained networks, by name."""
    found = {name: lowpeft.load_backbone(data / "weights" / name) for name in CHECKPOINTS}
    return {**found, DEMO: demo_backbone()}


def strips(data: Path) -> list[dict[str, object]]:
    """Strips of 48 rows with 48 rows of context against the whole image."""
    rows = []
    for name, base in networks(data).items():
        reach = reach_px(base)
        # At x2 the larger scene would take minutes more.
        for example in examples(data, LARGE[:1] if name == DEMO else LARGE, base.scale):
            images: list[list[torch.Tensor]] = []
            values = []
            for tiling in (Tiling(), STRIPS):
                seen = lambda e, results, kept=images: kept.append([to_uint8(r) for r in results])  # noqa: E731
                found = evaluate(base, [example], tiling=tiling, seen=seen)
                values.append(found.means()["PSNR (L+R)/2"])
            differences = [(to_float(a) - to_float(b)).abs() * 255 for a, b in zip(*images, strict=True)]
            rows.append(
                {
                    "network": name,
                    "reach_px": reach,
                    "scene": example.name,
                    "lr_px": f"{example.lr[0].shape[-1]}x{example.lr[0].shape[-2]}",
                    "whole_db": round(values[0], 4),
                    "strips_db": round(values[1], 4),
                    "levels_changed_percent": round(100 * fmean((d > 0).float().mean().item() for d in differences), 3),
                    "most_levels": round(max(d.max().item() for d in differences)),
                }
            )
    return rows


def ensemble(data: Path) -> list[dict[str, object]]:
    """The six passes against one, per view, on the first KITTI pairs."""
    rows = []
    for name in CHECKPOINTS:
        base = lowpeft.load_backbone(data / "weights" / name)
        scenes = examples(data, None, base.scale)
        model = lowpeft.adapt(base, "stereo")  # adds nothing yet, so this is the network itself, run on pairs
        values = [evaluate(model, scenes, ensemble=on).means() for on in (False, True)]
        plain, mean = (round(v["PSNR (L+R)/2"], 4) for v in values)
        rows.append({"network": name, "scenes": len(scenes), "one_pass_db": plain, "six_passes_db": mean})
    return rows


def pools(data: Path) -> dict[str, object]:
    """Local against global pools, HAT of the demo, on the large scenes."""
    base = demo_backbone()
    scenes = examples(data, LARGE, base.scale)
    plain = evaluate(base, scenes).means()["PSNR (L+R)/2"]
    rows = {
        "network": DEMO,
        "crop_px": DEMO_CROP_PX,
        "scenes": len(scenes),
        "global_db": round(plain, 4),
    }
    for ratio in (1.5, 3.0):
        window = round(ratio * DEMO_CROP_PX)
        with local_pooling(base.module, window):
            found = evaluate(base, scenes).means()["PSNR (L+R)/2"]
        rows[f"window_{window}px_db"] = round(found, 4)
    return rows


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("sections", nargs="*", help="sections to measure again; the others stay (default: all)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory-mb", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_pair(*options.one, options.memory_mb)))
        return
    kept = json.loads(options.out.read_text()) if options.sections else {"seconds": {}}
    results = {**kept, **provenance("python benchmarks/inference.py --data DATA", "spandrel", "scikit-image")}
    seconds: dict[str, int] = results["seconds"]
    sections: dict[str, Callable[[], object]] = {
        "memory_of_a_pair": memory,
        "strips": partial(strips, options.data),
        "ensemble": partial(ensemble, options.data),
        "pools": partial(pools, options.data),
    }
    for name, section in sections.items():
        if options.sections and name not in options.sections:
            continue
        start = time.perf_counter()
        results[name] = section()
        seconds[name] = round(time.perf_counter() - start)
        write(results, options.out)


if __name__ == "__main__":
    main()
