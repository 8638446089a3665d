"""Local instead of global average pooling at test time (TLC: Chu et al., ECCV 2022, arXiv 2112.04491).

Channel attention that was trained on crops saw means over a crop; on a whole image it gets means over the whole image.
Local pooling gives each position the mean of a window around it, of about the crop's size. NAFSSR does this for stereo,
with windows of 1.5 times the crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.attachment.record import root_of
from ...core.observation.examples import Example
from ...core.observation.observing import observe
from ...core.observation.trial import Trial
from ...errors import PlanError
from ...ports.base import base_modules

RATIO = 1.5
"""Window side divided by training crop side, as in NAFSSR."""

DEFAULT_WINDOW_PX = (48, 120)
"""Height and width in LR px: 1.5 times the 32x80 crops of ASteISR at x4."""

WINDOW = "lowpeft_window"


class LocalAvgPool2d(nn.AdaptiveAvgPool2d):
    """Class of a global average pool within `local_pooling`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…,C,H,W) to (…,C,H,W), or to (…,C,1,1) if the window covers the whole input."""
        return local_mean(x, self.__dict__[WINDOW])


def local_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the mean of the window around each position.

    Args:
        x: Features, (…,C,H,W).
        window: Height and width of the window, in positions; cut to the sides of `x`.

    Returns:
        (…,C,H,W): means of windows that lie inside `x`; positions at a border get the nearest such mean. If the window
        covers `x`, (…,C,1,1): the global mean.
    """
    height, width = x.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    if (rows, columns) == (height, width):
        return F.adaptive_avg_pool2d(x, 1)
    mean = _running_mean(_running_mean(x, -2, rows), -1, columns)
    down, right = height - mean.shape[-2], width - mean.shape[-1]
    return F.pad(mean, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def _running_mean(x: Tensor, dim: int, count: int) -> Tensor:
    """Return means of `count` neighbours along a dimension, which gets shorter by `count` - 1.

    Sums of 1, 2, 4, … neighbours are combined according to the binary digits of `count` (e.g. 5 = 4 + 1). This is fast,
    and a value affects only the means that contain it; in cumulative sums its rounding would affect all later ones.
    """
    length = x.shape[dim] - count + 1
    power = x.to(torch.promote_types(x.dtype, torch.float32))
    total, size, done = None, 1, 0
    while count >= size:
        if count & size:
            part = power.narrow(dim, done, length)
            total = part if total is None else total + part
            done += size
        rest = power.shape[dim] - size
        if 2 * size <= count:
            power = power.narrow(dim, 0, rest) + power.narrow(dim, size, rest)
        size *= 2
    return x if total is None else (total / count).to(x.dtype)


@contextmanager
def local_pooling(model: object, window_px: int | tuple[int, int] = DEFAULT_WINDOW_PX) -> Iterator[int]:
    """Make every global average pool of a network local within the block: each position gets the mean of a window.

    The class of the pool modules is replaced in place and restored afterwards. This affects every thread that uses the
    model; a copy made within the block keeps local pools.

    Args:
        model: Network (a `Backbone` or a module), adapted or not, or a multi-view model.
        window_px: Height and width (or side) of the window, in px of the network's input; usually `RATIO` times the
            training crop. It is scaled with the features: 48 px are 12 positions at a quarter of the resolution.

    Yields:
        Number of pools that were changed.

    Raises:
        PlanError: The network has no `nn.AdaptiveAvgPool2d(1)`, or does not work with a pool that returns a map.
    """
    sides = (window_px, window_px) if isinstance(window_px, int) else window_px
    if min(sides) < 1:
        raise PlanError(f"a window of {sides[0]}x{sides[1]} px has no pixels: its sides must be at least 1 px")
    root = root_of(model)
    pools = {path: m for path, m in base_modules(root) if _is_global(m)}
    if not pools:
        raise PlanError("the network has no global average pool, nn.AdaptiveAvgPool2d(1), to make local")
    trial = Trial(root)
    with torch.no_grad():
        shares = _shares(trial.twin, trial.running_example(), tuple(pools))
    before = [(pool, type(pool), pool.__dict__.get(WINDOW)) for pool in pools.values()]
    try:
        for path, (down, across) in shares.items():
            _localise(pools[path], (max(1, round(sides[0] * down)), max(1, round(sides[1] * across))))
        yield len(shares)
    finally:
        for pool, kind, window in before:
            pool.__class__ = kind
            if window is None:
                pool.__dict__.pop(WINDOW, None)
            else:
                pool.__dict__[WINDOW] = window


def _is_global(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1), [1, 1])


def _localise(pool: nn.Module, window: tuple[int, int]) -> None:
    pool.__class__ = LocalAvgPool2d
    pool.__dict__[WINDOW] = window


def _shares(root: nn.Module, example: Example, pools: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Return, for each pool that is used, the height and width of its input divided by those of the network's input.

    Args:
        root: Copy of the network; its pools are made local.
        example: Input on which the copy runs.
        pools: Paths of the global pools.

    Raises:
        PlanError: The network does not run with pools that return maps.
    """
    observed = observe(root, example).modules
    seen = {path: observed[path].input_shape for path in pools if path in observed}
    sides = {path: (shape[-2], shape[-1]) for path, shape in seen.items() if shape is not None}
    try:
        for path, (height, width) in sides.items():
            _localise(root.get_submodule(path), (max(1, height - 1), width))
        example.call(root)
    except Exception as error:
        raise PlanError(
            "the network cannot run with local pools, because it expects one value per channel from a global pool"
        ) from error
    height, width = example.first.shape[-2:]
    return {path: (rows / height, columns / width) for path, (rows, columns) in sides.items()}
