"""One line that says which images a command reads, and from where."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..words import words
from .model import Scene


def reading(scenes: Sequence[Scene], scale: int, *, what: str = "", made: str | None = None) -> str:
    """Return how many scenes there are, from which folder and layout, and where their LR images come from.

    E.g. `training: 42 pairs from pairs/train (layout pairs); LR made by MATLAB's bicubic x4`, or at scale 1
    `800 images from set/GT (layout folders); degraded images read from set/LQ`.

    Args:
        scenes: Scenes, one or more.
        scale: SR factor; 1 calls the images degraded and clean instead of LR and HR.
        what: What the scenes are for; the line begins with it.
        made: How missing LR images are made, e.g. `made by noise:25`; None is MATLAB's bicubic, and at scale 1 none.
    """
    count, clean, views = (
        len(scenes),
        Counter(scene.hr for scene in scenes if scene.lr),
        {len(scene.hr) for scene in scenes},
    )
    noun = "scene" if len(views) > 1 else "image" if views == {1} else "pair"
    layouts = sorted({scene.layout for scene in scenes if scene.layout})
    degraded = words(scale).degraded + (" images" if scale == 1 else "")
    if made is None:
        made = f"made by MATLAB's bicubic x{scale}" if scale > 1 else "neither read nor made"
    files = [scene.lr for scene in scenes if scene.lr]
    parts = [f"{degraded} read from {_common(files)}"] if files else []
    if clean and max(clean.values()) > 1:
        least, most = min(clean.values()), max(clean.values())
        each = f"{least}" if least == most else f"{least} to {most}"
        parts = [f"{parts[0]}, {each} of each of {len(clean):,} {words(scale).clean} images"]
    if len(files) < count:
        parts.append(f"{degraded} {made}" if not files else f"of {count - len(files)} {made}")
    return (
        (f"{what}: " if what else "")
        + f"{count:,} {noun}{'s' * (count != 1)} from {_common(scene.hr for scene in scenes)}"
        + (f" (layout{'s' * (len(layouts) > 1)} {', '.join(layouts)})" if layouts else "")
        + f"; {', '.join(parts)}"
    )


def _common(views: Iterable[Collection[Path]]) -> str:
    """Return the deepest folder that contains all files."""
    return os.path.commonpath({path.parent for files in views for path in files}) or "."
