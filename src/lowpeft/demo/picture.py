"""The demo's picture: one whole scene, and an enlarged patch of it by every method."""

from __future__ import annotations

from pathlib import Path

from ..core.observation.describe import image_facts
from ..core.operations.switching import disabled
from ..restoration.data import Example
from ..restoration.evaluation.pictures import draw_scene
from ..restoration.images import to_float
from ..restoration.inference import enhance


def draw_comparison(model: object, pair: Example, path: Path) -> Path:
    """Draw the left view of a scene: bicubic, frozen, adapted and HR.

    Returns:
        `path`.
    """
    left, right = map(to_float, pair.lr)
    with disabled(model):
        frozen, _ = enhance(model, left, right)
    adapted, _ = enhance(model, left, right)
    return draw_scene(path, pair, {"frozen": frozen, "adapted": adapted}, scale=image_facts(model).scale, errors=False)
