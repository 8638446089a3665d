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
from lowpeft import PlanError
from lowpeft.paper.reproduce.networks import HAT_L, hat
from lowpeft.recipes import Recipe, bundled, config_to_dict, load_recipe
from lowpeft.storage import write_json

OUT = Path(__file__).resolve().parents[1] / "src" / "lowpeft" / "recipes" / "shares.json"
FROZEN = {"freeze_statistics": True}
NETWORKS = {"HAT-L x4": partial(hat, **HAT_L, upscale=4), "DCTLSA x4": partial(DCTLSA, upscale=4)}
"""By name; the defaults of DCTLSA are its published size."""


def trained(model: nn.Module, recipe: Recipe) -> int:
    """Parameters that a recipe trains on a network."""
    if recipe.from_scratch:
        return sum(parameter.numel() for parameter in model.parameters())
    return lowpeft.plan(model, recipe, **FROZEN).parameters


def counted(networks: Mapping[str, nn.Module], recipe: Recipe) -> dict[str, object]:
    """A recipe's counts, with its adapters: counts of a recipe that changed since are out of date.

    A network that lacks the recipe's places has no count.
    """
    counts = {}
    for name, model in networks.items():
        try:
            counts[name] = trained(model, recipe)
        except PlanError as error:
            if "has no place" not in error.message:
                raise
            print(f"{recipe.name}: left out {name}: {error}", flush=True)
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
