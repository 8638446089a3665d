"""What was measured of stereo: the parallax adapter, rigs, pairs, and what the other view gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import evidence_figures
from claims import with_spread

from .base import made_by, measured_table, results_of, table


def parallax_demo() -> str:
    """The demo with seeds: the recipe `parallax`, its control, and the published recipe."""
    results = results_of("demo")
    cells, head = results["cells"], ["recipe", "trained", "frozen", "adapted", "same view", "control", "over it"]

    def row(recipe: str) -> list[str]:
        names = [name for name in cells if re.fullmatch(rf"{recipe}/seed-\d+", name)]
        of = {method: [cells[name]["db"][method] for name in names] for method in ("frozen", "adapted", "same view")}
        pairs = [
            (cells[n]["db"]["adapted"], cells[f"{n}/control"]["db"]["same view"])
            for n in names
            if f"{n}/control" in cells
        ]
        strict = ["–", "–"]
        if pairs:
            strict = [with_spread([control for _, control in pairs]), with_spread([a - c for a, c in pairs], sign="+")]
        figures = [f"{of['frozen'][0]:.3f}", with_spread(of["adapted"]), with_spread(of["same view"])]
        return [f"`{recipe}`", f"{cells[names[0]]['parameters']:,}", *figures, *strict]

    recipes = dict.fromkeys(name.split("/")[0] for name in cells)
    return f"{table(head, map(row, recipes))}\n\n{made_by(results)}"


def parallax_steps() -> str:
    """What runs of the demo of other lengths give."""
    cells = results_of("demo")["cells"]
    found = {int(m[1]): cells[name] for name in cells if (m := re.fullmatch(r"parallax/seed-0/steps-(\d+)", name))}
    found[results_of("demo")["settings"]["steps"]] = cells["parallax/seed-0"]

    def row(steps: int) -> list[str]:
        db = found[steps]["db"]
        return [str(steps), f"{db['adapted']:.3f}", f"{db['same view']:.3f}", f"{db['adapted'] - db['same view']:+.3f}"]

    return table(["steps", "adapted", "same view", "difference"], map(row, sorted(found)))


def parallax_forms() -> str:
    """Forms of the adapter that were tried on the demo."""
    results = results_of("parallax_forms")

    def row(item: tuple[str, Any]) -> list[str]:
        name, cell = item
        adapted, same = cell["adapted_db"], cell["same_view_db"]
        return [name, f"{cell['parameters']:,}", f"{adapted:.3f}", f"{same:.3f}"]

    rows = sorted(results["cells"].items(), key=lambda item: item[1]["adapted_db"])
    head = ["form", "trained", "adapted", "same view"]
    return f"{table(head, map(row, rows))}\n\n{made_by(results)}"


def parallax_rigs() -> str:
    """Rigs that are not ideal."""
    results = results_of("rigs")
    cases = results["db"]

    def cell(db: Any) -> str:
        return f"{db['adapted'] - db['frozen']:+.3f} / {db['adapted'] - db['same view']:+.3f}"

    rigs = list(next(iter(cases.values())))
    rows = [[rig, *(cell(case[rig]) for case in cases.values())] for rig in rigs]
    return f"{table(['rig', *cases], rows)}\n\n{made_by(results)}"


def own_offsets() -> str:
    """Rectified pairs that have a vertical offset of their own."""
    results = results_of("check_pair")
    offsets = {each["scene"]: each["offset_px"] for each in results["untouched"]}
    large = {scene: px for scene, px in offsets.items() if abs(px) > 0.5}
    rest = max(abs(px) for scene, px in offsets.items() if scene not in large)
    named = ", ".join(f"`{scene}` {px:+.2f} px" for scene, px in large.items())
    return (
        f"Of our {len(offsets)} rectified training pairs, {named} have a large offset; the others have up to {rest} px."
    )


def found_in_pairs(figure: str) -> Callable[[], str]:
    """What `check_pair` finds of an added offset or gain."""

    def write() -> str:
        results = results_of("check_pair")
        runs, of_gain = results["runs"], figure == "gain"

        def found(run: Any) -> float:
            value = run["found_gain"] / run["own_gain"] if of_gain else run["found_offset_px"]
            return float(value)

        def row(by: int, noise: int, true: float) -> list[str]:
            those = [r for r in runs if (r["reduced_by"], r["noise"], r[figure]) == (by, noise, true)]
            values = [found(run) for run in those]
            error = max(abs(value - true) for value in values)
            fewest = min(run["points"] for run in those)
            return [size[by], str(noise), f"{true:g}", with_spread(values), f"{error:.3f}", str(fewest)]

        size = {1: "as they are", 4: "reduced by 4"}
        keys = sorted({(run["reduced_by"], run["noise"], run[figure]) for run in runs})
        head = ["views", "noise, of 255", "true", "found", "largest error", "fewest points"]
        return f"{table(head, [row(*key) for key in keys])}\n\n{made_by(results)}"

    return write


def other_view(task: str) -> Callable[[Any], str]:
    """What each way to train gives on real pairs."""

    def section(results: Any) -> str:
        rows = measured_table(evidence_figures.HEAD, evidence_figures.task_rows(results, task))
        steps = evidence_figures.steps_of(results, task)
        return f"{rows}\n\n{steps:,} steps each." if steps else rows

    return section


def kitti(results: Any) -> str:
    """KITTI 2015 x4, beside a published network."""
    return measured_table(evidence_figures.KITTI_HEAD, evidence_figures.kitti_rows(results))
