"""Plot of what methods gain over another one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..pages import plot
from .difference import Difference, Gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

SPREAD = 0.22
"""How far the dots of scenes lie beside the line of their method, of the distance of two lines."""


def plot_gains(gains: Sequence[Gain]) -> Picture | None:
    """Plot the gains in the first column of the protocol: a line for each method, with its mean, interval and scenes.

    Args:
        gains: One or more gains over the same method.

    Returns:
        The plot; None if no gain is finite or matplotlib is not installed.
    """
    firsts = [gain.columns[0] for gain in gains]
    if not any(math.isfinite(value) for each in firsts for value in each.gains.values()):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color="0.4", linewidth=0.8)
        for line, each in enumerate(firsts):
            _draw_line(axes, line, each)
        axes.set_yticks(range(len(gains)), labels=[gain.method for gain in gains], parse_math=False)
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        column = firsts[0].column
        better = "left is better" if column.lower_is_better else "right is better"
        axes.set_xlabel(f"{column.name} over {gains[0].over} ({better})", parse_math=False)

    return plot(draw, height_inches=0.9 + 0.5 * len(gains))


def _draw_line(axes: Axes, line: int, difference: Difference) -> None:
    """Draw the dots of the scenes, and the mean with its interval."""
    values = [value for value in difference.gains.values() if math.isfinite(value)]
    generator = random.Random(0)
    beside = [line + generator.uniform(-SPREAD, SPREAD) for _ in values]
    axes.scatter(values, beside, s=9, color="tab:blue", alpha=max(0.2, 0.7 - len(values) / 1000), linewidths=0)
    if difference.interval is not None:
        axes.plot(difference.interval, [line, line], color="tab:red", linewidth=2, solid_capstyle="butt")
    if math.isfinite(difference.mean):
        axes.plot([difference.mean], [line], marker="D", markersize=5, color="tab:red")
