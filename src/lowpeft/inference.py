"""Running a network on images by the facts of its backbone: value range, padding, chopping where its size is fixed."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .errors import DataError
from .families import family_output
from .padding import pad_to_multiple
from .stereo_model import StereoModel

CHUNK = 8
"""Crops (of each view) that go through a network of fixed input size at once."""


def run(model: nn.Module, views: tuple[Tensor, ...], backbone: Backbone) -> tuple[Tensor, ...]:
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
        output, name = model(torch.cat(inputs)), family_output(backbone.family)
        output = getattr(output, name) if name is not None else output
        outputs = output.chunk(len(views)) if isinstance(output, Tensor) else (output,)
    if not all(isinstance(o, Tensor) for o in outputs):
        tasks = f": {', '.join(backbone.tasks)}" if backbone.tasks else ""
        raise DataError(
            f"the network gives several images for one{tasks}; open it for one task: load_backbone(…, task=…)"
        )
    return tuple(outputs) if plain else tuple((o - low) / (high - low) for o in outputs)


@overload
def super_resolve(model: nn.Module, left: Tensor, *, backbone: Backbone, chunk: int = ...) -> Tensor: ...
@overload
def super_resolve(
    model: nn.Module, left: Tensor, right: Tensor, *, backbone: Backbone, chunk: int = ...
) -> tuple[Tensor, Tensor]: ...
def super_resolve(
    model: nn.Module, left: Tensor, right: Tensor | None = None, *, backbone: Backbone, chunk: int = CHUNK
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
        chunk: How many crops of each view go through a network of fixed input size at once. Bounds memory; the result
            does not depend on it, but for the rounding of batched kernels.

    Returns:
        (3,sH,sW) or (N,3,sH,sW) on the CPU, clamped to 0..1; two of them for two views.

    Raises:
        DataError: The views differ in size, are not images, or the network does not enlarge by the backbone's scale.
    """
    views = (left,) if right is None else (left, right)
    if len({v.shape for v in views}) > 1:
        sizes = [_size(v) for v in views]
        raise DataError(f"the views differ in size: {sizes[0]} on the left, {sizes[1]} on the right")
    if left.dim() not in (3, 4) or not left.is_floating_point() or not left.numel():
        raise DataError(f"an image is (3,H,W) or (N,3,H,W) of values 0..1, not {tuple(left.shape)} of {left.dtype}")
    if chunk < 1:
        raise DataError(f"chunk must be at least 1, not {chunk}")
    height, width, scale = *left.shape[-2:], backbone.scale
    parameter = next(model.parameters())
    batches = [(v if v.dim() == 4 else v[None]).to(parameter.device, parameter.dtype) for v in views]
    least = backbone.fixed_px or 1
    padded = tuple(pad_to_multiple(v, backbone.size_multiple, at_least=least) for v in batches)
    flag = model.training
    model.eval()
    try:
        with torch.no_grad():
            if backbone.fixed_px is None:
                results = run(model, padded, backbone)
            else:
                results = _chopped(model, padded, backbone, chunk)
    finally:
        model.train(flag)
    wanted = tuple(side * scale for side in padded[0].shape[-2:])
    if results[0].shape[-2:] != wanted:
        raise DataError(
            f"the network gave {_size(results[0])}, which is not {scale} times its input {_size(padded[0])}"
        )
    images = [r[..., : height * scale, : width * scale].clamp(0, 1).cpu() for r in results]
    images = [image if left.dim() == 4 else image[0] for image in images]
    return images[0] if right is None else (images[0], images[1])


def crop_starts(length: int, side: int) -> list[int]:
    """Where the crops of that side begin along an image's side: half a crop apart, and the last at the border."""
    return [*range(0, length - side, max(1, side // 2)), length - side]


def _chopped(model: nn.Module, views: tuple[Tensor, ...], backbone: Backbone, chunk: int) -> tuple[Tensor, ...]:
    """Both views through a network of fixed input size, crop by crop; overlaps are averaged."""
    side, scale = backbone.fixed_px or 1, backbone.scale
    images, channels, height, width = views[0].shape
    places = [(n, y, x) for n in range(images) for y in crop_starts(height, side) for x in crop_starts(width, side)]
    sums = [v.new_zeros(images, channels, height * scale, width * scale) for v in views]
    total = views[0].new_zeros(images, 1, height * scale, width * scale)
    ramp = torch.sin(math.pi * (torch.arange(side * scale, device=total.device) + 0.5) / (side * scale)) ** 2
    weight = (ramp[:, None] * ramp).to(total.dtype)
    for first in range(0, len(places), chunk):
        part = places[first : first + chunk]
        crops = tuple(torch.stack([v[n, :, y : y + side, x : x + side] for n, y, x in part]) for v in views)
        results = run(model, crops, backbone)
        for i, (n, y, x) in enumerate(part):
            there = (n, slice(None), slice(y * scale, (y + side) * scale), slice(x * scale, (x + side) * scale))
            total[there] += weight
            for image, result in zip(sums, results, strict=True):
                image[there] += weight * result[i]
    return tuple(image / total for image in sums)


def _size(view: Tensor) -> str:
    return f"{view.shape[-1]}x{view.shape[-2]} px"
