"""Budgets of trained parameters: a share of the network's parameters, or a number."""

from __future__ import annotations

import math
import re

from ..errors import PlanError

Budget = str | float | int


def parameters_of(budget: Budget, base: int) -> float:
    """Return the number of trained parameters that a budget allows.

    Args:
        budget: A share as text ("1%") or as a fraction above 0 and below 1 (0.01), or a whole number of parameters.
        base: Number of parameters of the frozen network.

    Raises:
        PlanError: The budget is none of these.
    """
    if isinstance(budget, str) and (percent := re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", budget)):
        number = float(percent[1]) / 100 * base
    elif type(budget) is int or (isinstance(budget, str) and re.fullmatch(r"\s*[0-9_]+\s*", budget)):
        number = int(budget)
    elif type(budget) is float and 0 < budget < 1:
        number = budget * base
    else:
        number = 0
    if not (0 < number < math.inf):
        raise PlanError(
            f'budget must be a share like "1%" or 0.01, or a whole number of trained parameters, not {budget!r}'
        )
    return number
