"""Validation on the way: one figure for a network on whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

from ...errors import DataError
from ..data import Example
from ..evaluation import by_network
from ..metrics import psnr


def validation(examples: Sequence[Example]) -> Callable[[object], float]:
    """Make a `validate` for `train`: the mean over scenes of the PSNR in dB, whole views, RGB, mean of the views.

    Args:
        examples: At least one scene, of one view or two, that the network is not trained on.

    Raises:
        DataError: There are no scenes; or, when it is called, a scene cannot be run.
    """
    if not examples:
        raise DataError("there are no scenes to validate on")

    def validate(model: object) -> float:
        enhance = by_network(model)
        return fmean(psnr_db(enhance(example), example) for example in examples)

    return validate


def psnr_db(views: Sequence[Tensor], example: Example) -> float:
    """The mean of the PSNR of a scene's views, whole, RGB."""
    return fmean(psnr(sr, hr) for sr, hr in zip(views, example.hr, strict=True))
