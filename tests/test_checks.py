"""Checks of plain values."""

from __future__ import annotations

import math

import pytest

from lowpeft import checks


@pytest.mark.parametrize("value", [1, 7])
def test_whole_numbers_pass(value: int) -> None:
    assert checks.whole("steps", value, least=1) == []


@pytest.mark.parametrize("value", [0, 1.0, True, "1", None, math.nan])
def test_what_is_no_whole_number_is_named(value: object) -> None:
    assert checks.whole("steps", value, least=1) == [f"steps must be a whole number of at least 1, not {value!r}"]


@pytest.mark.parametrize("value", [0, 0.5, 10**300])
def test_numbers_pass(value: float) -> None:
    assert checks.number("rate", value, least=0) == []


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, 10**400, True, "1", None])
def test_what_is_no_number_is_named(value: object) -> None:
    assert checks.number("rate", value, least=0) == [f"rate must be a number of at least 0, not {value!r}"]
    assert checks.number("rate", value, above=0) == [f"rate must be a number above 0, not {value!r}"]


def test_a_choice_names_the_nearest() -> None:
    assert checks.one_of("loss", "l1", ("l1", "mse")) == []
    assert checks.one_of("loss", "mze", ("l1", "mse")) == [
        "loss must be one of l1, mse, not 'mze' (did you mean 'mse'?)"
    ]
    assert checks.one_of("loss", 3, ("l1", "mse")) == ["loss must be one of l1, mse, not 3"]
