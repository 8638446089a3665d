"""Plots by matplotlib, drawn so that they can be read on a page of any width."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

WIDTH_INCHES, DPI, TEXT_POINTS = 4.4, 150, 8
"""Size of a plot: 660 px wide, with text that can still be read at half of that."""


def plot(draw: Callable[[Figure], None], *, height_inches: float) -> Picture | None:
    """Return a plot as an image for `Pictures`.

    Args:
        draw: Function that draws into an empty figure.
        height_inches: Height of the plot; it is `WIDTH_INCHES` wide.

    Returns:
        The plot; None if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    buffer = io.BytesIO()
    with rc_context({"font.size": TEXT_POINTS}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=DPI)
    with Image.open(buffer) as picture:
        return picture.convert("RGB")
