"""Whole images, of any size, through a network."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..facts import Backbone
from ..padding import pad_to_multiple
from .network import Views, in_eval_mode, size
from .parts import cut_into_parts
from .passes import mean_image, passes
from .tiling import Tiling

WHOLE = Tiling()

COPIES = 3
"""Of the LR views at most at a time: on the device, as a pass sees them, and padded."""


@overload
def super_resolve(
    model: nn.Module, left: Tensor, *, backbone: Backbone, ensemble: bool = ..., tiling: Tiling = ...
) -> Tensor: ...
@overload
def super_resolve(
    model: nn.Module, left: Tensor, right: Tensor, *, backbone: Backbone, ensemble: bool = ..., tiling: Tiling = ...
) -> tuple[Tensor, Tensor]: ...
def super_resolve(
    model: nn.Module,
    left: Tensor,
    right: Tensor | None = None,
    *,
    backbone: Backbone,
    ensemble: bool = False,
    tiling: Tiling = WHOLE,
) -> Tensor | tuple[Tensor, Tensor]:
    """Super-resolve (or restore) a pair of views, or one image, of any size, in eval mode and without gradients.

    Sides are reflected at the right and bottom up to what the network takes, and cut back. A network of fixed input
    size (IPT's 48x48) is run on crops of that size, half a crop apart, and on those that end at the right and bottom
    borders; both views are cut at the same coordinates. Where crops overlap, their results are averaged with the
    weights sin²(π(i+½)/n) along each side of n pixels, so that no border of a crop shows.

    Args:
        model: The network of `backbone`, adapted or not; on any device.
        left: The left view, or the only one: (3,H,W) or (N,3,H,W), 0..1, RGB, on any device.
        right: The right view, same shape. Goes with the left one through a stereo model as a pair, and through any
            other network as a second image.
        backbone: The facts, as `load_backbone` gives them.
        ensemble: Give the mean of several passes: of a pair as it is, mirrored with the views swapped, upside down,
            both, and with the channels as B, G, R and as G, B, R (ASteISR's six); of one image in the eight ways to
            flip and turn it.
        tiling: Run the image in full-width strips, to bound memory.

    Returns:
        (3,sH,sW) or (N,3,sH,sW) on the CPU, float32 (float64 from such a network), clamped to 0..1; two of them for
        two views.

    Raises:
        DataError: The views differ in size, are not images of the network's channels, the network does not enlarge by
            the backbone's scale, or `tiling` leaves too little memory for one strip.
    """
    views = _checked(left, right, backbone.channels)
    parameter = next(model.parameters())
    batches = tuple((v if v.dim() == 4 else v[None]).to(parameter.device, parameter.dtype) for v in views)
    with in_eval_mode(model):
        images = _mean_of_passes(model, batches, backbone, ensemble, tiling)
    first, *others = (image if left.dim() == 4 else image[0] for image in images)
    return (first, others[0]) if others else first


def _checked(left: Tensor, right: Tensor | None, channels: int) -> Views:
    views = (left,) if right is None else (left, right)
    if len({v.shape for v in views}) > 1:
        raise DataError(f"the views differ in size: {size(views[0])} on the left, {size(views[-1])} on the right")
    if left.dim() not in (3, 4) or not left.is_floating_point() or not left.numel():
        raise DataError(f"an image is (3,H,W) or (N,3,H,W) of values 0..1, not {tuple(left.shape)} of {left.dtype}")
    if left.shape[-3] != channels:
        raise DataError(f"the network takes images of {channels} channels, not {tuple(left.shape)}")
    return views


def _mean_of_passes(model: nn.Module, views: Views, backbone: Backbone, ensemble: bool, tiling: Tiling) -> Views:
    ways = passes(len(views), ensemble=ensemble)
    sides = tuple(side * backbone.scale for side in views[0].shape[-2:])
    sums: Views = ()
    chosen: dict[torch.Size, int] = {}
    for way in ways:
        seen = (pad_to_multiple(v, backbone.size_multiple, at_least=backbone.fixed_px or 1) for v in way.there(views))
        cut = cut_into_parts(model, tuple(seen), backbone, tiling)
        if cut.shape not in chosen:
            chosen[cut.shape] = cut.at_once(tiling, kept_bytes=_kept_bytes(views, sides))
        for part in cut.parts(chosen[cut.shape]):
            if not sums:
                first = part.results[0]
                dtype = torch.promote_types(first.dtype, torch.float32)
                sums = tuple(torch.zeros(len(v), first.shape[1], *sides, dtype=dtype) for v in views)
            way.add(part.results, tuple(total[part.images] for total in sums), part.top, part.left)
            del part  # the memory of its results, before the next part is run
        del cut  # its views, before the next pass makes its own
    return tuple(mean_image(total, len(ways)) for total in sums)


def _kept_bytes(views: Views, sides: tuple[int, ...]) -> int:
    """What is held beside the network's own tensors: copies of the views, and the results if they are on the device."""
    copies = COPIES * sum(v.nbytes for v in views)
    if views[0].device.type != "cpu":
        return copies
    return copies + sum(len(v) * v.shape[1] * math.prod(sides) * max(4, v.element_size()) for v in views)
