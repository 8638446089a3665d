"""`enhance`: run a network on whole images of any size."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor, nn

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...ports.facts import ImageFacts
from .boxes import Box, cut, kept_results, run_boxes
from .memory import MemoryLimit
from .network import Views, check_images, first_parameter, in_eval_mode, padded
from .passes import Pass, passes
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
    images = enhance_views(module_of(model), views, image_facts(model), ensemble=ensemble, tiling=tiling)
    return images[0] if len(images) == 1 else images


def enhance_views(
    module: nn.Module, views: Views, facts: ImageFacts, *, ensemble: bool = False, tiling: Tiling = WHOLE
) -> Views:
    """Run `enhance` with known facts; return a tuple even for one view."""
    check_images(views, facts.channels, batches=True)
    like = first_parameter(module, default=views[0])
    batches = tuple((v if v.dim() == 4 else v[None]).to(like.device, like.dtype) for v in views)
    with in_eval_mode(module):
        images = _mean_of_passes(module, batches, facts, ensemble, tiling)
    return images if views[0].dim() == 4 else tuple(image[0] for image in images)


def _mean_of_passes(module: nn.Module, views: Views, facts: ImageFacts, ensemble: bool, tiling: Tiling) -> Views:
    chosen = passes(module, facts.channels, ensemble=ensemble)
    sides = tuple(side * facts.scale for side in views[0].shape[-2:])
    limit = None if tiling.memory_mb is None else MemoryLimit(tiling.memory_mb, _bytes_of_images(views, sides))
    sums: list[Tensor] = []
    groups: dict[torch.Size, list[list[Box]]] = {}  # by shape: a transposed image is cut in another way

    # Two functions, so that the views of a pass are freed before the next pass, and results before the next group.
    def add_pass(each: Pass) -> None:
        inputs = padded(each.apply(views), facts)
        shape = inputs[0].shape
        if shape not in groups:
            groups[shape] = cut(module, inputs, facts, tiling, limit)
        for boxes in groups[shape]:
            add_boxes(each, inputs, boxes)

    def add_boxes(each: Pass, inputs: Views, boxes: list[Box]) -> None:
        results = run_boxes(module, inputs, facts, boxes)
        if not sums:
            like = results[0]
            dtype = torch.promote_types(like.dtype, torch.float32)
            sums.extend(torch.zeros(len(v), like.shape[1], *sides, dtype=dtype) for v in views)
        for box, kept in kept_results(results, boxes, facts.scale):
            each.add(
                kept,
                [s[box.images] for s in sums],
                top=box.kept.start * facts.scale,
                left=box.columns.start * facts.scale,
            )

    for each in chosen:
        add_pass(each)
    return tuple(total.div_(len(chosen)).clamp_(0, 1) for total in sums)


def _bytes_of_images(views: Views, sides: tuple[int, ...]) -> int:
    """Return the bytes of copies of the views and, on the CPU, of the results."""
    copies = COPIES * sum(v.nbytes for v in views)
    if views[0].device.type != "cpu":
        return copies
    return copies + sum(len(v) * v.shape[1] * math.prod(sides) * max(4, v.element_size()) for v in views)
