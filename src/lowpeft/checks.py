"""Checks of plain values (settings, configs, files); each returns its problems, so that a caller can list all."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Collection

from .errors import did_you_mean


def is_whole(value: object, *, least: int) -> bool:
    """Return whether a value is an integer, not a bool, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def plain_whole(value: object) -> int | None:
    """Return an integer of any library (NumPy, torch), or a bool, as Python's int; None for anything else."""
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        return None


def is_number(value: object, *, above: float) -> bool:
    """Return whether a value is a number that a finite float can hold, not a bool, greater than `above`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value <= sys.float_info.max


def whole(name: str, value: object, *, least: int) -> list[str]:
    """Check an integer, e.g. "steps must be a whole number of at least 1, not 2.5"."""
    return [] if is_whole(value, least=least) else [f"{name} must be a whole number of at least {least}, not {value!r}"]


def number(name: str, value: object, *, above: float | None = None, least: float | None = None) -> list[str]:
    """Check a finite number that is greater than `above`, or at least `least`."""
    bound = f" above {above:g}" if above is not None else "" if least is None else f" of at least {least:g}"
    fits = is_number(value, above=-math.inf if above is None else above)
    if fits and (least is None or value >= least):  # type: ignore[operator]
        return []
    return [f"{name} must be a number{bound}, not {value!r}"]


def one_of(name: str, value: object, known: Collection[str]) -> list[str]:
    """Check a choice, e.g. "loss must be one of l1, mse, not 'l2'"."""
    if isinstance(value, str) and value in known:
        return []
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    return [f"{name} must be one of {', '.join(known)}, not {value!r}{near}"]
