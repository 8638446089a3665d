"""Search for the row of an experiment that a ready adapter belongs to."""

from __future__ import annotations

from pathlib import Path

from ...core.files.contents import AdapterFile
from ...core.files.reading import read_adapter
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
        return experiment.with_rows(fitting)
    base = adapter.network
    network = adapter.base.model if base is None else f"{base.family or base.architecture} x{base.scale}"
    names = ", ".join(row.name for row in fitting) or "none"
    raise LowpeftError(
        f"the adapter {folder} has {_kinds(adapter.recipe)} on {network}; it must fit exactly one row of "
        f"{experiment.name!r}, but it fits {names}:",
        problems=[f"{row.name}: {_kinds(row.recipe)} on {row.network} x{row.scale}" for row in experiment.rows],
    )


def _fits(row: Row, adapter: AdapterFile) -> bool:
    network = adapter.network
    if network is None or row.network not in (network.family, network.architecture) or row.scale != network.scale:
        return False
    return row.recipe.adapters == adapter.recipe.adapters


def _kinds(recipe: Recipe) -> str:
    return " and ".join(dict.fromkeys(config.kind for config in recipe.adapters)) or "no adapters"
