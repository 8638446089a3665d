"""A few figures of what a base computes, which tell what no weight does: a value range, a padding mode, an activation.

They are taken on the CPU, from a copy, on one image that is the same everywhere.
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
"""What other processors and versions of torch may change, of the largest figure of a tensor, …"""
STEPS = 4
"""… and so many steps of the dtype, in which weights and features are rounded."""

COARSEST = 0.25
"""The largest step that a dtype of weights has (float8_e5m2)."""

MOST_TENSORS = 4
SAMPLES = 4
DIGITS = 7

Values = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a base gives for the fixed image.

    Attributes:
        shape: N,C,H,W of the image.
        step: Of the coarsest dtype among its parameters (its `eps`).
        values: For each of the first tensors of the output its mean, its standard deviation and some of its values.
    """

    shape: tuple[int, ...]
    step: float
    values: Values

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def figures_from_dict(values: object) -> Figures:
    """The inverse of `Figures.as_dict`.

    Raises:
        AdapterError: These are no figures.
    """
    try:
        shape, step, rows = (values[key] for key in ("shape", "step", "values"))  # type: ignore[index]
        found = Figures(shape=tuple(shape), step=float(step), values=tuple(tuple(map(float, row)) for row in rows))
        numbers = [found.step, *(value for row in found.values for value in row)]
        if not all(map(math.isfinite, numbers)) or not 0 < found.step <= COARSEST:
            raise ValueError(f"step {found.step}, or a figure that is not finite")
        right = len(found.shape) == 4 and all(type(n) is int and 0 < n <= max(map(max, SIZES_PX)) for n in found.shape)
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"the record of its base's output is not what lowpeft writes: {error}") from error
    if not right:
        raise AdapterError(f"the record of its base's output is for no image: {shape}")
    return found


def figures_of(root: nn.Module, facts: Facts) -> Figures | None:
    """The figures of a network, adapted or not; None where there are none.

    It may not take an image, or give no two outputs alike, or there is no memory for a copy, which must keep nobody
    from saving.

    Args:
        root: The network.
        facts: That are known of it: channels and sides that it takes.
    """
    twin = _on_cpu(root)
    if twin is None:
        return None
    for example in examples(twin, batch=1, facts=facts, sizes=(LEAST_PX, *SIZES_PX)):
        shape = tuple(example.first.shape)
        values = _values(twin, shape)
        if values:
            # Noise, and choices that a rounding turns over, would be another output on every machine.
            again = _values(twin, shape, seed=1, scale=1 + 2**-20)
            steady = again and _difference(values, again) < max(TOLERANCE / 2, _step(twin))
            return Figures(shape=shape, step=_step(twin), values=values) if steady else None
    return None


def other_figures(expected: Figures, root: nn.Module, rounded: torch.dtype | None = None) -> list[str]:
    """What a network's output differs in from that of the base in a file, as lines for people.

    Nothing is said of a network that cannot be copied, or does not run on the CPU or on this image.

    Args:
        expected: From an adapter file.
        root: The network.
        rounded: To which dtype one of the two had its weights rounded, whatever it holds them in.
    """
    if (twin := _on_cpu(root)) is None or (found := _values(twin, expected.shape)) is None:
        return []
    if not found:
        return [
            "the weights are the same, but the output for one image holds NaN or infinity, and that of its base none"
        ]
    difference = _difference(expected.values, found)
    steps = (expected.step, _step(twin), 0.0 if rounded is None else torch.finfo(rounded).eps)
    if difference <= max(TOLERANCE, STEPS * max(steps)):
        return []
    text = (
        f"the weights are the same, but the output for one image differs by {difference:.2g} of its largest value: "
        "something that is no weight is another (value range, padding, activation, a constant)"
    )
    return [text]


def _on_cpu(root: nn.Module) -> nn.Module | None:
    """A copy without adapters; None where there can be none."""
    try:
        return twin_of(root).cpu()
    except (PlanError, RuntimeError):  # torch's error for no memory is a RuntimeError
        return None


def _step(twin: nn.Module) -> float:
    return max(torch.finfo(p.dtype).eps for p in twin.parameters() if p.is_floating_point())


def _values(twin: nn.Module, shape: tuple[int, ...], *, seed: int = 0, scale: float = 1.0) -> Values | None:
    """The figures of a copy's output; empty where they are not finite, None where it does not run or gives none."""
    parameter = next(p for p in twin.parameters() if p.is_floating_point())
    image = (_pattern(shape) * scale).to(parameter.dtype)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), kept_generators(twin):
        torch.manual_seed(seed)
        try:
            tensors = float_tensors(twin(image))
        except Exception:  # noqa: BLE001  (whatever a network raises for an image that it does not take)
            return None
        found = tuple(tuple(_row(t.double().flatten())) for t in tensors[:MOST_TENSORS] if t.numel())
    finite = all(math.isfinite(value) for row in found for value in row)
    return (found or None) if finite else ()


def _pattern(shape: tuple[int, ...]) -> Tensor:
    """An image of values 0..1 that is the same on every machine: the fractions of multiples of the golden ratio."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) * ((5**0.5 - 1) / 2)).frac().reshape(shape)


def _row(values: Tensor) -> Iterator[float]:
    samples = values[torch.linspace(0, len(values) - 1, SAMPLES).long()]
    for value in (values.mean(), values.std(correction=0), *samples):
        yield float(f"{value.item():.{DIGITS}g}")


def _difference(one: Values, other: Values) -> float:
    """The largest difference, as a share of the largest figure of the same tensor; infinite for other tensors."""
    if [len(row) for row in one] != [len(row) for row in other]:
        return float("inf")
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        scale = max(map(abs, a)) or 1.0
        worst = max(worst, *(abs(x - y) / scale for x, y in zip(a, b, strict=True)))
    return worst
