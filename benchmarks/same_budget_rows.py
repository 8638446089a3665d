"""The methods that `benchmarks/methods.py` compares, and their models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import lowpeft
from lowpeft.core.attachment.record import module_of
from lowpeft.ports.facts import Backbone
from lowpeft.recipes import Recipe, TrainSettings, load_recipe, override
from lowpeft.restoration.training import build_model

ATTENTION, MLP = ["**.qkv", "**.proj"], ["**.mlp.*"]
PEFT, PEFT_PACKAGE = "peft-lora", "peft"


@dataclass(frozen=True)
class Row:
    """A method: a bundled recipe at the budget, or at a size of its own.

    Attributes:
        recipe: The recipe.
        target: Layers that it changes, where all of the recipe's are too many for the smallest rank.
        sized: False for what has no size to choose; the row is then a point beside the budget.
        slower: How many places lower on `LADDER` its learning rates begin.
    """

    recipe: str
    target: Sequence[str] | None = None
    sized: bool = True
    slower: int = 0


ROWS = {
    "lora": Row("lora", target=ATTENTION),
    PEFT: Row("lora", target=ATTENTION),
    "dora": Row("dora", target=ATTENTION),
    "adalora": Row("adalora", target=ATTENTION),
    "lokr": Row("lokr"),
    "fact-tk": Row("fact-tk"),
    "convpass": Row("convpass"),
    "adaptformer": Row("adaptformer"),
    "houlsby": Row("houlsby"),
    "spatial": Row("spatial"),
    "adaptir": Row("adaptir"),
    "lora-mlp": Row("lora", target=MLP),
    "lora-all": Row("lora"),
    "ssf": Row("ssf", sized=False),
    "bitfit": Row("bitfit", sized=False),
    "ia3": Row("ia3", sized=False),
    "full": Row("full", sized=False, slower=3),
}


def row_of(name: str) -> Row:
    """A row of the table, or any other bundled recipe on all of its layers."""
    return ROWS.get(name) or Row(name)


def recipe_of(name: str, budget: str) -> Recipe:
    """The recipe of a row, with its target and the budget; statistics of batch norms stay frozen for every row."""
    row = row_of(name)
    changes: dict[str, Any] = {"freeze_statistics": True}
    if row.target:
        changes["target"] = list(row.target)
    if row.sized:
        changes["budget"] = budget
    return override(load_recipe(row.recipe), changes)


def model_of(base: Backbone, name: str, budget: str, settings: TrainSettings) -> object:
    """The model of a row that is trained: the network with its adapters."""
    recipe = replace(recipe_of(name, budget), training=settings)
    return peft_model(base, recipe, settings.seed) if name == PEFT else build_model(base, recipe)


def peft_model(base: Backbone, recipe: Recipe, seed: int) -> Backbone:
    """The network with peft's LoRA in the layers, and of the rank, that lowpeft's row has.

    In training mode, peft leaves batch norms to move their statistics; here they are held by hand.
    """
    import peft

    def hold(layer: nn.Module, _: object) -> None:
        layer.eval()

    planned = lowpeft.plan(base, recipe)
    rank = planned.recipe.adapters[0].rank
    module = module_of(base)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(hold)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=[site.path for site in planned.sites])
        peft.inject_adapter_in_model(config, module)
    return base
