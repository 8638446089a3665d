"""Validation during training: one figure for a network on whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

from ...errors import DataError
from ..data import Example
from ..evaluation import by_network
from ..metrics import psnr


def validation(examples: Sequence[Example]) -> Callable[[object], float]:
    """Make a `validate` function for `train`: mean PSNR in dB over scenes, on whole RGB views (see `psnr_db`).

    Args:
        examples: At least one scene, of one view or two, that the network is not trained on.

    Raises:
        DataError: There are no scenes. The function itself raises it if the network cannot be run on a scene.
    """
    if not examples:
        raise DataError("there are no scenes to validate on")

    def validate(model: object) -> float:
        enhance = by_network(model)
        return fmean(psnr_db(enhance(example), example) for example in examples)

    return validate


def psnr_db(views: Sequence[Tensor], example: Example) -> float:
    """Return the mean PSNR of a scene's views in dB, on whole RGB views."""
    return fmean(psnr(sr, hr) for sr, hr in zip(views, example.hr, strict=True))
