"""Tables and plots of what `benchmarks/evidence.py` measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cells import DIVERGED
from claims import with_spread
from common import save_figure
from lowpeft.restoration.evaluation.difference import interval

BASELINES = ("bicubic", "frozen")
PSNR, SSIM, SHAVED = "PSNR (L+R)/2", "SSIM (L+R)/2", "PSNR left, shaved"
HEAD = (
    "row",
    "trained",
    "rate",
    "seeds",
    "PSNR, dB",
    "SSIM",
    "over frozen",
    "over the same view",
    "over the control",
    "over the control, KITTI",
    "over the control, Middlebury",
    "gain over the control / deviation",
)
KITTI_HEAD = ("network", "PSNR, dB", "over frozen")
KITTI = "kitti"
"""Beginning of the names of the pairs of KITTI 2015; the others are Middlebury's."""
PUBLISHED = {"CVHSSR-T, trained from scratch on Flickr1024, 0.68 M parameters": 26.08}
"""PSNR in dB of published stereo networks in the test of `kitti_rows`, as it came with the data: no command here
measures it."""

Cells = Mapping[str, Any]


def held_out_by_rate(cells: Cells, row: str) -> dict[float, float]:
    """PSNR in dB on the held-out pairs by learning rate, after the short runs of a row TASK/ROW or TASK/ROW/control."""
    prefix = f"{row}/short/"
    return {float(k.removeprefix(prefix)): cell["held_out_db"] for k, cell in cells.items() if k.startswith(prefix)}


def chosen_rate(cells: Cells, row: str) -> float | None:
    """Learning rate of a row TASK/ROW or TASK/ROW/control; None before its first whole run.

    That of the run of the first seed that is best on the held-out pairs.
    """
    found = _by_rate_and_seed(cells, row)
    first = min((seed for _, seed in found), default=None)
    held_out = {rate: cell["held_out_db"] for (rate, seed), cell in found.items() if seed == first}
    return max(held_out, key=held_out.__getitem__, default=None)


def seeds_of(cells: Cells, row: str, *, control: bool = False) -> dict[int, Any]:
    """Cells of a row TASK/ROW at its learning rate by seed; of its control on demand; without those that diverged."""
    row = f"{row}/control" if control else row
    rate, found = chosen_rate(cells, row), _by_rate_and_seed(cells, row)
    return {seed: cell for (at, seed), cell in sorted(found.items()) if at == rate and DIVERGED not in cell}


def _by_rate_and_seed(cells: Cells, row: str) -> dict[tuple[float, int], Any]:
    pattern = re.compile(rf"{re.escape(row)}/([^/]+)/seed-(\d+)")
    return {(float(m[1]), int(m[2])): cell for name, cell in cells.items() if (m := pattern.fullmatch(name))}


def rows_of(cells: Cells, task: str) -> list[str]:
    """Names of the rows of a task that were trained, best first."""
    names = dict.fromkeys(name.split("/")[1] for name in cells if name.startswith(f"{task}/") and "/seed-" in name)

    def psnr(name: str) -> float:
        return fmean(cell["adapted"]["mean"][PSNR] for cell in seeds_of(cells, f"{task}/{name}").values())

    return sorted((name for name in names if seeds_of(cells, f"{task}/{name}")), key=lambda name: -psnr(name))


def gains_over_control(cells: Cells, row: str, column: str = PSNR) -> list[float]:
    """Gain in dB of a row TASK/ROW over its control, by seed; empty where it has none."""
    ours, controls = seeds_of(cells, row), seeds_of(cells, row, control=True)
    both = [seed for seed in ours if seed in controls]
    return [ours[s]["adapted"]["mean"][column] - controls[s]["same view"]["mean"][column] for s in both]


def task_rows(results: Mapping[str, Any], task: str) -> list[list[str]]:
    """One row for each way to train, with means and standard deviations over seeds; bicubic and the network first.

    Empty as long as these two were not measured.
    """
    cells = results["cells"]
    if not all(f"{task}/{name}" in cells for name in BASELINES):
        return []
    frozen = cells[f"{task}/frozen"]["adapted"]["mean"][PSNR]
    lines = []
    for name in BASELINES:
        mean = cells[f"{task}/{name}"]["adapted"]["mean"]
        figures = [f"{mean[PSNR]:.3f}", f"{mean[SSIM]:.4f}", f"{mean[PSNR] - frozen:+.3f}"]
        lines.append([name, *"–––", *figures, *"–––––"])
    for name in rows_of(cells, task):
        seeds = list(seeds_of(cells, f"{task}/{name}").values())
        adapted = [cell["adapted"]["mean"] for cell in seeds]
        pairs = [cell for cell in seeds if "same view" in cell]
        over_same = [cell["adapted"]["mean"][PSNR] - cell["same view"]["mean"][PSNR] for cell in pairs]
        gains = gains_over_control(cells, f"{task}/{name}")
        by_scene = gains_by_scene(cells, f"{task}/{name}", results["columns"].index(PSNR))
        lines.append(
            [
                f"`{name}`",
                f"{seeds[0]['trained']:,}",
                _rates(cells, f"{task}/{name}"),
                str(len(seeds)),
                with_spread([mean[PSNR] for mean in adapted]),
                with_spread([mean[SSIM] for mean in adapted], digits=4),
                with_spread([mean[PSNR] - frozen for mean in adapted], sign="+"),
                with_spread(over_same, sign="+") if over_same else "–",
                _over_seeds(gains),
                _on_pairs([gain for scene, gain in by_scene.items() if scene.startswith(KITTI)]),
                _on_pairs([gain for scene, gain in by_scene.items() if not scene.startswith(KITTI)]),
                f"{fmean(gains) / stdev(gains):.1f}" if len({*gains}) > 2 else "–",
            ]
        )
    return lines


def _rates(cells: Cells, row: str) -> str:
    """The learning rate of a row, and that of its control if it is another one."""
    own, control = chosen_rate(cells, row), chosen_rate(cells, f"{row}/control")
    return f"{own:g}" if control in (None, own) else f"{own:g}; control {control:g}"


def _over_seeds(gains: Sequence[float]) -> str:
    """Mean gain in dB, its standard deviation, and its 95 % interval over the seeds."""
    if not gains:
        return "–"
    between = _between(gains)
    return with_spread(gains, sign="+") + (f" ({between})" if between else "")


def _on_pairs(gains: Sequence[float]) -> str:
    """Mean gain in dB over pairs, its 95 % interval over them, and on how many of them it is above 0."""
    if not gains:
        return "–"
    between = _between(gains)
    counted = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
    return f"{fmean(gains):+.3f} ({between}; {counted})" if between else f"{fmean(gains):+.3f} ({counted})"


def _between(gains: Sequence[float]) -> str:
    """The 95 % interval of the mean of gains in dB, by Student's t; empty for a single one."""
    limits = interval(gains)
    return "" if limits is None else f"{limits[0]:+.3f} to {limits[1]:+.3f}"


def kitti_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The 20 pairs of KITTI 2015, left view, x4: published networks, bicubic, the frozen network, and the rows."""
    column, cells = results["columns"].index(SHAVED), results["cells"]
    baselines = [cells.get(f"clean/{name}") for name in BASELINES]
    if not all(cell and any(scene.startswith(KITTI) for scene in cell["adapted"]["scenes"]) for cell in baselines):
        return []

    def mean(cell: Any) -> float:
        scenes = cell["adapted"]["scenes"]
        return fmean(values[column] for scene, values in scenes.items() if scene.startswith(KITTI))

    frozen = mean(cells["clean/frozen"])
    lines = [[name, [db]] for name, db in PUBLISHED.items()]
    lines += [[name, [mean(cells[f"clean/{name}"])]] for name in BASELINES]
    for name in rows_of(cells, "clean"):
        lines.append([f"`{name}`", [mean(cell) for cell in seeds_of(cells, f"clean/{name}").values()]])
    lines.sort(key=lambda line: fmean(line[1]))
    return [[name, with_spread(dbs), f"{fmean(dbs) - frozen:+.3f}"] for name, dbs in lines]


def steps_of(results: Mapping[str, Any], task: str) -> int:
    """Number of steps of the task's cells; 0 before the first."""
    cells = results["cells"]
    rows = rows_of(cells, task)
    return max((cell["steps"] for row in rows for cell in seeds_of(cells, f"{task}/{row}").values()), default=0)


def draw(results: Mapping[str, Any], out: Path) -> None:
    """Draw gains over steps on the held-out pairs, and in every test scene, into a PNG file.

    Those in test scenes are over the control; of a task without one over the frozen network.
    """
    from matplotlib.figure import Figure

    cells = results["cells"]
    tasks = [task for task in results["tasks"] if rows_of(cells, task) and f"{task}/frozen" in cells]
    if not tasks:
        raise SystemExit("nothing to draw yet")
    figure = Figure(figsize=(6 * len(tasks), 8), layout="constrained")
    curves, scenes = figure.subplots(2, len(tasks), squeeze=False)
    for axes, task in zip(curves, tasks, strict=True):
        _draw_curves(axes, cells, task)
    for axes, task in zip(scenes, tasks, strict=True):
        _draw_scenes(axes, cells, task, results["columns"].index(PSNR))
    save_figure(figure, out)


def _draw_curves(axes: Any, cells: Cells, task: str) -> None:
    frozen = cells[f"{task}/frozen"]["held_out_db"]
    for number, name in enumerate(rows_of(cells, task)):
        for control in (False, True):
            first = next(iter(seeds_of(cells, f"{task}/{name}", control=control).values()), {})
            if not (curve := first.get("held_out_curve")):
                continue
            steps, gains = [int(step) for step in curve], [db - frozen for db in curve.values()]
            style = {"color": f"C{number}", "linestyle": "--" if control else "-", "marker": ".", "linewidth": 1}
            axes.plot([0, *steps], [0, *gains], **style, label=f"{name}, control" if control else name)
    axes.set(title=task, xlabel="steps", ylabel="dB over the frozen network, 8 held-out pairs")
    axes.grid(color="0.92")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_scenes(axes: Any, cells: Cells, task: str, column: int) -> None:
    rows = rows_of(cells, task)
    over, gains = "control", {name: gains_by_scene(cells, f"{task}/{name}", column) for name in rows}
    if not any(gains.values()):
        over, gains = "frozen network", {name: _gains_over_frozen(cells, task, name, column) for name in rows}
    gains = {name: by_scene for name, by_scene in gains.items() if by_scene}
    first: dict[str, float] = next(iter(gains.values()), {})
    scenes = sorted(first, key=first.__getitem__)
    for name, by_scene in gains.items():
        color = f"C{rows.index(name)}"  # as in the curves
        axes.plot([by_scene[scene] for scene in scenes], range(len(scenes)), "o", color=color, markersize=3, label=name)
    axes.set_yticks(range(len(scenes)), labels=scenes, fontsize=5)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set(title=task, xlabel=f"dB over the {over}, mean of the seeds, test pairs")
    axes.grid(color="0.92")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _gains_over_frozen(cells: Cells, task: str, row: str, column: int) -> dict[str, float]:
    frozen = cells[f"{task}/frozen"]["adapted"]["scenes"]
    ours = [cell["adapted"]["scenes"] for cell in seeds_of(cells, f"{task}/{row}").values()]
    return {scene: fmean(scenes[scene][column] for scenes in ours) - frozen[scene][column] for scene in frozen}


def gains_by_scene(cells: Cells, row: str, column: int) -> dict[str, float]:
    """Gain of a row TASK/ROW over its control by test scene, mean of the seeds; empty where it has none."""
    ours, controls = seeds_of(cells, row), seeds_of(cells, row, control=True)
    pairs = [
        (ours[seed]["adapted"]["scenes"], controls[seed]["same view"]["scenes"]) for seed in ours if seed in controls
    ]
    scenes = pairs[0][0] if pairs else ()
    return {scene: fmean(our[scene][column] - control[scene][column] for our, control in pairs) for scene in scenes}
