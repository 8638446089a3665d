"""Which cases of a test the default tier runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

SORTS = ("full", "lora", "spatial", "stereo", "prefix", "lst")
"""One kind of each sort: on weights, whole or as a product; on features, of a view or of all; on tokens; aside."""


def by_default(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values as parameters of a test: those in `kept` in the default tier, the others in the slow one.

    A tuple is the values of several parameters.
    """
    values = list(values)
    strangers = [value for value in kept if value not in values]
    if strangers:
        raise ValueError(f"not among the cases: {strangers}")
    rows = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    return [pytest.param(*row, marks=[] if value in kept else [pytest.mark.slow]) for value, row in rows]
