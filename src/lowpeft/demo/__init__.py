"""Demonstrations without a download: a small pre-trained network, and stereo scenes from scikit-image's photographs."""

from __future__ import annotations

from .network import demo_backbone
from .scenes import DemoScene, held_out_scenes, make_scene, train_scenes, write_scenes

__all__ = ["DemoScene", "demo_backbone", "held_out_scenes", "make_scene", "train_scenes", "write_scenes"]
