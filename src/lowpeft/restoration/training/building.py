"""Before and after training: what a recipe trains, new weights for a network, and the checkpoint of a whole network."""

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
    """Make what a recipe trains: the network with the recipe's adapters, or with new weights, by the recipe's seed.

    Args:
        model: The network (a `Backbone` or a module), which is changed in place.
        recipe: Its `training.seed` counts, and nobody's random numbers are touched.

    Returns:
        The adapted model, as `lowpeft.adapt` gives it; for a recipe from scratch the network as it was given, with its
        facts.

    Raises:
        PlanError: The recipe does not fit, or the network cannot be built anew; it is as it was.
    """
    if recipe.from_scratch:
        module = module_of(model)
        reinitialise(module, recipe.training.seed)
        return model if isinstance(model, Backbone) else module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return adapt(model, recipe)


def reinitialise(module: nn.Module, seed: int) -> None:
    """Give a network the weights that its own constructor draws, in place.

    Args:
        module: lowpeft's EDT or a network of spandrel; these know how they were built.
        seed: Of the weights.

    Raises:
        PlanError: It does not say how it was built, or carries adapters; it is as it was.
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
    arguments = getattr(module, "hyperparameters", None)  # spandrel's networks keep their constructor's arguments there
    if not isinstance(arguments, dict):
        raise PlanError(
            f"{type(module).__name__} does not say how it was built, so it cannot be built anew: "
            "build it yourself, and pass it to lowpeft.restoration.training.train"
        )
    return type(module)(**arguments)


def save_merged(model: object, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write the network with its adapters folded in; the model is left as it is.

    Raises:
        PlanError: Some adapters are not linear in a weight.
        TrainingError: It cannot be written.
    """
    merged = copy.deepcopy(unwrap(model))
    report = merge(merged)
    if report.kept:
        raise PlanError(f"a network of its own cannot be written: {report}")
    return save_network(merged, folder, facts=facts)


def save_network(module: nn.Module, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write a network's weights as `network.safetensors`, in one step; `lowpeft.load_backbone` opens it.

    Raises:
        TrainingError: It cannot be written; what was there is as it was.
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
