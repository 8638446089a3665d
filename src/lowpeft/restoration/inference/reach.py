"""`reach_px`: the number of context rows that makes strips exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import DataError
from ...ports.facts import ImageFacts
from .network import Views, first_parameter, in_eval_mode, multi_view, run
from .tiling import Tiling

WIDTH_PX = 32
MOST_ROWS = 1024
"""Maximum height of the image above the marked rows; a network that reaches farther counts as global."""

SAME = 1e-6
"""Largest difference of values 0..1 that counts as rounding."""


def reach_px(model: object, *, align_px: int | None = None) -> int | None:
    """Count the LR rows above and below a strip that can affect its result.

    A few rows of a tall image are set to NaN, and the rows of the result that become NaN are counted. A weight of zero
    does not stop a NaN, so this measures the network's connections, not its weights. Far rows usually have little
    influence, and less context then gives almost the same result.

    Args:
        model: Network (a `Backbone` or a module), adapted or not, or a multi-view model.
        align_px: Multiple at which strips begin, as in `Tiling`.

    Returns:
        The `context_px` with which strips give the result of the whole image, up to rounding. None if no such number
        exists: every row depends on all rows (a global pool; see `local_pooling`) or on more than `MOST_ROWS`, or the
        top rows depend on the bottom ones (shifted windows without a mask, as in DCTLSA).

    Raises:
        DataError: The rows that a row depends on differ between multiples of `align_px`, so that strips would cut
            windows differently from the whole image; or the network takes only one size or only square images.
        PlanError: The network does not take and return images.
    """
    facts, module = image_facts(model), module_of(model)
    if facts.fixed_px is not None or facts.square:
        takes = "square images" if facts.fixed_px is None else f"{facts.fixed_px} px"
        raise DataError(f"{facts.architecture} takes {takes} only and is not run in strips")
    align = Tiling(align_px=align_px).aligned_to(facts.size_multiple)
    with in_eval_mode(module):
        return _reach(module, facts, align)


def _reach(module: nn.Module, facts: ImageFacts, align: int) -> int | None:
    above = 2 * align
    while (found := _spread(module, facts, above, align)) is None:
        above *= 2
        if above > MOST_ROWS:
            return None
    if _spread(module, facts, above + align, align) != found:
        raise DataError(
            f"the network's windows do not lie the same at all multiples of {align} rows: choose another align_px, "
            "a multiple of their height"
        )
    return None if _wraps(module, facts, 2 * above + align) else max(found)


def _spread(module: nn.Module, facts: ImageFacts, first: int, count: int) -> tuple[int, int] | None:
    """Return the numbers of rows above and below rows [first, first + count) that depend on them.

    None if the dependent rows reach a border of the image.
    """
    image = _grey(module, facts, 2 * first + count)
    image[..., first : first + count, :] = math.nan
    touched = torch.stack([r.isnan().any(-1).any(1).any(0) for r in _results(module, facts, image)]).any(0)
    rows = touched.nonzero().flatten() // facts.scale
    low, high = int(rows[0]), int(rows[-1])
    if low == 0 or high >= 2 * first + count - 1:
        return None
    return first - low, high - (first + count - 1)


def _wraps(module: nn.Module, facts: ImageFacts, height: int) -> bool:
    """Return whether the top rows depend on the bottom ones.

    Compares values instead of using NaN, because attention masks let a NaN pass.
    """
    image = _grey(module, facts, height)
    other = image.clone()
    other[..., -(image.shape[-2] // 4) :, :] = 0
    top = slice(0, height // 4)
    pairs = zip(_results(module, facts, image), _results(module, facts, other), strict=True)
    return any(bool((a[..., top, :] - b[..., top, :]).abs().max() > SAME) for a, b in pairs)


def _grey(module: nn.Module, facts: ImageFacts, height: int) -> Tensor:
    """Return a grey image of at least `height` rows, of a size that the network takes."""
    like = first_parameter(module, default=torch.empty(0))
    shape = (1, facts.channels, *facts.sides_for(height, math.lcm(WIDTH_PX, facts.size_multiple)))
    return torch.full(shape, 0.5, device=like.device, dtype=like.dtype)


def _results(module: nn.Module, facts: ImageFacts, image: Tensor) -> Views:
    model = multi_view(module)
    return run(module, (image,) * (1 if model is None else model.views), facts)
