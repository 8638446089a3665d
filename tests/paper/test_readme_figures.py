"""The figures in the README are those of the committed results files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from claims import with_spread
from evidence_figures import PSNR, gains_by_scene, gains_over_control, seeds_of
from generated.base import results_of

ROOT = Path(__file__).resolve().parents[2]
GB, MB = 1e9, 1e6


def of_the_core() -> Iterator[str]:
    core = results_of("core")
    network, memory = core["hat_l_x4"], core["stereo_memory_bytes_above_features"]
    trained, frozen = network["trained"], network["frozen"]
    yield f"{trained:,} trained and {frozen:,} frozen parameters ({100 * trained / frozen:.2f} %)"
    yield f"| {network['adapt_seconds_median']:.1f} s on two CPU cores"
    yield f"adapter folder {network['adapter_folder_bytes'] / MB:.1f} MB"
    yield f"| {core['import_seconds']['lowpeft_minus_torch']:.2f} s on top of `import torch`"
    ours, whole = (memory[f"{way}, 1080 rows"] / GB for way in ("lowpeft", "one call"))
    yield f"{ours:.2f} GB above the features; one unchunked call takes {whole:.1f} GB"


def of_the_demo() -> Iterator[str]:
    cells = results_of("demo")["cells"]
    seeds = [f"parallax/seed-{seed}" for seed in range(3)]
    adapted, same = ([cells[seed]["db"][method] for seed in seeds] for method in ("adapted", "same view"))
    control = [cells[f"{seed}/control"]["db"]["same view"] for seed in seeds]
    yield f"| {with_spread(adapted)} | {with_spread(same)} | {with_spread(control)} |"
    yield f"the other view gives {fmean(adapted) - fmean(control):.2f} dB"


def of_the_evidence() -> Iterator[str]:
    results = results_of("evidence")
    cells, column = results["cells"], results["columns"].index(PSNR)
    row, frozen = "noise10/parallax", cells["noise10/frozen"]["adapted"]["mean"][PSNR]
    gains = gains_over_control(cells, row)
    yield f"take {with_spread(gains)} dB"
    above = [gain > 0 for gain in gains_by_scene(cells, row, column).values()]
    assert all(above)
    yield f"on each of the {len(above)}"
    adapted = fmean(cell["adapted"]["mean"][PSNR] for cell in seeds_of(cells, row).values())
    yield f"other {adapted - frozen - fmean(gains):.1f} dB of their gain"


def of_the_denoiser() -> Iterator[str]:
    cells = results_of("denoiser")["cells"]
    for task in ("noise-25", "jpeg-30"):
        lora, full = cells[f"base/{task}/lora"], cells[f"base/{task}/full"]
        given = [lora["psnr_db"][method] for method in ("input", "frozen", "adapted")]
        yield " | ".join(f"{figure:.2f}" for figure in (*given, full["psnr_db"]["adapted"]))
        yield f"LoRA, {100 * lora['trained parameters'] / full['trained parameters']:.0f} % of the parameters"


@pytest.mark.parametrize("figures", [of_the_core, of_the_demo, of_the_evidence, of_the_denoiser])
def test_the_readme_has_the_figures_of_the_results(figures: Any) -> None:
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [figure for figure in figures() if figure not in words] == []
