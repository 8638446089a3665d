"""Padding images to the sizes that a network takes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to(image: Tensor, height: int, width: int) -> Tensor:
    """Pad an image at its right and bottom sides; cropping the result to the old size gives the image back.

    Args:
        image: Image (N,C,H,W), with H <= height and W <= width.
        height: Height of the result in pixels.
        width: Width of the result in pixels.

    Returns:
        (N,C,height,width); the same tensor if it has that size already. The padding is a reflection, as far as the
        image reaches; beyond that, the last row or column is repeated. spandrel pads in the same way.
    """
    rows, columns = image.shape[-2:]
    down, right = height - rows, width - columns
    if not down and not right:
        return image
    reflected = min(down, rows - 1), min(right, columns - 1)
    image = F.pad(image, (0, reflected[1], 0, reflected[0]), mode="reflect")
    down, right = down - reflected[0], right - reflected[1]
    return F.pad(image, (0, right, 0, down), mode="replicate") if down or right else image


def pad_to_multiple(image: Tensor, multiple: int, *, at_least: int = 1) -> Tensor:
    """Pad like `pad_to`, to sides that are multiples of `multiple` pixels and at least `at_least` pixels."""
    height, width = (max(side, at_least) for side in image.shape[-2:])
    return pad_to(image, height + -height % multiple, width + -width % multiple)
