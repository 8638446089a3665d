"""Padding images to sizes that a network takes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(image: Tensor, multiple: int, *, at_least: int = 1) -> Tensor:
    """Extend the right and bottom sides of an image; cutting the result to the old size gives the image back.

    Args:
        image: (N,C,H,W).
        multiple: Both sides of the result are multiples of this.
        at_least: And no shorter than this.

    Returns:
        (N,C,H',W'), the same tensor if nothing was missing. The border is reflected, or repeated where the image is
        too small for that.
    """
    height, width = image.shape[-2:]
    down, right = (max(side, at_least) - side for side in (height, width))
    down, right = down + -(height + down) % multiple, right + -(width + right) % multiple
    if not down and not right:
        return image
    return F.pad(image, (0, right, 0, down), mode="reflect" if down < height and right < width else "replicate")
