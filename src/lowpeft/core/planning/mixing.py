"""Test for networks that mix the images of a batch: they would mix views even before training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ...errors import PlanError
from ...ports.base import original_class
from ..attachment.views import ViewBatch, view_of
from ..attachment.wrappers import own_forward
from ..observation.examples import BATCH, SIZES_PX, Example
from ..observation.outputs import float_tensors
from ..observation.trial import LEAST_PX, Trial
from .sites import Network, Site

MIXES = 1e-5
"""Tolerance, as a share of the largest value: a larger change, when another image of the batch changes, is mixing."""

Values = list[tuple[Tensor, int]]
"""Tensors, each with its batch dimension."""


APART = frozenset(
    {
        "atd",
        "craft",
        "dat",
        "dctlsa",
        "ditn",
        "edt",
        "hat",
        "ipt",
        "kbnet",
        "nafnet",
        "rcan",
        "swin2sr",
        "swin2sr_transformers",
        "swinir",
        "timm_swin",
        "timm_swin_v2",
        "uformer",
    }
)
"""Families whose published code keeps the images of a batch apart; the tests run `mixes_images` on each."""

PUBLISHED = ("einops.", "lowpeft.", "spandrel.", "timm.", "torch.nn.", "transformers.")
"""Packages with the code on which the tests run it. Any other copy may have been changed; so may what `torch.jit` or
`torch.fx` made of it."""


def is_known_apart(network: Network) -> bool:
    """Return whether a network is known, without running it, to keep the images of a batch apart.

    It must be of a family in `APART`, and all of its code from the packages in `PUBLISHED`.
    """
    known = network.recognised is not None and network.recognised.family.name in APART
    return known and all(map(_is_published, network.modules.values()))


def _is_published(module: nn.Module) -> bool:
    """Return whether a module runs nothing but a published forward that does not compute statistics of the batch."""
    of_batch = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    changed = module._forward_hooks or module._forward_pre_hooks or own_forward(module) is not None
    own_class = original_class(module)
    published = own_class.__module__.startswith(PUBLISHED) and own_class.forward.__module__.startswith(PUBLISHED)
    return published and not of_batch and not changed


def mixes_images(trial: Trial, sites: Iterable[Site] = ()) -> bool:
    """Return whether a network's result for one of two images depends on the other image.

    The output and the features at the sites are compared: a last layer of zeros would hide mixing before it. The test
    uses the smallest images that the network takes, and images of one other size that were observed, if any.

    Raises:
        PlanError: The network does not run on two images, or its output cannot be split into views.
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
    """Run the network; return its output, and the tensors of the features and of the output with batch dimensions."""
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
    # A network that draws noise draws the same noise again: each run restores the state of the random generators.
    for changed, kept in ((1, 0), (0, 1)):
        for (one, dim), (two, _) in zip(values, look(example.with_other(changed))[1], strict=False):
            if one.shape == two.shape and dim < one.dim() and one.shape[dim] == BATCH and one.numel():
                a, b = one.select(dim, kept).nan_to_num(), two.select(dim, kept).nan_to_num()
                if float((a - b).abs().max()) > MIXES * float(a.abs().max()):
                    return True
    return False


def _refuse_whole(trial: Trial, example: Example, output: Any) -> None:
    """Refuse an output that cannot be split into views; a model of several views would fail in every forward pass."""
    if trial.facts is None or trial.facts.output is None:
        view_of(output, 0, ViewBatch(example.first.unsqueeze(0), example.images))
    tensors = float_tensors(output)
    if tensors and not any(t.dim() and len(t) == example.images for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors[:3])
        raise PlanError(
            f"for {example.images} images the network returns shapes {shapes}, so its output cannot be split into views"
        )
