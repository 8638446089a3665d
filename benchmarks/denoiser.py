"""A small denoiser from scratch, adapted to stronger noise and to JPEG, on the command line: what an adapter gives.

    python benchmarks/denoiser.py --data DATA --runs FOLDER --out benchmarks/results/denoiser.json [CELL …]

Every cell is one `lowpeft train`, as a user types it; the command is in the results. `base` trains a NAFNet (width 16)
on noise of sigma 15. `noise-25/…` and `jpeg-30/…` adapt it, by LoRA and by full fine-tuning for as many steps; `own`
and its followers do the same with the network of `benchmarks/own_network.py`, given by `--network`. Training images are
the 200 of BSDS500's training set; figures are PSNR on Kodak24 (RGB, whole images), which `train --test` measures. A
cell that was interrupted goes on where it stopped. Needs the extras `train` and `spandrel`, and a folder with
`single/BSDS500` and `single/Kodak24`; about two hours on one core.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

import lowpeft
from cells import run_cells
from common import options_of, provenance

NAFNET = (
    "--network spandrel.architectures.NAFNet:NAFNet --network-set width=16 --network-set middle_blk_num=2 "
    "--network-set enc_blk_nums=[2,2,4] --network-set dec_blk_nums=[1,1,1]"
)
OWN = "--network own_network:denoiser"
IMAGES = "--images BSDS500/train --test Kodak24 --crop 64 64 --batch 8 --optimize none"
SCRATCH = "--learning-rate 1e-3 --warmup-steps 100 --ema-decay 0.999"
METHODS = {
    "lora": "lora --set rank=8 --learning-rate 1e-3 --warmup-steps 50",
    "full": "full --learning-rate 2e-4 --warmup-steps 50",
}
TASKS = {"noise-25": "noise:25", "jpeg-30": "jpeg:30"}


def commands(steps: int) -> dict[str, str]:
    """The command of every cell, without `--out`; `steps` are those of an adaptation, a quarter of those of a base."""
    found = {}
    for base, network in {"base": NAFNET, "own": OWN}.items():
        found[base] = f"scratch {network} {IMAGES} --degrade noise:15 --steps {4 * steps} {SCRATCH}"
        weights = f"--weights {base}/network.safetensors" + f" {OWN}" * (base == "own")
        for name, steps_of in TASKS.items():
            for method, settings in METHODS.items():
                found[f"{base}/{name}/{method}"] = f"{settings} {weights} {IMAGES} --degrade {steps_of} --steps {steps}"
    return found


def run_cell(runs: Path, data: Path, cell: str, command: str) -> dict[str, object]:
    """Run the command in the folder of the runs, and return the figures that the result carries."""
    runs.mkdir(parents=True, exist_ok=True)
    for name in ("BSDS500", "Kodak24"):
        if not (link := runs / name).exists():
            link.symlink_to((data / "single" / name).resolve(), target_is_directory=True)
    folder = cell.replace("/", "-")
    if not figures_of(runs / folder):
        train(runs, command, folder)
    facts = facts_of(runs / folder)
    kept = {name: facts[name] for name in ("training", "trained parameters")}
    return {"command": f"lowpeft train {command} --out {folder}", **kept, "psnr_db": figures_of(runs / folder)}


def train(runs: Path, command: str, folder: str) -> None:
    """Run the command; a run that was interrupted goes on."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-m", "lowpeft", "train", *shlex.split(command), "--out", folder, "--resume"],
        cwd=runs,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
    )


def figures_of(folder: Path) -> dict[str, object]:
    """The measured PSNR in dB by method; empty for a run that is not finished."""
    return {key.rsplit(", ", 1)[-1]: v for key, v in facts_of(folder).items() if key.startswith("PSNR in dB")}


def facts_of(folder: Path) -> Mapping[str, object]:
    """The facts that a run saved with its adapter or network."""
    if (folder / "adapter_model.safetensors").exists():
        return lowpeft.read_adapter(folder).facts
    if not (folder / "network.safetensors").exists():
        return {}
    with safe_open(folder / "network.safetensors", framework="pt") as file:
        return {key: float(v) if key.startswith("PSNR") else v for key, v in file.metadata().items()}


def main() -> None:
    parser = options_of(__doc__, data=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=1500, help="of an adaptation (default: %(default)s)")
    parser.add_argument("cells", nargs="*", metavar="CELL")
    options = parser.parse_args()
    known = commands(options.steps)
    cells: Sequence[str] = options.cells or list(known)
    head = provenance("python benchmarks/denoiser.py --data DATA --runs FOLDER", "spandrel", "pillow")
    run_cells(options.out, head, cells, lambda cell: run_cell(options.runs, options.data, cell, known[cell]))


if __name__ == "__main__":
    main()
