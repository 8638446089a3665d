"""The paper's tables beside ours, and the anchors of the metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from claims import directions, with_spread

from .base import made_by, need, results_of, table


def anchors() -> str:
    """Plain bicubic beside the printed figures."""
    results = results_of("bicubic_anchors")
    other = "SSIM of unrounded bicubic, population covariance"

    def psnr_ssim(row: Any, name: str) -> str:
        return f"{row[f'PSNR {name}']:.2f} / {row[f'SSIM {name}']:.4f}"

    def row(each: Any) -> list[str]:
        sources = (each["printed"], each["literature"], each["asteisr"])
        cells = [psnr_ssim(s, "Left") for s in sources] + [psnr_ssim(s, "(L+R)/2") for s in sources[:2]]
        both = f"{each[other]['SSIM Left']:.4f}, {each[other]['SSIM (L+R)/2']:.4f}"
        return [f"{each['set']} x{each['scale']}", each["lr"], *cells, both]

    header = ["set", "LR files", "Left: printed", "`literature`", "`asteisr`", "(L+R)/2: printed", "measured"]
    rows = table(
        [*header, "SSIM of unrounded bicubic, population covariance: Left, (L+R)/2"], map(row, results["rows"])
    )
    return f"{rows}\n\nPrinted in: {results['printed_in']}. {made_by(results)}"


def ablation(name: str) -> Callable[[], str]:
    """An ablation at a small scale: a table for each test set."""

    def write() -> str:
        results = results_of(name)
        psnr, ssim = "PSNR (L+R)/2", "SSIM (L+R)/2"
        keys = ("over_frozen_db", "from_other_view_db")
        sections = []
        for test_set, gains in results["gains"].items():

            def row(each: Any, test_set: str = test_set, gains: Any = gains) -> list[str]:
                outcomes, gain = each["outcomes"], gains.get(each["row"], {})
                figures = [outcome["figures"][test_set] for outcome in outcomes]
                cells = [each["row"], f"{outcomes[0]['trained']:,}", str(len(outcomes)) if gain else "–"]
                cells += [with_spread([f[psnr] for f in figures]), with_spread([f[ssim] for f in figures], digits=4)]
                return cells + [with_spread(gain[key], sign="+") if key in gain else "–" for key in keys]

            head = ["row", "trained", "seeds", psnr, ssim, "over frozen, dB", "from the other view, dB"]
            sections.append(f"**{test_set}**\n\n{table(head, map(row, results['rows']))}")
        return "\n\n".join([*sections, f"{results['spread'].capitalize()} behind ±. {made_by(results)}"])

    return write


def findings(name: str) -> Callable[[], str]:
    """The paper's findings of an ablation, and whether ours agree."""

    def write() -> str:
        results = results_of(name)
        found = directions(name, need("lowpeft.paper.experiments", "load_experiment")(name), results)

        def row(each: Any) -> list[str]:
            paper = "–" if each["paper_db"] is None else f"{each['paper_db']:+.2f}"
            ours = [f"{with_spread(o['db'], sign='+', digits=4)}: {o['verdict']}" for o in each["sets"].values()]
            return [each["says"], paper, *ours]

        return table(["the paper finds", "its figures, dB", *results["gains"]], map(row, found))

    return write


def beside_paper() -> str:
    """The paper's ways to train beside the small matrix: gains over frozen, and shares of the cost of `full`."""
    experiment, results = need("lowpeft.paper.experiments", "load_experiment")("finetuning"), results_of("finetuning")
    rows = {row.name: row for row in experiment.rows}
    full = rows["full"].paper.adapted
    (printed_on,) = experiment.test_sets

    def row(name: str) -> list[str]:
        ours, paper = rows[name], rows[name].paper
        scores = [line.on(printed_on).mean for line in (paper.adapted, paper.frozen)]
        gains = [f"{scores[0].db - scores[1].db:+.2f}", f"{scores[0].ssim - scores[1].ssim:+.4f}"]
        cost = [f"{getattr(paper.adapted, key) / getattr(full, key):.2f}" for key in ("hours", "memory_gb")]
        measured = [with_spread(gains[name]["over_frozen_db"], sign="+") for gains in results["gains"].values()]
        return [f"`{ours.name}`", *gains, *cost, *measured, f"{results['cost'][name]['of_full']:.2f}"]

    head = [
        "row",
        f"paper: over frozen, dB, {printed_on}",
        "SSIM over frozen",
        "hours, of full",
        "memory, of full",
        *(f"here: over frozen, dB, {name}" for name in results["gains"]),
        "time per step, of full",
    ]
    return f"{table(head, map(row, rows))}\n\n{experiment.source}: HAT-L x4. Here: DCTLSA x4. {made_by(results)}"


def speed() -> str:
    """Time and memory of a forward over the number of stereo adapters."""
    results = results_of("speed")

    def row(each: Any) -> list[str]:
        times = [f"{each[key]['median']:.3f} ± {each[key]['spread']:.3f}" for key in ("seconds", "time_ratio")]
        memory = [f"{each['peak_mb']:.0f}", f"{each['peak_ratio']:.3f}"]
        return [f"`{each['row']}`", f"{each['trained']:,}", *times, *memory]

    of = f"of row `{results['ratios_to']}`"
    height, width = results["size_px"]
    about = (
        f"{results['network']}; two views of {height}x{width} LR px; median ± deviation of {results['rounds']} rounds."
    )
    rows = table(["row", "trained", "seconds", of, "peak, MB", of], map(row, results["rows"]))
    return f"{rows}\n\n{about} {made_by(results)}"


def training_cost() -> str:
    """Time and memory of the small fine-tuning matrix."""
    results = results_of("finetuning")

    def row(each: Any) -> list[str]:
        cost, peak = results["cost"][each["row"]], max(o["peak_mb"] for o in each["outcomes"])
        times = [f"{cost['seconds_per_step']:.2f}", f"{cost['of_full']:.2f}"]
        return [each["row"], f"{each['outcomes'][0]['trained']:,}", *times, f"{peak:.0f}"]

    head = ["row", "trained", "seconds per step", "of full", "peak of the process, MB"]
    return table(head, map(row, results["rows"][1:]))


def stereo_start() -> str:
    """Random and sharp starts of stereo adapters."""
    results = results_of("stereo_start")

    def row(start: str) -> list[str]:
        runs = [run for run in results["runs"] if run["start"] == start]

        def peak(when: str) -> str:
            return with_spread([a["peak_over_even"] for run in runs for a in run[f"attention_{when}"]], digits=1)

        gains = [with_spread([run[key] for run in runs], sign="+") for key in ("over_frozen_db", "from_other_view_db")]
        return [start, peak("before"), peak("after"), *gains]

    head = ["start", "peak before", "peak after", "over frozen, dB", "from the other view, dB"]
    return f"{table(head, map(row, ('random', 'sharp')))}\n\n{made_by(results)}"
