"""`lowpeft methods`: a table of all kinds of adapters, for itself or for a network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .. import tables
from ..core.operations.methods import MethodRow, methods
from .common import add_weights, backbone, new_command
from .help import wrapped
from .networks import has_network
from .output import emit

_GROUPS = ("features", "tokens", "image", "weights")
_OF_A_NETWORK = ("task", "raw_weights", "allow_half", "network_set", "network_fact")
_HEADER = ("kind", "acts on", "places", "merge", "rows", "data")
_HEADER_OF_NETWORK = ("trained", "share", "kept")
_NOTES = (
    "zero when new: the tensors of a new adapter that are zero, so that it changes no bit of the network.",
    "merge: it can be written into the weights. rows: it needs the height and width of features.",
    "data: it learns its initial values from data.",
    "C: channels of features. rows, columns: output channels of a layer, and its other dimensions together.",
    "Rows have default settings. lowpeft recipes shows recipes that use the kinds, with the paper of each.",
)
_OF_NETWORK = (
    "trained: parameters with default settings, and their share of the network's. kept: bytes that a forward keeps for "
    "backward, over those of full fine-tuning, for one image."
)


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "methods",
        run,
        "show all kinds of adapters, and what each would train on a network",
        "lowpeft methods",
        "lowpeft methods --weights demo",
        "lowpeft methods --network mypackage.models:make_network --no-memory --json",
    )
    add_weights(sub)
    sub.add_argument("--no-memory", action="store_true", help="do not run the network to count the bytes it keeps")


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    asked = has_network(options) or any(getattr(options, name) for name in _OF_A_NETWORK)
    model = backbone(options, quiet=True) if asked else None  # which refuses options without a network
    if model is not None and not options.no_memory:
        print("running the network once for each kind, to count what it keeps (--no-memory does not)", file=sys.stderr)
    rows = methods(model, memory=not options.no_memory)
    ordered = sorted(rows, key=lambda row: _GROUPS.index(row.acts_on))
    notes = _NOTES if model is None else (_OF_NETWORK, *_NOTES)
    text = "\n".join([_table(ordered, model is not None), "", *map(wrapped, notes)])
    emit(options, {"methods": rows}, text)


def _table(rows: Sequence[MethodRow], on_network: bool) -> str:
    """Return the table, with a kind's number of parameters, or why it does not fit, below its row."""
    header = (*_HEADER, *(_HEADER_OF_NETWORK * on_network))
    cells = [header, *((*_cells(row), *(_on_network(row) * on_network)) for row in rows)]
    heading, *lines = tables.text(cells).splitlines()
    return "\n".join([heading, *(f"{line}\n{_below(row)}" for line, row in zip(lines, rows, strict=True))])


def _cells(row: MethodRow) -> tuple[str, ...]:
    answers = ({True: "yes", False: "no"}[answer] for answer in (row.mergeable, row.needs_rows, row.needs_data))
    return row.kind, row.acts_on, ", ".join(row.places) or "needs a target", *answers


def _on_network(row: MethodRow) -> tuple[str, ...]:
    if row.trained is None or row.share is None:
        return (tables.NOTHING,) * len(_HEADER_OF_NETWORK)
    return f"{row.trained:,}", f"{100 * row.share:.2f} %", tables.NOTHING if row.kept is None else f"{row.kept:.2f}"


def _below(row: MethodRow) -> str:
    size = f"; sized by {row.sized_by}" if row.sized_by else "; of fixed size"
    views = f"; mixes {row.views} views" if row.views > 1 else ""
    zero = f"; zero when new: {', '.join(row.zero)}" if row.zero else ""
    text = wrapped(f"  parameters: {row.parameters or 'not stated'}{size}{zero}{views}")
    return text if row.problem is None else f"{text}\n{wrapped(f'  does not fit: {row.problem}')}"
