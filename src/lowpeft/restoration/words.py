"""Words for images, by the scale of a task: LR and HR only where there is a scale."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Words of a task.

    Attributes:
        clean: What the network should return.
        degraded: What it is given.
        baseline: What it is measured against: its input, enlarged where there is a scale.
    """

    clean: str
    degraded: str
    baseline: str


def words(scale: int | None) -> Words:
    """Return the words for a network that enlarges by `scale`; None if that is not known."""
    return Words("clean", "degraded", "input") if scale == 1 else Words("HR", "LR", "bicubic")
