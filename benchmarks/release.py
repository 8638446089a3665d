"""Make the folder `adapters/`: every adapter measured, with a card, its results and a picture.

    python benchmarks/release.py --data DATA [--stereo RUN] [NAME …]

An adapter in `adapters/` is measured by `lowpeft evaluate`, and saved again with what it gives; the stereo adapter has
the figures of `benchmarks/results/evidence.json`. `--stereo` is the run of `benchmarks/evidence.py` that it is taken
from, `noise10-parallax-spatial-0.01-seed-0`; without it, the one in `adapters/` is. The pictures show a scene of the
demo, which no adapter was trained on. Needs the extra `demo` and a folder with `single/Kodak24` and `weights`; ten
minutes on one core.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import lowpeft
from common import options_of
from lowpeft.cli import main as lowpeft_command
from lowpeft.demo.scenes import make_scene
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.images import write_image

EVIDENCE = Path(__file__).resolve().parent / "results" / "evidence.json"
RUN = "noise10/parallax-spatial/0.01/seed-0"
ADAPTERS = Path(__file__).resolve().parents[1] / "adapters"


@dataclass(frozen=True)
class Released:
    """What is released.

    Attributes:
        summary: What it is for.
        base: Weights of the base, in `adapters` or in the data.
        degrade: What the adapter was trained on, and is measured on.
        test: Test images in the data; None for the figures of `benchmarks/evidence.py`.
        datasets: What it was trained on.
        facts: Facts that its training did not write.
    """

    summary: str
    base: str
    degrade: str
    test: str | None
    datasets: tuple[str, ...]
    facts: dict[str, str]


NAFNET = "denoiser/network.safetensors"
STEREO = "noisy-stereo-x4"
RELEASED = {
    "noise-25": Released(
        "Gaussian noise of sigma 25 in colour photographs", NAFNET, "noise:25", "single/Kodak24", ("BSDS500",), {}
    ),
    "jpeg-30": Released("JPEG of quality 30 in photographs", NAFNET, "jpeg:30", "single/Kodak24", ("BSDS500",), {}),
    STEREO: Released(
        "Stereo super-resolution x4 of pairs with Gaussian noise of sigma 10",
        "weights/DCTLSA_x4.pt",
        "down:4,noise:10,8bit",
        None,
        ("Middlebury Stereo", "KITTI 2015"),
        {
            "base weights": "DCTLSA_x4.pt, which Apache-2.0 covers",
            "degraded by": "down:4,noise:10,8bit",
            "trained by": f"benchmarks/evidence.py {RUN}",
        },
    ),
}


def picture(model: nn.Module, base: lowpeft.Backbone, degrade: str) -> Tensor:
    """The middle of an unseen scene of the demo, uint8 (3, H, W): degraded, by the frozen network, by the adapter."""
    assert base.scale is not None
    scene = make_scene(3, split="test", size_px=(192, 384))
    clean = (scene.left, scene.right) if isinstance(model, lowpeft.StereoModel) else (scene.left,)
    given = degradation(degrade).views(clean, base.scale, "release")
    with lowpeft.disabled(model):
        frozen = enhanced(model, given)
    shown = [nn.functional.interpolate(given[0][None], scale_factor=base.scale, mode="nearest")[0]]
    shown = [each.clamp(0, 1)[:, 16:176, 112:272] for each in (*shown, frozen, enhanced(model, given))]
    return (torch.cat(shown, dim=-1) * 255).round().to(torch.uint8)


def enhanced(model: nn.Module, given: Sequence[Tensor]) -> Tensor:
    found = lowpeft.enhance(model, *given)
    return found if isinstance(found, Tensor) else found[0]


def release(name: str, source: Path, data: Path) -> None:
    row = RELEASED[name]
    weights = ADAPTERS / row.base if (ADAPTERS / row.base).exists() else data / row.base
    with tempfile.TemporaryDirectory() as temporary:
        base, adapter = lowpeft.load_backbone(weights), lowpeft.read_adapter(source)
        if row.test is None:
            results = (of_evidence(),)
        else:
            results = measured(weights, source, data / row.test, row.degrade, Path(temporary) / "measured")
        model = lowpeft.load_adapter(base, source)
        shown = Path(temporary) / "picture.png"
        write_image(picture(model, base, row.degrade), shown)
        about = lowpeft.About(
            summary=row.summary, license="apache-2.0", datasets=row.datasets, results=results, picture=shown
        )
        lowpeft.save_adapter(model, ADAPTERS / name, facts={**adapter.facts, **row.facts}, about=about)


def measured(weights: Path, source: Path, test: Path, degrade: str, out: Path) -> tuple[lowpeft.Result, ...]:
    """What `lowpeft evaluate` measures."""
    command = ["evaluate", "--weights", str(weights), "--adapter", str(source), "--data", str(test), "--out", str(out)]
    if lowpeft_command([*command, "--degrade", degrade, "--bicubic"]):
        raise SystemExit(f"{source} was not measured")
    return lowpeft.results_of(out, test.name)


def of_evidence() -> lowpeft.Result:
    """What `benchmarks/evidence.py` measured of the stereo adapter: means over the 25 test scenes."""
    results = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    cells = results["cells"]
    means = {
        "frozen": cells["noise10/frozen"]["adapted"]["mean"],
        "adapted": cells[RUN]["adapted"]["mean"],
        "adapted, each view given twice": cells[RUN]["same view"]["mean"],
    }
    height, width = results["test_lr_px"]["noise10"]
    return lowpeft.Result(
        data="KITTI 2015 and Middlebury",
        scenes=len(cells[RUN]["adapted"]["scenes"]),
        degraded=f"made by {RELEASED[STEREO].degrade}; the middle {width}x{height} px of the LR views",
        protocol="RGB, mean of both views; the last column: left view, without 4 px at each edge",
        means=means,
    )


def main() -> None:
    parser = options_of(__doc__, data=True)
    parser.add_argument("--stereo", type=Path, help="run that the noisy-stereo adapter is taken from")
    parser.add_argument("names", nargs="*", metavar="NAME", help="adapters; all without")
    options = parser.parse_args()
    for name in options.names or RELEASED:
        source = options.stereo if name == STEREO and options.stereo is not None else ADAPTERS / name
        release(name, source, options.data)


if __name__ == "__main__":
    main()
