"""Validation during training: one figure for a network on whole scenes, and its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

from ...core.observation.describe import image_facts
from ...errors import DataError
from ..data import Example
from ..evaluation import by_network, by_network_alone, measure
from ..images import eight_bit, write_image
from ..metrics import WHOLE_RGB
from .events import Callback, Measured

SIDES = ("L", "R")
MOST_DB = 100.0
"""PSNR of a scene counts as no more: that of a black image can be infinite."""


def validation(examples: Sequence[Example], *, each_view_twice: bool = False) -> Callable[[object], float]:
    """Make a `validate` function for `train`: mean PSNR in dB over scenes, by `metrics.WHOLE_RGB`.

    A scene whose images equal the clean ones counts as 100 dB.

    Args:
        examples: At least one scene, of one view or two, that the network is not trained on.
        each_view_twice: True to pair each view with itself, for a control that is trained so (`data.EachViewTwice`).

    Raises:
        DataError: There are no scenes. The function itself raises it if the network cannot be run on a scene.
    """
    if not examples:
        raise DataError("there are no scenes to validate on")

    def validate(model: object) -> float:
        scale = image_facts(model).scale
        enhance = by_network_alone(model) if each_view_twice else by_network(model)
        report = measure(enhance, examples, scale=scale, protocol=WHOLE_RGB)
        return fmean(min(row.values[0], MOST_DB) for row in report.rows)

    return validate


class ValidationImages(Callback):
    """Write the results on a few validation scenes after every measurement, and give them to the trackers.

    The files are `OUT/validation/step-00000500/SCENE.png` (of pairs `SCENE_L.png` and `SCENE_R.png`).

    Attributes:
        examples: The scenes to show, e.g. the first three.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def on_measured(self, measured: Measured) -> None:
        enhance = by_network(measured.model)
        images: dict[str, Tensor] = {}
        for example in self.examples:
            views = [eight_bit(view.squeeze(0) if view.ndim == 4 else view) for view in enhance(example)]
            names = [""] if len(views) == 1 else [f"_{side}" for side in SIDES[: len(views)]]
            images |= {f"{example.name}{side}": view.cpu() for side, view in zip(names, views, strict=True)}
        if measured.out is not None:
            folder = measured.out / "validation" / f"step-{measured.step:08d}"
            for name, image in images.items():
                path = folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(image, path)
        measured.show(images)
