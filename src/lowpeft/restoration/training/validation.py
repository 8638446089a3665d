"""Validation during training: one figure for a network on whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...core.observation.describe import image_facts
from ...errors import DataError
from ..data import Example
from ..evaluation import by_network, by_network_alone, measure
from ..metrics import WHOLE_RGB


def validation(examples: Sequence[Example], *, each_view_twice: bool = False) -> Callable[[object], float]:
    """Make a `validate` function for `train`: mean PSNR in dB over scenes, by `metrics.WHOLE_RGB`.

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
        return measure(enhance, examples, scale=scale, protocol=WHOLE_RGB).means()["PSNR"]

    return validate
