"""`lowpeft plan` and `lowpeft info`: read-only commands that print a plan or an adapter."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .. import tables
from ..core.files.adapter_files import TENSORS, read_adapter
from ..core.planning.plan import Plan, plan
from ..errors import LowpeftError
from ..kinds import get_kind
from ..ports.facts import literal
from ..recipes import recipe_to_dict
from .common import add_recipe, backbone, changes, new_command
from .output import emit


def add_to(commands: Any) -> None:
    """Add both commands to the parser."""
    sub = new_command(
        commands,
        "plan",
        run_plan,
        "show where a recipe's adapters would go, and how many parameters they train",
        "lowpeft plan stereo --weights demo --set every=1",
        "lowpeft plan lora --weights denoiser.safetensors --budget 1%",
        "lowpeft plan my-recipe.toml --network mypackage.models:make_network --network-set width=32",
    )
    add_recipe(sub)
    sub = new_command(
        commands,
        "info",
        run_info,
        "show what is in the folder of an adapter or a run",
        "lowpeft info my-adapter",
        "lowpeft info runs/denoise --json",
    )
    sub.add_argument("folder", help="folder of an adapter, or of a run, which may have written a network instead")


def run_plan(options: argparse.Namespace) -> None:
    """Print the plan."""
    found = plan(backbone(options, quiet=True), options.recipe, **changes(options))
    emit(options, _plan_figures(found), found)


def _plan_figures(found: Plan) -> dict[str, object]:
    """Return a plan as figures: the network's facts, the recipe, and a row for each site."""
    sites = [
        {
            "kind": site.config.kind,
            "stage": site.stage,
            "path": site.path,
            "class": site.module,
            "shape": site.shape,
            "parameters": site.parameters,
        }
        for site in found.sites
    ]
    return {
        "network": {**found.facts.values, "class": found.model, "parameters": found.base_parameters},
        "recipe": recipe_to_dict(found.recipe),
        "parameters": found.parameters,
        "sites": sites,
        "notes": found.notes,
    }


def run_info(options: argparse.Namespace) -> None:
    """Print a summary of the adapter in a folder, or of the network that a run without adapters wrote there."""
    from ..restoration.training import NETWORK

    folder = Path(options.folder)
    path = folder / NETWORK
    rows = _network_rows(path) if path.is_file() and not (folder / TENSORS).is_file() else _adapter_rows(folder)
    emit(options, {"folder": folder, **rows}, tables.text(list(rows.items())))


def _network_rows(path: Path) -> dict[str, str]:
    """Return what is in the `network.safetensors` of a run of recipe `scratch`, and how it is opened."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  (not a dict)
            facts = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LowpeftError(f"{path} cannot be read: {error}") from error
    rows = {
        "network": f"{path.name}: all weights of a network, no adapter",
        "tensors": f"{len(shapes)} of {sum(map(math.prod, shapes)):,} elements, {path.stat().st_size / 1e6:.2f} MB",
        "in Python": f"lowpeft.load_backbone({literal(str(path))})",
        "in commands": f"--weights {path}",
        "of a network of your own": "also network=… in Python, --network MODULE:FUNCTION in commands",
    }
    return rows | _facts(facts, rows)


def _facts(facts: Mapping[str, object], rows: Mapping[str, str]) -> dict[str, str]:
    """Return facts as rows, which never replace others."""
    return {name if name not in rows else f"fact: {name}": str(value) for name, value in facts.items()}


def _adapter_rows(folder: Path) -> dict[str, str]:
    adapter = read_adapter(folder)
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
    return rows | _facts(adapter.facts, rows)
