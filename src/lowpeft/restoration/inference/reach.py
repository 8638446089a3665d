"""`reach_px`: the number of context rows that makes strips exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import DataError
from ...ports.facts import ImageFacts
from .boxes import round_up
from .network import first_parameter, in_eval_mode, multi_view, run
from .tiling import Tiling

WIDTH_PX, GREY = 32, 0.5
MOST_ROWS = 1024
"""Maximum height of the image above the marked rows; a network that reaches farther counts as global."""

FAR_ROWS = 512
"""Distance in rows from which on a row that matters is taken as a sign that a network sees the whole image."""

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


def strips_remark(model: object) -> str:
    """Return a sentence if strips of a network give another result than the whole image, else the empty string.

    That is so if rows of its result depend on rows more than `FAR_ROWS` away: it sees the whole image, e.g. through
    global pools.

    Raises:
        PlanError: The network does not take and return images.
    """
    facts, module = image_facts(model), module_of(model)
    if facts.fixed_px is not None or facts.square or not facts.strips:
        return ""
    align = Tiling().aligned_to(facts.size_multiple)
    with in_eval_mode(module):
        far = _spread(module, facts, round_up(FAR_ROWS, align), align) is None
    if not far:
        return ""
    return (
        "this network sees the whole image, so the strips of an image that is run in strips differ from the whole and "
        "may show at their borders: more memory avoids it, and lowpeft evaluate --local-pooling measures a remedy"
    )


def _reach(module: nn.Module, facts: ImageFacts, align: int) -> int | None:
    above = 2 * align
    while (reach := _spread(module, facts, above, align)) is None:
        above *= 2
        if above > MOST_ROWS:
            return None
    if _spread(module, facts, above + align, align) != reach:
        raise DataError(
            f"the network's windows do not begin at all multiples of {align} rows: choose another align_px, a multiple "
            "of their height"
        )
    return None if _wraps(module, facts, 2 * above + align) else max(reach)


def _spread(module: nn.Module, facts: ImageFacts, first: int, count: int) -> tuple[int, int] | None:
    """Return the numbers of rows above and below rows [first, first + count) that depend on them.

    None if the dependent rows reach a border of the image.
    """
    results = _run_marked(module, facts, 2 * first + count, slice(first, first + count), math.nan)
    rows = results.isnan().any(-1).any(1).any(0).nonzero().flatten() // facts.scale
    low, high = int(rows[0]), int(rows[-1])
    if low == 0 or high >= 2 * first + count - 1:
        return None
    return first - low, high - (first + count - 1)


def _wraps(module: nn.Module, facts: ImageFacts, height: int) -> bool:
    """Return whether the top rows depend on the bottom ones.

    Compares values instead of using NaN, because attention masks let a NaN pass.
    """
    bottom = slice(-(facts.sides_for(height, 1)[0] // 4), None)
    grey, marked = (_run_marked(module, facts, height, bottom, value) for value in (GREY, 0.0))
    return bool((grey - marked)[..., : height // 4, :].abs().max() > SAME)


def _run_marked(module: nn.Module, facts: ImageFacts, height: int, rows: slice, value: float) -> Tensor:
    """Run the network on a grey image, of at least `height` rows, that has another value in some rows.

    Returns:
        The results for all views in one batch.
    """
    like = first_parameter(module, default=torch.empty(0))
    sides = facts.sides_for(height, math.lcm(WIDTH_PX, facts.size_multiple))
    image = torch.full((1, facts.channels, *sides), GREY, device=like.device, dtype=like.dtype)
    image[..., rows, :] = value
    model = multi_view(module)
    return torch.cat(run(module, (image,) * (1 if model is None else model.views), facts))
