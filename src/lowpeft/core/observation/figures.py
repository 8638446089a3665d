"""Does a network compute the same as the base of an adapter file? Compared by figures, a few statistics of its output.

They reveal differences outside the weights, e.g. in the value range, a padding mode or an activation. They are computed
on the CPU, with a copy of the network, from one image that is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AdapterError, PlanError
from ...ports.facts import Facts
from ..attachment.copies import twin_of
from .examples import SIZES_PX, examples
from .generators import kept_generators
from .outputs import float_tensors
from .trial import LEAST_PX

TOLERANCE = 2e-5
"""Tolerance for other processors and versions of torch, as a share of the largest figure of a tensor."""
STEPS = 4
"""Tolerance for rounded weights and features, in steps (`eps`) of the dtype; the larger of both tolerances applies."""

COARSEST = 0.25
"""Largest step (`eps`) of any dtype of weights (float8_e5m2)."""

MOST_TENSORS = 4
SAMPLES = 4
DIGITS = 7

Values = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Statistics of a base's output for the fixed image.

    Attributes:
        shape: Shape of the image, N,C,H,W.
        step: Largest `eps` among the dtypes of the base's parameters.
        values: Mean, standard deviation and some values of each of the first tensors of the output.
    """

    shape: tuple[int, ...]
    step: float
    values: Values

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def figures_from_dict(values: object) -> Figures:
    """Return the figures from the values of `Figures.as_dict`.

    Raises:
        AdapterError: The values are not those of figures.
    """
    try:
        shape, step, rows = (values[key] for key in ("shape", "step", "values"))  # type: ignore[index]
        figures = Figures(shape=tuple(shape), step=float(step), values=tuple(tuple(map(float, row)) for row in rows))
        if not all(math.isfinite(value) for row in figures.values for value in row) or not 0 < figures.step <= COARSEST:
            raise ValueError(f"step {figures.step}, or a value that is not finite")
        sides = range(1, max(map(max, SIZES_PX)) + 1)
        if len(figures.shape) != 4 or not all(type(n) is int and n in sides for n in figures.shape):
            raise ValueError(f"{shape} is not the shape of a test image")
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"the file's record of the output of its base is damaged or not by lowpeft: {error}"
        ) from error
    return figures


def figures_of(root: nn.Module, facts: Facts) -> Figures | None:
    """Return the figures of a network's base, adapted or not; None if there are none.

    That is the case if the network does not take an image, if its output changes from run to run, or if there is no
    memory for a copy. None instead of an error lets the adapter be saved anyway.

    Args:
        root: The network.
        facts: Known facts of the network, for the channels and sides of the image.
    """
    twin = _on_cpu(root)
    if twin is None or not any(parameter.is_floating_point() for parameter in twin.parameters()):
        return None
    for example in examples(twin, batch=1, facts=facts, sizes=(LEAST_PX, *SIZES_PX)):
        shape = tuple(example.first.shape)
        values = _values(twin, shape)
        if values:
            # Noise, and decisions that depend on rounding, would give another output on each machine.
            again = _values(twin, shape, seed=1, scale=1 + 2**-20)
            steady = again and _difference(values, again) < max(TOLERANCE / 2, _step(twin))
            return Figures(shape=shape, step=_step(twin), values=values) if steady else None
    return None


def other_figures(expected: Figures, root: nn.Module, rounded: torch.dtype | None = None) -> list[str]:
    """Return the difference between a network's output and that of the base in a file, as lines for people.

    Empty if they agree, or if the network cannot be copied or does not run on the CPU or on this image.

    Args:
        expected: Figures from an adapter file.
        root: The network.
        rounded: Dtype that the weights of one of the two are rounded to, in whatever dtype they are stored.
    """
    if (twin := _on_cpu(root)) is None or (values := _values(twin, expected.shape)) is None:
        return []
    same = "the weights are the same, but the output for a test image"
    if not values:
        return [f"{same} contains NaN or infinity; that of the base does not"]
    difference = _difference(expected.values, values)
    steps = (expected.step, _step(twin), 0.0 if rounded is None else torch.finfo(rounded).eps)
    if difference <= max(TOLERANCE, STEPS * max(steps)):
        return []
    cause = "something other than the weights is different (value range, padding, activation, a constant)"
    return [f"{same} differs by {difference:.2g} of its largest value: {cause}"]


def _on_cpu(root: nn.Module) -> nn.Module | None:
    """Return a copy with its adapters off, on the CPU; None if it cannot be made."""
    try:
        return twin_of(root).cpu()
    except (PlanError, RuntimeError):  # torch raises RuntimeError if out of memory
        return None


def _step(twin: nn.Module) -> float:
    return max(torch.finfo(p.dtype).eps for p in twin.parameters() if p.is_floating_point())


def _values(twin: nn.Module, shape: tuple[int, ...], *, seed: int = 0, scale: float = 1.0) -> Values | None:
    """Return the figures of a copy's output; empty if not finite, None if it does not run or gives no tensors."""
    parameter = next(p for p in twin.parameters() if p.is_floating_point())
    image = (_pattern(shape) * scale).to(parameter.dtype)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), kept_generators(twin):
        torch.manual_seed(seed)
        try:
            tensors = float_tensors(twin(image))
        except Exception:  # noqa: BLE001  (any error means that it does not take the image)
            return None
        values = tuple(tuple(_row(t.double().flatten())) for t in tensors[:MOST_TENSORS] if t.numel())
    finite = all(math.isfinite(value) for row in values for value in row)
    return (values or None) if finite else ()


def _pattern(shape: tuple[int, ...]) -> Tensor:
    """Return an image of values 0..1 that is the same on every machine: fractional parts of k·(√5 - 1)/2."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) * ((5**0.5 - 1) / 2)).frac().reshape(shape)


def _row(values: Tensor) -> Iterator[float]:
    samples = values[torch.linspace(0, len(values) - 1, SAMPLES).long()]
    for value in (values.mean(), values.std(correction=0), *samples):
        yield float(f"{value.item():.{DIGITS}g}")


def _difference(one: Values, other: Values) -> float:
    """Return the largest difference, as a share of the largest figure of the tensor; infinite if the counts differ."""
    if [len(row) for row in one] != [len(row) for row in other]:
        return float("inf")
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        scale = max(map(abs, a)) or 1.0
        worst = max(worst, *(abs(x - y) / scale for x, y in zip(a, b, strict=True)))
    return worst
