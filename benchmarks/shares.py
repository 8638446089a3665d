"""What every bundled recipe trains on HAT-L x4 and DCTLSA x4: the counts that `lowpeft recipes` shows.

    python benchmarks/shares.py

Writes src/lowpeft/recipes/shares.json, which is part of the package, in a minute. The networks have random weights and
their published sizes; planning counts. Statistics are frozen for every recipe, which changes no count: `full` as it is
would move those of DCTLSA's BatchNorms, and is refused there. Needs the extra `spandrel`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from spandrel.architectures.DCTLSA import DCTLSA
from torch import nn

import lowpeft
from common import provenance
from lowpeft.paper.reproduce.networks import HAT_L, hat
from lowpeft.recipes import Recipe, bundled, config_to_dict, load_recipe
from lowpeft.storage import write_json

OUT = Path(__file__).resolve().parents[1] / "src" / "lowpeft" / "recipes" / "shares.json"
FROZEN = {"freeze_statistics": True}
NETWORKS = {"HAT-L x4": partial(hat, **HAT_L, upscale=4), "DCTLSA x4": partial(DCTLSA, upscale=4)}
"""By name; the defaults of DCTLSA are its published size."""


def trained(model: nn.Module, recipe: Recipe) -> int | None:
    """Parameters that a recipe trains on a network; None if the network does not have what it needs."""
    if recipe.from_scratch:
        return sum(parameter.numel() for parameter in model.parameters())
    try:
        return lowpeft.plan(model, recipe, **FROZEN).parameters
    except lowpeft.PlanError as error:
        print(f"{recipe.name}: {error.message}", flush=True)
        return None


def counted(networks: Mapping[str, nn.Module], recipe: Recipe) -> dict[str, object]:
    """A recipe's counts, with its adapters: counts of a recipe that changed since are out of date."""
    known = {name: trained(model, recipe) for name, model in networks.items()}
    counts = {name: count for name, count in known.items() if count is not None}
    print(f"{recipe.name}: {counts}", flush=True)
    return {"adapters": [config_to_dict(config) for config in recipe.adapters], "trained": counts}


def main() -> None:
    warnings.filterwarnings("ignore", "torch.meshgrid")  # spandrel's HAT
    networks = {name: build().eval() for name, build in NETWORKS.items()}
    results = {
        **provenance("python benchmarks/shares.py", "spandrel"),
        "settings": FROZEN,
        "networks": {name: sum(p.numel() for p in model.parameters()) for name, model in networks.items()},
        "recipes": {name: counted(networks, load_recipe(name)) for name in bundled()},
    }
    write_json(OUT, results)


if __name__ == "__main__":
    main()
