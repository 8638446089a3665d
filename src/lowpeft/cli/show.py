"""`lowpeft plan` and `lowpeft info`: read-only commands that print a plan or an adapter."""

from __future__ import annotations

import argparse
from typing import Any

from .. import tables
from ..core.files.adapter_files import read_adapter
from ..core.planning.plan import plan
from ..kinds import get_kind
from .common import add_recipe, backbone, changes, new_command


def add_to(commands: Any) -> None:
    """Add both commands to the parser."""
    sub = new_command(
        commands,
        "plan",
        run_plan,
        "show where a recipe's adapters would go, and how many parameters they train",
        "lowpeft plan stereo --weights demo --set every=1",
    )
    add_recipe(sub)
    sub = new_command(commands, "info", run_info, "show what is in an adapter folder", "lowpeft info my-adapter")
    sub.add_argument("folder", help="an adapter folder")


def run_plan(options: argparse.Namespace) -> None:
    """Print the plan."""
    print(plan(backbone(options, quiet=True), options.recipe, **changes(options)))


def run_info(options: argparse.Namespace) -> None:
    """Print a summary of the adapter folder."""
    adapter = read_adapter(options.folder)
    kinds: dict[str, list[int]] = {}
    settings: dict[str, set[str]] = {}
    for site in adapter.sites:
        row = kinds.setdefault(site.config.kind, [0, 0])
        row[0] += 1
        row[1] += site.parameters
        settings.setdefault(f"{site.config.kind} settings", set()).add(site.config.settings)
    needs_data = any(get_kind(site.config.kind).needs_data(site.config) for site in adapter.sites)
    size = sum(t.numel() * t.element_size() for t in adapter.tensors.values())
    rows = {
        "recipe": f"{adapter.recipe.name}: {adapter.recipe.summary}",
        "written by": f"lowpeft {adapter.config['lowpeft']}",
        **({"calibrated": "yes" if adapter.calibrated else "no"} if needs_data else {}),
        **{kind: f"{sites} sites, {count:,} parameters" for kind, (sites, count) in kinds.items()},
        **{name: "; ".join(sorted(texts)) for name, texts in settings.items() if any(texts)},
        "tensors": f"{len(adapter.tensors)}, {size / 1e6:.2f} MB",
        "base": f"{adapter.base.model}, {adapter.base.parameters:,} parameters",
        "base structure": adapter.base.structure,
        "base weights": adapter.base.weights,
    }
    rows |= {name if name not in rows else f"fact: {name}": str(value) for name, value in adapter.facts.items()}
    print(tables.text(list(rows.items())))
