"""`lowpeft plan` and `lowpeft info`: read-only commands that print a plan or an adapter."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .. import tables
from ..core.files.contents import TENSORS, AdapterFile
from ..core.files.hub.client import is_on_hub
from ..core.files.hub.pulling import pull
from ..core.files.reading import read_adapter
from ..core.planning.plan import Plan, plan
from ..core.planning.site_values import facts_to_dict
from ..core.planning.sites import Site
from ..errors import LowpeftError, printable
from ..kinds import get_kind
from ..ports.facts import literal
from ..recipes import config_to_dict, recipe_to_dict
from .common import add_recipe, backbone, changes, new_command
from .output import emit

CLAIMED = "What its author says; nothing checks it:"


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
        "lowpeft info owner/name --subfolder x4/noise",
        "lowpeft info runs/denoise --json",
    )
    sub.add_argument(
        "folder",
        help="folder of an adapter, or of a run, which may have written a network instead; or a Hub repository "
        "owner/name",
    )
    sub.add_argument("--revision", metavar="NAME", help="commit, tag or branch of the Hub repository")
    sub.add_argument("--subfolder", metavar="PATH", help="folder of the adapter in the Hub repository")


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

    folder = _folder(options)
    path = folder / NETWORK
    is_network = path.is_file() and not (folder / TENSORS).is_file()
    figures, rows, claims = _of_network(path) if is_network else _of_adapter(read_adapter(folder))
    cells = [(name, printable(value)) for name, value in rows.items()]
    said = [(printable(name), printable(value)) for name, value in (claims | figures["facts"]).items()]
    blocks = [tables.text(cells), *([f"{CLAIMED}\n{tables.text(said)}"] if said else [])]
    emit(options, {"folder": folder, **figures}, "\n\n".join(blocks))


def _folder(options: argparse.Namespace) -> Path:
    """Return the folder that is named, or the one in the cache that a Hub repository was fetched to."""
    hub = {"revision": options.revision, "subfolder": options.subfolder}
    return pull(options.folder, **hub).folder if is_on_hub(options.folder, **hub) else Path(options.folder)


def _of_network(path: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Return what is in the `network.safetensors` of a run of recipe `scratch`, and how it is opened.

    Figures, rows, and rows that its author alone vouches for.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  (not a dict)
            facts = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LowpeftError(f"{path} cannot be read: {error}") from error
    elements, size = sum(map(math.prod, shapes)), path.stat().st_size
    figures = {
        "network": path,
        "tensors": {"count": len(shapes), "elements": elements, "bytes": size},
        "facts": facts,
    }
    rows = {
        "network": f"{path.name}: all weights of a network, no adapter",
        "tensors": f"{len(shapes)} of {elements:,} elements, {size / 1e6:.2f} MB",
        "in Python": f"lowpeft.load_backbone({literal(str(path))})",
        "in commands": f"--weights {path}",
        "of a network of your own": "also network=… in Python, --network MODULE:FUNCTION in commands",
    }
    return figures, rows, {}


def _of_adapter(adapter: AdapterFile) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Return what is in an adapter folder: figures for JSON, rows, and rows that its author alone vouches for."""
    kinds: dict[str, list[Site]] = {}
    for site in adapter.sites:
        kinds.setdefault(site.config.kind, []).append(site)
    needs_data = any(get_kind(site.config.kind).needs_data(site.config) for site in adapter.sites)
    settings = {
        kind: "; ".join(sorted({site.config.settings for site in sites} - {""})) for kind, sites in kinds.items()
    }
    tensors = {
        "count": len(adapter.tensors),
        "elements": sum(tensor.numel() for tensor in adapter.tensors.values()),
        "bytes": adapter.size_bytes,
    }
    figures = {
        "recipe": recipe_to_dict(adapter.recipe),
        "lowpeft": adapter.config["lowpeft"],
        "calibrated": adapter.calibrated if needs_data else None,
        "parameters": sum(site.parameters for site in adapter.sites),
        "kinds": {kind: _kind_figures(sites) for kind, sites in kinds.items()},
        "tensors": tensors,
        "base": {name: getattr(adapter.base, name) for name in ("model", "parameters", "structure", "weights")},
        "network": None if adapter.network is None else facts_to_dict(adapter.network),
        "about": adapter.about.as_dict(),
        "facts": adapter.facts,
    }
    counted = {kind: (len(sites), sum(site.parameters for site in sites)) for kind, sites in kinds.items()}
    rows = {
        **{kind: f"{sites} site{'s' * (sites > 1)}, {count:,} parameters" for kind, (sites, count) in counted.items()},
        **{f"{kind} settings": text for kind, text in settings.items() if text},
        "tensors": f"{tensors['count']}, {tensors['bytes'] / 1e6:.2f} MB, as their checksum says",
        "base": f"{adapter.base.model}, {adapter.base.parameters:,} parameters",
        "base structure": adapter.base.structure,
        "base weights": adapter.base.weights,
    }
    about = adapter.about
    said = {
        "what it is for": about.summary,
        "licence": about.license,
        "base from": about.base_model,
        "data sets": ", ".join(about.datasets),
        "results on": ", ".join(result.data for result in about.results),
    }
    claims = {
        "recipe": f"{adapter.recipe.name}: {adapter.recipe.summary}",
        "written by": f"lowpeft {adapter.config['lowpeft']}",
        **{name: text for name, text in said.items() if text},
        **({"calibrated": "yes" if adapter.calibrated else "no"} if needs_data else {}),
    }
    return figures, rows, claims


def _kind_figures(sites: Sequence[Site]) -> dict[str, Any]:
    """Return the sites of one kind of adapter, and the different settings that they have, as figures."""
    settings = [config_to_dict(config) for config in dict.fromkeys(site.config for site in sites)]
    return {
        "settings": [{name: value for name, value in each.items() if name != "kind"} for each in settings],
        "parameters": sum(site.parameters for site in sites),
        "sites": [{"path": site.path, "stage": site.stage, "parameters": site.parameters} for site in sites],
    }
