"""One call of a network on images 0..1, converted according to its facts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...core.attachment.calls import image_in, to_network, to_plain
from ...core.attachment.views import MultiViewModel
from ...core.attachment.wrappers import layers
from ...core.padding import pad_to
from ...errors import DataError
from ...ports.facts import ImageFacts
from ..images import check_values

Views = tuple[Tensor, ...]

_EVALUATED: dict[nn.Module, tuple[int, dict[nn.Module, bool]]] = {}
"""How many calls run a model in eval mode now, and the modes that its modules had before."""
_EVALUATED_LOCK = threading.Lock()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode without gradients within the block; then restore the mode of every module.

    Modes are kept per module, because adapters in training mode may sit below a frozen network in eval mode. Of several
    threads that run one model at a time, the first switches it and the last restores it.
    """
    with _EVALUATED_LOCK:
        users, flags = _EVALUATED.get(model, (0, {}))
        if not users:
            flags = {module: module.training for module in model.modules()}
            model.eval()
        _EVALUATED[model] = users + 1, flags
    try:
        with torch.no_grad():
            yield
    finally:
        with _EVALUATED_LOCK:
            users, flags = _EVALUATED.pop(model)
            if users > 1:
                _EVALUATED[model] = users - 1, flags
            else:
                model.train(flags[model])  # for modules whose `train` does more than set the flag
                for module, flag in flags.items():
                    module.training = flag


def check_images(views: Views, channels: int, *, batches: bool) -> None:
    """Check images that were given for a network.

    Args:
        views: One image, or the views of a scene.
        channels: Channels of the images that the network takes.
        batches: True if an image may be a batch (N,C,H,W).

    Raises:
        DataError: There is no view, the views differ in shape, or one is not an image of `channels` channels with
            values about 0..1.
    """
    form = "(C,H,W) or (N,C,H,W)" if batches else "(C,H,W)"
    if not views:
        raise DataError("no image was given: give one image, or all views of a scene")
    if not all(isinstance(view, Tensor) for view in views):
        raise DataError(f"views must be tensors {form}, not {', '.join(type(v).__name__ for v in views)}")
    if len(shapes := dict.fromkeys(tuple(v.shape) for v in views)) > 1:
        raise DataError(f"the views must have one shape, not {' and '.join(map(str, shapes))}")
    for view in views:
        if view.dim() not in ((3, 4) if batches else (3,)) or not view.is_floating_point() or not view.numel():
            raise DataError(f"an image must be {form} of values 0..1, not {tuple(view.shape)} of {view.dtype}")
        if view.shape[-3] != channels:
            raise DataError(f"the network takes images of {channels} channels, not {tuple(view.shape)}")
        check_values(view)


def run(module: nn.Module, views: Views, facts: ImageFacts) -> Views:
    """Run a network on one image, or on the views of a scene, of a valid size.

    A `MultiViewModel` gets its views together; any other network gets them as one batch of separate images.

    Args:
        module: Network, adapted or not. If it writes into its input, it writes into a copy.
        views: (N,C,H,W) tensors of one shape, 0..1; read-only.
        facts: Facts of the network.

    Returns:
        One (N,C,sH,sW) tensor per view, about 0..1, not clamped.

    Raises:
        DataError: The number of views is not that of the multi-view model, the network returns several images for one,
            or the results are not `facts.scale` times as large as the views.
    """
    inputs = tuple(to_network(view, facts) for view in views)
    if (together := multi_view(module)) is not None:
        if len(views) != together.views:
            raise DataError(
                f"{len(views)} view{'' if len(views) == 1 else 's'} given, but this {type(together).__name__} takes "
                f"{together.views} views of a scene: give all of them in one call"
            )
        outputs = module(*inputs)
    else:
        # `torch.cat` copies even a single view. A multi-view model makes its own batch.
        output = image_in(module(torch.cat(inputs)), facts.output)
        outputs = output.chunk(len(views)) if isinstance(output, Tensor) else (output,)
    if not all(isinstance(o, Tensor) for o in outputs):
        tasks = f": {', '.join(facts.tasks)}" if facts.tasks else ""
        advice = "open it for one task: load_backbone(…, task=…)" if facts.tasks else "wrap it so that it returns one"
        raise DataError(f"the network returns several images for one{tasks}; {advice}")
    if outputs[0].shape[-2:] != tuple(side * facts.scale for side in views[0].shape[-2:]):
        raise DataError(
            f"the network returned {size(outputs[0])}, which is not {facts.scale} times its input {size(views[0])}; "
            "give its scale: lowpeft.describe(model, scale=…)"
        )
    return tuple(to_plain(o, facts) for o in outputs)


def multi_view(module: nn.Module) -> MultiViewModel | None:
    """Return the multi-view model that a call reaches; None for a single-image network.

    It is the module itself, or is wrapped by DataParallel, DDP, torch.compile or `AveragedModel`.
    """
    return next((layer for layer in layers(module) if isinstance(layer, MultiViewModel)), None)


def run_padded(module: nn.Module, views: Views, facts: ImageFacts) -> Views:
    """Run a network as `run` does, on views of any size: they are padded, and the results cropped back.

    Raises:
        DataError: As for `run`.
    """
    height, width = (side * facts.scale for side in views[0].shape[-2:])
    return tuple(result[..., :height, :width] for result in run(module, padded(views, facts), facts))


def padded(views: Views, facts: ImageFacts) -> Views:
    """Pad views at the right and bottom to a size that the network takes."""
    return tuple(pad_to(view, *facts.sides_for(*view.shape[-2:])) for view in views)


def first_parameter(module: nn.Module, default: Tensor) -> Tensor:
    """Return a floating-point parameter, whose device and dtype inputs get; `default` if there is none (bicubic)."""
    return next((p for p in module.parameters() if p.is_floating_point()), default)


def size(view: Tensor) -> str:
    """Return width and height for messages, e.g. "320x128 px"."""
    return f"{view.shape[-1]}x{view.shape[-2]} px"
