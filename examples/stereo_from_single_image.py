"""A frozen single-image network becomes a stereo network, is trained, measured, saved and loaded: all from Python.

    pip install -e '.[demo]'
    python examples/stereo_from_single_image.py

Needs no download: the network is the small HAT x2 that comes with lowpeft, the pairs are made here. For your own
network and pairs, replace `demo_backbone()` by `lowpeft.load_backbone(path)` and the folders by yours. A minute on two
cores; so few steps show how it is done, and gain nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import lowpeft
from lowpeft.demo import demo_backbone, write_scenes
from lowpeft.restoration.data import Crops, find_scenes, load_example
from lowpeft.restoration.evaluation import evaluate
from lowpeft.restoration.training import build_model, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs, test, out = (Path(folder) / name for name in ("pairs", "test", "adapter"))
        write_scenes(pairs, range(4))
        write_scenes(test, range(1), split="test")

        backbone = demo_backbone()
        recipe = lowpeft.load_recipe("parallax")
        size = {"batch": 2, "crop_height_px": 48, "crop_width_px": 160, "calibration": 8}
        settings = replace(recipe.training, steps=options.steps, **size)
        print(lowpeft.plan(backbone, recipe))

        model = build_model(backbone, replace(recipe, training=settings))
        crops = Crops(find_scenes(pairs), backbone.scale, crop_px=(48, 160), seed=settings.seed)
        done = train(model, crops, settings, out=out)
        print(f"{done.parameters:,} parameters trained in {done.steps} steps\n{lowpeft.summary(model)}")

        examples = [load_example(scene, backbone.scale) for scene in find_scenes(test)]
        adapted = evaluate(model, examples)
        with lowpeft.disabled(model):
            frozen = evaluate(model, examples)
        print(f"frozen\n{frozen}\n\nadapted\n{adapted}")

        loaded = lowpeft.load_adapter(demo_backbone(), out)
        assert evaluate(loaded, examples).means() == adapted.means()


if __name__ == "__main__":
    main()
