"""Settings for running a network on parts of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ... import checks
from ...errors import DataError

CHUNK = 8
"""Number of crops of each view that go through a network of fixed input size at once."""

WINDOW_ROWS = 48
"""Common multiple of the window heights in use (4, 6, 8, 12, 16, 24, 48). Networks that pad their own input, e.g.
SwinIR and HAT, do not state their window height."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Settings for cutting images, in LR px; the default leaves them whole.

    Attributes:
        strip_px: Number of rows of a strip; None for no limit.
        memory_mb: Memory limit in MB (10⁶ bytes) above what the process, or the GPU, already uses; on the CPU it
            includes the results. The number of rows (or crops) at once is chosen to fit.
        context_px: Number of extra input rows above and below a strip. `reach_px` returns the number that makes strips
            exact.
        align_px: Strips begin at multiples of this; strips and context are rounded up to it. None for the smallest
            multiple of the network's `size_multiple` that suits windows of 48, 24, 16, 12, 8, 6 or 4 rows.
        chunk: Number of crops of each view that go through a network of fixed input size at once; `memory_mb`
            overrides it.
    """

    strip_px: int | None = None
    memory_mb: float | None = None
    context_px: int = 48
    align_px: int | None = None
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            DataError: A setting is out of range, or two contradict each other; all problems are listed.
        """
        problems = [] if self.memory_mb is None else checks.number("memory_mb", self.memory_mb, least=0)
        for name, least in {"strip_px": 1, "context_px": 0, "align_px": 1, "chunk": 1}.items():
            value = getattr(self, name)
            problems += [] if value is None else checks.whole(name, value, least=least)
        if self.strip_px is not None and self.memory_mb is not None:
            problems.append("strip_px and memory_mb both set the height of strips: give one of them")
        if problems:
            raise DataError("the settings of the tiling do not work:", problems=problems)

    def aligned_to(self, size_multiple: int) -> int:
        """Return `align_px`, or by default the least common multiple of `size_multiple` and `WINDOW_ROWS`.

        Raises:
            DataError: `align_px` is not a multiple of `size_multiple`.
        """
        align = self.align_px or math.lcm(WINDOW_ROWS, size_multiple)
        if align % size_multiple:
            raise DataError(f"align_px={align} must be a multiple of {size_multiple}, the size multiple of the network")
        return align
