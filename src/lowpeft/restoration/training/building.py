"""Building and saving of models: apply a recipe, reinitialise a network, write a whole network's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...backbones.networks import EDT
from ...core.attachment.record import module_of, unwrap
from ...core.operations.adapt import adapt
from ...core.operations.merging import merge
from ...errors import PlanError, TrainingError
from ...ports.facts import Backbone
from ...recipes import Recipe
from ...storage import new_file

NETWORK = "network.safetensors"


def build_model(model: object, recipe: Recipe) -> nn.Module | Backbone:
    """Build the model that a recipe trains: the network with new adapters or, from scratch, with new weights.

    Args:
        model: Network (a `Backbone` or a module); changed in place.
        recipe: Recipe. Its `training.seed` determines the weights; the global random state is unchanged.

    Returns:
        The adapted model, as returned by `lowpeft.adapt`; for a recipe from scratch, the given network (a `Backbone`
        with its facts, or the module).

    Raises:
        PlanError: The recipe does not fit, or the network cannot be rebuilt. The network is unchanged.
    """
    if recipe.from_scratch:
        module = module_of(model)
        reinitialise(module, recipe.training.seed)
        return model if isinstance(model, Backbone) else module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return adapt(model, recipe)


def reinitialise(module: nn.Module, seed: int) -> None:
    """Replace a network's weights, in place, by new ones from its constructor.

    Args:
        module: lowpeft's EDT, or a network of spandrel; these store the arguments of their constructor.
        seed: Seed of the weights.

    Raises:
        PlanError: The arguments of the constructor are unknown, or the network's tensors differ from a new one's (e.g.
            it is adapted). The network is unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = _twin(module).state_dict()
    if fresh.keys() != module.state_dict().keys():
        raise PlanError(f"this {type(module).__name__} has other tensors than a new one: it was changed, or is adapted")
    module.load_state_dict(fresh)


def _twin(module: nn.Module) -> nn.Module:
    if isinstance(module, EDT):
        return EDT(module.config)
    arguments = getattr(module, "hyperparameters", None)  # set by spandrel
    if not isinstance(arguments, dict):
        raise PlanError(
            f"{type(module).__name__} does not say how it was built, so it cannot be built anew: "
            "build it yourself, and pass it to lowpeft.restoration.training.train"
        )
    return type(module)(**arguments)


def save_merged(model: object, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write the network with its adapters merged into the weights; the model is unchanged.

    Raises:
        PlanError: Some adapters cannot be merged.
        TrainingError: The file cannot be written.
    """
    merged = copy.deepcopy(unwrap(model))
    report = merge(merged)
    if report.kept:
        raise PlanError(f"a network of its own cannot be written: {report}")
    return save_network(merged, folder, facts=facts)


def save_network(module: nn.Module, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write a network's weights to `network.safetensors`, in one step; `lowpeft.load_backbone` reads it.

    Raises:
        TrainingError: The file cannot be written; an existing one is unchanged.
    """
    path = folder / NETWORK
    tensors: dict[str, Tensor] = {k: t.detach().cpu().contiguous().clone() for k, t in module.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            save_file(tensors, temporary, {key: str(value) for key, value in facts.items()})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write the network to {path}: {error}") from error
    return path
