"""Padding images to sizes that a network takes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to(image: Tensor, height: int, width: int) -> Tensor:
    """Extend the right and bottom sides of an image; cutting the result to the old size gives the image back.

    Args:
        image: (N,C,H,W), neither side longer than asked for.
        height: Of the result.
        width: Of the result.

    Returns:
        (N,C,height,width), the same tensor if nothing was missing. The border is reflected as far as the image reaches,
        and what is missing then is the last row or column, repeated. spandrel pads so.
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
    """As `pad_to`, up to sides that are multiples of a number of pixels and no shorter than `at_least`."""
    height, width = (max(side, at_least) for side in image.shape[-2:])
    return pad_to(image, height + -height % multiple, width + -width % multiple)
