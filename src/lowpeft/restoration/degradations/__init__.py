"""Degradations: make noisy, blurred, compressed or small images from clean ones.

degradation("blur:1.2,down:4,noise:5..10,jpeg:60") -> Degradation (a value)
Degradation.views(images, scale, key) -> degraded images, the same for the same key
"""

from __future__ import annotations

from .chain import Degradation, Span, degradation
from .practical import PRESETS
from .steps import STEPS

__all__ = ["PRESETS", "STEPS", "Degradation", "Span", "degradation"]
