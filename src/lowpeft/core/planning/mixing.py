"""Whether a network mixes the images of a batch, so that views would be mixed before anything is trained."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ...errors import PlanError
from ..attachment.views import ViewBatch, view_of
from ..observation.examples import BATCH, SIZES_PX, Example
from ..observation.outputs import float_tensors
from ..observation.trial import LEAST_PX, Trial
from .sites import Site

MIXES = 1e-5
"""What changes by more than this share of its largest value with another image of the batch mixes them."""

Values = list[tuple[Tensor, int]]
"""Tensors, and the dimension of each that counts images."""


def mixes_images(trial: Trial, sites: Iterable[Site] = ()) -> bool:
    """Whether what a network gives for one of two images depends on the other.

    Its output is looked at, and the features at the sites: a last layer that is still zero would hide what goes on
    before it. This is tried on the smallest images that the network takes, and on those that were observed.

    Raises:
        PlanError: It does not run on two images, or gives nothing of which each view could be told.
    """
    layouts = {s.path: s.attachment.layout for s in sites if s.attachment.form == "output"}
    dims = {path: layout.batch_dim for path, layout in layouts.items() if layout is not None and layout.counts_images}
    look = functools.partial(_look, trial, dims)
    example, (output, values) = trial.first_run(BATCH, look, sizes=(LEAST_PX, *SIZES_PX))
    _refuse_whole(trial, example, output)
    if _mixes(example, values, look):
        return True
    others = (s.example for s in trial.observed if s.example.images == BATCH and s.example.size != example.size)
    return any(_mixes(other, look(other)[1], look) for other in itertools.islice(others, 1))


def _look(trial: Trial, dims: dict[str, int], example: Example) -> tuple[Any, Values]:
    """The output, and the values in it and of the features at these modules, by the dimension that counts images."""
    values: Values = []

    def keep(dim: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: values.extend((t.clone(), dim) for t in float_tensors(output))

    handles = [trial.twin.get_submodule(path).register_forward_hook(keep(dim)) for path, dim in dims.items()]
    try:
        output = trial.run(example)
    finally:
        for handle in handles:
            handle.remove()
    return output, values + [(t, 0) for t in float_tensors(output)]


def _mixes(example: Example, values: Values, look: Callable[[Example], tuple[Any, Values]]) -> bool:
    # A network that draws noise draws the same again: every run leaves the state of the generators as it was.
    for changed, kept in ((1, 0), (0, 1)):
        for (one, dim), (two, _) in zip(values, look(example.with_other(changed))[1], strict=False):
            if one.shape == two.shape and dim < one.dim() and one.shape[dim] == BATCH and one.numel():
                a, b = one.select(dim, kept).nan_to_num(), two.select(dim, kept).nan_to_num()
                if float((a - b).abs().max()) > MIXES * float(a.abs().max()):
                    return True
    return False


def _refuse_whole(trial: Trial, example: Example, output: Any) -> None:
    """Refuse an output of which no view could be told, as the model of several views would in every forward."""
    if trial.facts is None or trial.facts.output is None:
        view_of(output, 0, ViewBatch(example.first.unsqueeze(0), example.images))
    found = float_tensors(output)
    if found and not any(t.dim() and len(t) == example.images for t in found):
        shapes = ", ".join(str(tuple(t.shape)) for t in found[:3])
        raise PlanError(f"for {example.images} images the network gives {shapes}, of which no view can be told")
