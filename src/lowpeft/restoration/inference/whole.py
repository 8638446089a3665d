"""`enhance`: run a network on whole images of any size."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor, nn

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...core.padding import pad_to
from ...errors import DataError
from ...ports.facts import ImageFacts
from .network import Views, check_count, in_eval_mode
from .parts import cut_into_parts
from .passes import mean_image, passes
from .tiling import Tiling

WHOLE = Tiling()

COPIES = 3
"""Copies of the input views that exist at once: on the device, transformed for a pass, and padded."""


@overload
def enhance(model: object, view: Tensor, /, *, ensemble: bool = ..., tiling: Tiling = ...) -> Tensor: ...
@overload
def enhance(
    model: object, first: Tensor, second: Tensor, /, *others: Tensor, ensemble: bool = ..., tiling: Tiling = ...
) -> tuple[Tensor, ...]: ...
def enhance(
    model: object, *views: Tensor, ensemble: bool = False, tiling: Tiling = WHOLE
) -> Tensor | tuple[Tensor, ...]:
    """Restore or super-resolve images of any size, in eval mode and without gradients.

    The network's facts (see `lowpeft.describe`) give its value range and valid sizes. Images are padded to a valid size
    at the right and bottom, by reflection, and by repeating the last row or column if the image is too small to
    reflect. The result is cropped back. A network of fixed input size (e.g. IPT, 48x48) runs on crops of that size,
    half a crop apart, with the last ones aligned to the right and bottom borders; all views are cut at the same
    coordinates. Overlapping results are averaged with weights sin²(π(i+½)/n) along each side of n pixels, so that crop
    borders do not show. The inputs are read-only.

    Args:
        model: Network (a `Backbone` or a module), adapted or not, or a multi-view model; on any device.
        views: Images of one shape, (C,H,W) or (N,C,H,W), 0..1, RGB if C is 3, on any device. A multi-view model takes
            all views of one scene, in order (left before right); any other network takes them as separate images.
        ensemble: True to average several passes. A stereo model runs on the pair unchanged, mirrored with the views
            swapped, upside down, both, and with channels B, G, R and G, B, R (ASteISR's six). Any other multi-view
            model keeps the order of the views: unchanged, upside down, and the two colour orders. Any other network
            runs on the eight flips and rotations of each image.
        tiling: Size of the full-width strips (or number of crops) to run at once, to bound memory.

    Returns:
        One (C,sH,sW) or (N,C,sH,sW) tensor on the CPU, float32 (float64 from a float64 network), clamped to 0..1; for
        several views, a tuple with one tensor per view.

    Raises:
        DataError: The shape or number of the views does not suit the network; its results are not `scale` times as
            large; `tiling` leaves too little memory for one strip, or cuts images for a network that must not be cut.
        PlanError: The network does not take and return images.
    """
    found = enhance_views(module_of(model), views, image_facts(model), ensemble=ensemble, tiling=tiling)
    return found[0] if len(found) == 1 else found


def enhance_views(
    module: nn.Module, views: Views, facts: ImageFacts, *, ensemble: bool = False, tiling: Tiling = WHOLE
) -> Views:
    """Run `enhance` with known facts; return a tuple even for one view."""
    _check(module, views, facts.channels)
    # Interpolation baselines have no parameters.
    parameter = next((p for p in module.parameters() if p.is_floating_point()), views[0])
    batches = tuple((v if v.dim() == 4 else v[None]).to(parameter.device, parameter.dtype) for v in views)
    with in_eval_mode(module):
        images = _mean_of_passes(module, batches, facts, ensemble, tiling)
    return images if views[0].dim() == 4 else tuple(image[0] for image in images)


def _check(module: nn.Module, views: Views, channels: int) -> None:
    if not all(isinstance(view, Tensor) for view in views):
        raise DataError(f"views are tensors (C,H,W) or (N,C,H,W), not {', '.join(type(v).__name__ for v in views)}")
    if not views:
        raise DataError("there is nothing to enhance: give one image, or the views of a scene")
    check_count(module, len(views))
    shapes = dict.fromkeys(tuple(v.shape) for v in views)
    if len(shapes) > 1:
        raise DataError(f"the views must have one shape, not {' and '.join(map(str, shapes))}")
    view = views[0]
    if view.dim() not in (3, 4) or not view.is_floating_point() or not view.numel():
        raise DataError(f"an image is (C,H,W) or (N,C,H,W) of values 0..1, not {tuple(view.shape)} of {view.dtype}")
    if view.shape[-3] != channels:
        raise DataError(f"the network takes images of {channels} channels, not {tuple(view.shape)}")


def _mean_of_passes(module: nn.Module, views: Views, facts: ImageFacts, ensemble: bool, tiling: Tiling) -> Views:
    ways = passes(module, facts.channels, ensemble=ensemble)
    sides = tuple(side * facts.scale for side in views[0].shape[-2:])
    sums: Views = ()
    chosen: dict[torch.Size, int] = {}
    for way in ways:
        seen = (pad_to(v, *facts.sides_for(*v.shape[-2:])) for v in way.there(views))
        cut = cut_into_parts(module, tuple(seen), facts, tiling)
        if cut.shape not in chosen:
            chosen[cut.shape] = cut.at_once(tiling, kept_bytes=_kept_bytes(views, sides))
        for part in cut.parts(chosen[cut.shape]):
            if not sums:
                first = part.results[0]
                dtype = torch.promote_types(first.dtype, torch.float32)
                sums = tuple(torch.zeros(len(v), first.shape[1], *sides, dtype=dtype) for v in views)
            way.add(part.results, tuple(total[part.images] for total in sums), part.top, part.left)
            del part  # free its results before the next part is run
        del cut  # free its views before the next pass makes its own
    return tuple(mean_image(total, len(ways)) for total in sums)


def _kept_bytes(views: Views, sides: tuple[int, ...]) -> int:
    """Return the bytes needed beside the network's tensors: copies of the views and, on the CPU, the results."""
    copies = COPIES * sum(v.nbytes for v in views)
    if views[0].device.type != "cpu":
        return copies
    return copies + sum(len(v) * v.shape[1] * math.prod(sides) * max(4, v.element_size()) for v in views)
