"""One call of a network on images 0..1, by the facts of its backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..facts import Backbone
from ..views import StereoModel

Views = tuple[Tensor, ...]


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block, eval mode and no gradients; afterwards every module has the mode that it had.

    One flag for all would not do: below a frozen network, which is in eval mode, adapters are trained.
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(flags[model])  # for modules that do more than set their flag
        for module, flag in flags.items():
            module.training = flag


def run(model: nn.Module, views: Views, backbone: Backbone) -> Views:
    """One image, or both views of a pair, of a size that the network takes, through it.

    A stereo model gets two views as a pair; any other network gets what there is as one batch.

    Args:
        model: The network of `backbone`, adapted or not.
        views: One or two (N,3,H,W) tensors of one shape, 0..1.
        backbone: The facts.

    Returns:
        As many (N,3,sH,sW) tensors, about 0..1, not clamped.

    Raises:
        DataError: A stereo model got one view, or the network gives several images for one.
    """
    low, high = backbone.value_range
    plain = (low, high) == (0.0, 1.0)
    inputs = views if plain else tuple(v * (high - low) + low for v in views)
    if isinstance(model, StereoModel):
        if len(views) != 2:
            raise DataError("a stereo model takes two views, left and right")
        outputs = model(*inputs)
    else:
        output, name = model(torch.cat(inputs)), backbone.output
        output = getattr(output, name) if name is not None else output
        outputs = output.chunk(len(views)) if isinstance(output, Tensor) else (output,)
    if not all(isinstance(o, Tensor) for o in outputs):
        tasks = f": {', '.join(backbone.tasks)}" if backbone.tasks else ""
        raise DataError(
            f"the network gives several images for one{tasks}; open it for one task: load_backbone(…, task=…)"
        )
    return tuple(outputs) if plain else tuple((o - low) / (high - low) for o in outputs)


def run_scaled(model: nn.Module, views: Views, backbone: Backbone) -> Views:
    """As `run`, and the results are `backbone.scale` times as large as the views.

    Raises:
        DataError: As `run`, or the results have another size.
    """
    results = run(model, views, backbone)
    if results[0].shape[-2:] != tuple(side * backbone.scale for side in views[0].shape[-2:]):
        raise DataError(
            f"the network gave {size(results[0])}, which is not {backbone.scale} times its input {size(views[0])}"
        )
    return results


def size(view: Tensor) -> str:
    """Width and height, for people."""
    return f"{view.shape[-1]}x{view.shape[-2]} px"
