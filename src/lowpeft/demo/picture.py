"""The demo's picture: one scene whole, and a patch of it enlarged, by every method."""

from __future__ import annotations

from pathlib import Path

from ..data import Example
from ..describe import image_facts
from ..evaluate.pictures import draw_scene
from ..images import to_float
from ..inference import enhance
from ..switching import disabled


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
