"""Budgets of trained parameters: a share of the network's parameters, or a number."""

from __future__ import annotations

import re

from ..errors import PlanError

Budget = str | float | int


def parameters_of(budget: Budget, base: int) -> float:
    """Return the number of trained parameters that a budget allows.

    Args:
        budget: A share as text ("1%", at most "100%") or as a fraction above 0 and below 1 (0.01), or a whole number
            of parameters.
        base: Number of parameters of the frozen network.

    Raises:
        PlanError: The budget is none of these.
    """
    if isinstance(budget, str) and (percent := re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]*)?|\.[0-9]+)\s*%\s*", budget)):
        share = float(percent[1]) / 100
        number = share * base if share <= 1 else 0
    elif type(budget) is int:
        number = budget
    elif type(budget) is float and 0 < budget < 1:
        number = budget * base
    else:
        number = 0
    if not 0 < number < 1e18:
        raise PlanError(
            f'budget must be a share like "1%" or 0.01, or a whole number of trained parameters, not {budget!r}'
        )
    return number
