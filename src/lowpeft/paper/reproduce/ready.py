"""Search for the row of an experiment that a ready adapter belongs to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...core.files.adapter_files import AdapterFile, read_adapter
from ...errors import LowpeftError
from ...recipes import Recipe
from ..experiments import Experiment, Row


def with_ready_row(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with only the row that has the network, scale and adapters of a saved adapter.

    Raises:
        LowpeftError: The folder does not contain an adapter; or no row or more than one fits, and all rows are listed.
    """
    adapter = read_adapter(folder)
    fitting = [row for row in experiment.rows if _fits(row, adapter)]
    if len(fitting) == 1:
        return dataclasses.replace(experiment, rows=(fitting[0],))
    network = adapter.network
    found = adapter.base.model if network is None else f"{network.family or network.architecture} x{network.scale}"
    raise LowpeftError(
        f"the adapter {folder} ({_kinds(adapter.recipe)} on {found}) must fit one row of {experiment.name!r}, and it "
        f"fits {', '.join(row.name for row in fitting) or 'none'}:",
        problems=[f"{row.name}: {_kinds(row.recipe)} on {row.network} x{row.scale}" for row in experiment.rows],
    )


def _fits(row: Row, adapter: AdapterFile) -> bool:
    network = adapter.network
    if network is None or row.network not in (network.family, network.architecture) or row.scale != network.scale:
        return False
    return row.recipe.adapters == adapter.recipe.adapters


def _kinds(recipe: Recipe) -> str:
    return " and ".join(dict.fromkeys(config.kind for config in recipe.adapters)) or "no adapters"
