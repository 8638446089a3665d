"""Conversion between images with values 0..1 and a network's input and output, according to its facts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from ...errors import DataError
from ...ports.facts import Facts


def to_network(image: Tensor, facts: Facts) -> Tensor:
    """Convert an image to a network's input: scale it to the value range and append the constant maps as channels.

    Args:
        image: Image (N,C,H,W), values 0..1.
        facts: Facts of the network.

    Returns:
        (N,C+M,H,W) with the M maps of `facts`; `image` itself if nothing has to change.
    """
    low, high = facts.value_range
    if (low, high) != (0.0, 1.0):
        image = image * (high - low) + low
    if not facts.maps:
        return image
    given = image.shape[1]
    filled = image.new_empty(len(image), given + len(facts.maps), *image.shape[2:])
    filled[:, :given] = image
    for i, value in enumerate(facts.maps):
        filled[:, given + i] = value
    return filled


def to_plain(image: Tensor, facts: Facts) -> Tensor:
    """Scale a network's output image, of any shape, to values of about 0..1; the same tensor if that is its range."""
    low, high = facts.range_out
    return image if (low, high) == (0.0, 1.0) else (image - low) / (high - low)


def image_in(output: Any, where: str | int | None) -> Any:
    """Return the image in a network's output; an output that is a tensor is the image.

    Args:
        output: Output of the network.
        where: The fact `output`: name of an attribute or key, index of an item, or None if the output is the image.

    Raises:
        DataError: The output has no such attribute or item.
    """
    if where is None or isinstance(output, Tensor):
        return output
    try:
        by_item = isinstance(where, int) or (isinstance(output, Mapping) and where in output)
        return output[where] if by_item else getattr(output, str(where))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"the network's output, a {type(output).__name__}, has no {where!r}: describe(…, output=…)"
        ) from error


def with_image(output: Any, where: str | int | None, image: Tensor) -> Any:
    """Return a copy of a network's output with another image in it; `output` itself is unchanged."""
    if where is None or isinstance(output, Tensor):
        return image
    if isinstance(where, int):
        items = [*output]
        items[where] = image
        return output._make(items) if hasattr(output, "_make") else type(output)(items)
    output = copy.copy(output)
    if isinstance(output, MutableMapping) and where in output:
        output[where] = image
        return output
    setattr(output, where, image)
    return output
