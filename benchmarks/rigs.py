"""What parallax adapters give on rigs that are not ideal: vertical offset, gain, occlusion, a view of something else.

    python benchmarks/rigs.py --data DATA --adapters runs/evidence --out benchmarks/results/rigs.json

The right view is changed before its LR view is made, and measured against what it shows then. Cases: the adapter that
`lowpeft demo` ships on its four unseen scenes, and the adapters of `benchmarks/evidence.py` (noise10, clean; seed 0)
on its eight held-out scenes. Offsets are in px of the HR views: the demo is x2, the others x4. No adapter has seen such
a rig in training. Needs the extra `train` and a folder with `stereo/train` and `weights`; ten minutes on one core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import lowpeft
from cells import cells_of
from check_pair import moved_up
from common import middle, options_of, provenance, write
from evidence_figures import chosen_rate
from hundred_steps import noisy
from lowpeft.demo import demo_backbone
from lowpeft.demo.run import ADAPTER
from lowpeft.demo.task import NOISE, unseen_scenes
from lowpeft.restoration.data import Example, find_scenes, load_example
from lowpeft.restoration.evaluation import compare
from lowpeft.restoration.images import matlab_downscale
from stereo_start import HELD_OUT, LR_CROP_PX, WEIGHTS

EVIDENCE = Path(__file__).resolve().parent / "results" / "evidence.json"


def gained(view: Tensor, gain: float) -> Tensor:
    return (view.float() * gain).round().clamp(0, 255).to(torch.uint8)


def covered(view: Tensor) -> Tensor:
    """A view with a grey bar over its middle third."""
    width = view.shape[-1]
    view = view.clone()
    view[..., width // 3 : 2 * width // 3] = 128
    return view


RIGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda right: right,
    "offset 0.5 px": lambda right: moved_up(right, 0.5),
    "offset 1 px": lambda right: moved_up(right, 1.0),
    "offset 2 px": lambda right: moved_up(right, 2.0),
    "gain 0.9": lambda right: gained(right, 0.9),
    "gain 1.1": lambda right: gained(right, 1.1),
    "a third covered": covered,
    "upside down": lambda right: right.flip(-2),
}


def on_rigs(model: object, tests: list[Example], scale: int, noise: float) -> dict[str, dict[str, float]]:
    """PSNR in dB by rig and method."""
    results = {}
    for name, change in RIGS.items():
        examples = []
        for test in tests:
            hr = (test.hr[0], change(test.hr[1]))
            lr = tuple(matlab_downscale(view, scale) for view in hr)
            if noise:
                lr = tuple(noisy(view, noise, f"{test.name} {i}") for i, view in enumerate(lr))
            examples.append(replace(test, hr=hr, lr=lr))
        means = compare(model, examples).means_db()
        results[name] = {method: round(means[method], 4) for method in ("frozen", "adapted", "same view")}
        print(name, results[name], flush=True)
    return results


def main() -> None:
    parser = options_of(__doc__, data=True)
    parser.add_argument("--adapters", type=Path, required=True, help="folder that evidence.py wrote adapters to")
    options = parser.parse_args()
    tasks = {"noise10": ("real x4, noise 10", 10 / 255), "clean": ("real x4, clean", 0.0)}
    rates = {task: chosen_rate(cells_of(EVIDENCE), f"{task}/parallax") for task in tasks}
    adapters = {task: options.adapters / f"{task}-parallax-{rate}-seed-0" for task, rate in rates.items()}
    if missing := [str(folder) for folder in adapters.values() if not folder.is_dir()]:
        parser.error(f"evidence.py has not trained {', '.join(missing)} yet")
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        tests = [load_example(scene, 2) for scene in unseen_scenes(Path(folder), 2)]
    cases["demo x2, noise 10"] = on_rigs(lowpeft.load_adapter(demo_backbone(), ADAPTER), tests, 2, NOISE)
    scenes = [s for s in find_scenes(options.data / "stereo" / "train", scale=4) if s.name in HELD_OUT]
    for task, (title, noise) in tasks.items():
        base = lowpeft.load_backbone(options.data / "weights" / WEIGHTS)
        model = lowpeft.load_adapter(base, adapters[task])
        cases[title] = on_rigs(model, [middle(load_example(scene, 4), LR_CROP_PX) for scene in scenes], 4, noise)
    command = "python benchmarks/rigs.py --data DATA --adapters runs/evidence"
    write({**provenance(command, "spandrel", "scikit-image"), "db": cases}, options.out)


if __name__ == "__main__":
    main()
