"""The demo's picture: one scene whole, and a patch of it enlarged, by every method."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..data import Example
from ..evaluate.pictures import draw_scene
from ..facts import Backbone
from ..images import to_float
from ..inference import super_resolve
from ..model import disabled


def draw_comparison(model: nn.Module, pair: Example, backbone: Backbone, path: Path) -> Path:
    """Draw the left view of a scene: bicubic, frozen, adapted and HR.

    Returns:
        `path`.
    """
    left, right = map(to_float, pair.lr)
    with disabled(model):
        frozen, _ = super_resolve(model, left, right, backbone=backbone)
    adapted, _ = super_resolve(model, left, right, backbone=backbone)
    return draw_scene(path, pair, {"frozen": frozen, "adapted": adapted}, scale=backbone.scale, errors=False)
