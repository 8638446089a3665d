"""Demonstrations that need no download: stereo scenes made from the photographs that scikit-image ships."""

from __future__ import annotations

from lowpeft.demo.scenes import DemoScene, make_scene, test_scenes, train_scenes, write_scenes

__all__ = ["DemoScene", "make_scene", "test_scenes", "train_scenes", "write_scenes"]
