"""Local instead of global average pools at test time (TLC: Chu et al., ECCV 2022, arXiv 2112.04491).

A network that was trained on crops has means over a crop in its channel attention; run on a whole image, it gets means
over the whole image. Local pooling gives each position the mean of a window around it, of about the crop's size. NAFSSR
does so in stereo, with windows of 1.5 times the crops.
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
"""Of window to training crop, as in NAFSSR."""

DEFAULT_WINDOW_PX = (48, 120)
"""LR px: 1.5 times the 32x80 crops of ASteISR at x4."""

WINDOW = "lowpeft_window"


class LocalAvgPool2d(nn.AdaptiveAvgPool2d):
    """The class of a global average pool within `local_pooling`."""

    def forward(self, x: Tensor) -> Tensor:
        """(…,C,H,W) to (…,C,H,W), or (…,C,1,1) where the window covers everything."""
        return local_mean(x, self.__dict__[WINDOW])


def local_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """The mean of the window around each position.

    Args:
        x: (…,C,H,W).
        window: Height and width, in positions. A side longer than `x` covers it.

    Returns:
        (…,C,H,W): means of windows that lie inside `x`, and at the borders that of the nearest one. (…,C,1,1), the mean
        of all, where the window covers `x`.
    """
    height, width = x.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    if (rows, columns) == (height, width):
        return F.adaptive_avg_pool2d(x, 1)
    mean = _running_mean(_running_mean(x, -2, rows), -1, columns)
    down, right = height - mean.shape[-2], width - mean.shape[-1]
    return F.pad(mean, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def _running_mean(x: Tensor, dim: int, count: int) -> Tensor:
    """Means of `count` neighbours along a dimension, which gets shorter by `count` - 1.

    Sums of 1, 2, 4, … neighbours are added up as `count` has them in binary. That is fast, and no value has a part in
    other means, as it would have by the rounding of cumulative sums.
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
    """Within the block, every global average pool of a network takes the mean of a window instead of everything.

    The pools keep their object and get another class, which is put back afterwards. The switch is on the model, so it
    counts for every thread that uses it; a copy that is made within the block keeps local pools.

    Args:
        model: A network (a `Backbone` or a module), adapted or not, or a model of several views.
        window_px: Height and width, or side, of the window in px of the network's input; `RATIO` times the training
            crop. In features of lower resolution the window has as many positions less.

    Yields:
        How many pools were changed.

    Raises:
        PlanError: The network has no `nn.AdaptiveAvgPool2d(1)`, or does not work with a pool that gives a map.
    """
    sides = (window_px, window_px) if isinstance(window_px, int) else window_px
    if min(sides) < 1:
        raise PlanError(f"a window of {sides[0]}x{sides[1]} px has no pixels")
    root = root_of(model)
    pools = {path: m for path, m in base_modules(root) if _is_global(m)}
    if not pools:
        raise PlanError("the network has no global average pool (nn.AdaptiveAvgPool2d(1)) that could be made local")
    trial = Trial(root)
    with torch.no_grad():
        shares = _shares(trial.twin, trial.running_example(), tuple(pools))
    before = {path: (type(pool), dict(pool.__dict__)) for path, pool in pools.items()}
    try:
        for path, (down, across) in shares.items():
            _localise(pools[path], (max(1, round(sides[0] * down)), max(1, round(sides[1] * across))))
        yield len(shares)
    finally:
        for path, (kind, attributes) in before.items():
            pools[path].__class__ = kind
            pools[path].__dict__.pop(WINDOW, None)
            if WINDOW in attributes:
                pools[path].__dict__[WINDOW] = attributes[WINDOW]


def _is_global(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1), [1, 1])


def _localise(pool: nn.Module, window: tuple[int, int]) -> None:
    pool.__class__ = LocalAvgPool2d
    pool.__dict__[WINDOW] = window


def _shares(root: nn.Module, example: Example, pools: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """For each pool that a copy of the network uses, the height and width of its input as shares of the network's.

    Raises:
        PlanError: The network does not run with pools that give maps.
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
            "the network cannot work with local pools: it takes what a global pool gives for one value per channel"
        ) from error
    height, width = example.first.shape[-2:]
    return {path: (rows / height, columns / width) for path, (rows, columns) in sides.items()}
