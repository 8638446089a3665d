"""Listening to feature adapters: copies of a network whose adapters pass on the features that they read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ...kinds import FeatureAdapter, TokenAdapter
from ...ports.layouts import Features
from ..attachment.changes import one_at_a_time
from ..attachment.copies import copy_in_force
from ..attachment.record import module_of, pieces, unwrap

Hear = Callable[[str, str, FeatureAdapter, Features], None]
"""Function that gets the adapter's name, the path of its site, the adapter at this site, and what it reads."""


@one_at_a_time
def listening_copy(model: object, hear: Hear) -> nn.Module:
    """Return a copy of an adapted model, in eval mode, whose feature adapters call `hear` each time before they act.

    The setting in force here is the copy's; adapters that are off do not act. The model itself is not touched. Large
    features come in parts of some image rows, in order, where the adapters are `row_local`.

    Raises:
        PlanError: The model has no adapters, or cannot be copied.
    """
    unwrap(model)
    twin = copy_in_force(module_of(model)).eval()
    for name, site, adapter in pieces(unwrap(twin)):
        if isinstance(adapter, FeatureAdapter):
            listen(adapter, functools.partial(hear, name, site, adapter))
    return twin


def listen(adapter: FeatureAdapter, hear: Callable[[Features], None]) -> None:
    """Make a feature adapter of a copy call `hear` with the features that it reads, each time before it acts."""
    method = "tokens" if isinstance(adapter, TokenAdapter) else "delta"
    plain = getattr(adapter, method)

    def show(features: Features) -> Any:
        hear(features)
        return plain(features)

    adapter.__dict__[method] = show
