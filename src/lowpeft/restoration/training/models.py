"""The model of a run: build it from a recipe, find its trained parameters, save the result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...backbones.networks import EDT
from ...core.attachment.record import is_adapted, module_of, pieces, record_of, unwrap
from ...core.files.contents import TENSORS
from ...core.files.reading import read_adapter
from ...core.files.saving import refuse_strangers, save_adapter
from ...core.operations.adapt import adapt
from ...core.operations.merging import merged_copy
from ...core.operations.state import adapter_parameters
from ...errors import PlanError, TrainingError
from ...ports.facts import Backbone
from ...recipes import Recipe, TrainSettings
from ...storage import new_file
from .checkpoint import checkpoints

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
        reinitialise(model, recipe.training.seed)
        return model if isinstance(model, Backbone) else module_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return adapt(model, recipe)


def reinitialise(model: object, seed: int) -> None:
    """Replace a network's weights, in place, by new ones from its constructor.

    Args:
        model: lowpeft's EDT, or a network of spandrel; these store the arguments of their constructor. Or a `Backbone`
            that says how to build another one (`--network`).
        seed: Seed of the weights.

    Raises:
        PlanError: It is not known how the network is built, a new one has the same weights under every seed, or its
            tensors differ from a new one's (e.g. it is adapted). The network is unchanged.
    """
    module = module_of(model)
    build = _builder(model, module)
    new, other = (_built(build, each) for each in (seed, seed + 1))
    if new is module:
        raise PlanError(f"the function that builds {type(module).__name__} returns the same network each time")
    drawn = [(a, b) for a, b in zip(new.parameters(), other.parameters(), strict=False) if a.numel() > 1]
    if drawn and all(torch.equal(a, b) for a, b in drawn):
        raise PlanError(
            f"the function that builds {type(module).__name__} gives it the same weights under every seed, so they are "
            "not new: it loads them, or sets a seed of its own. Name a function that does neither"
        )
    if new.state_dict().keys() != module.state_dict().keys():
        raise PlanError(
            f"this {type(module).__name__} has other tensors than a new one: it was changed or adapted; load it again"
        )
    module.load_state_dict(new.state_dict())


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _builder(model: object, module: nn.Module) -> Callable[[], nn.Module]:
    """Return the function that builds another network like the given one."""
    if isinstance(model, Backbone) and model.making is not None and model.making.anew is not None:
        return model.making.anew
    arguments = {"config": module.config} if isinstance(module, EDT) else getattr(module, "hyperparameters", None)
    if not isinstance(arguments, dict):  # spandrel sets `hyperparameters`
        raise PlanError(
            f"{type(module).__name__} does not store the arguments of its constructor, so it cannot be built again: on "
            "the command line, give --network MODULE:FUNCTION; in Python, give it new weights yourself, and pass it to "
            "lowpeft.restoration.training.train"
        )
    return functools.partial(type(module), **arguments)


def trained_parameters(model: object) -> dict[str, nn.Parameter]:
    """Return what is trained, by name: adapter parameters of an adapted model, any parameter of another network.

    Parameters that require no gradient are left out.

    Raises:
        TrainingError: No parameter requires a gradient, or one of the network contains NaN.
    """
    module = module_of(model)
    named = adapter_parameters(module) if is_adapted(module) else module.named_parameters()
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    if not trained:
        raise TrainingError(f"{type(module).__name__} has no parameter that requires a gradient")
    if wrong := [
        f"{name} contains NaN or infinity" for name, p in module.named_parameters() if not bool(p.isfinite().all())
    ]:
        raise TrainingError(
            f"the weights of this {type(module).__name__} are not finite; load them again:", problems=wrong
        )
    return trained


def check_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that every trained parameter has a gradient; others would be saved untrained, as if they were trained.

    Raises:
        TrainingError: Some parameters have no gradient; they are listed.
    """
    if missing := [name for name, parameter in parameters.items() if parameter.grad is None]:
        raise TrainingError(
            f"{len(missing)} of {len(parameters)} trained tensors get no gradient. Either something cuts them off, "
            "e.g. torch.no_grad() inside the network, or lowpeft.using; or they are on layers that this task does not "
            "use: exclude these in the recipe's target. lowpeft.check_trainable(model) finds them before training:",
            problems=missing,
        )


def trained_name(model: object) -> str | None:
    """Return the name of the adapter that is trained, beside frozen ones; None for a network without adapters.

    Raises:
        PlanError: Several adapters are trained, but a folder stores one.
    """
    trained = _trained_names(model)
    if len(trained) > 1:
        raise PlanError(
            f"the adapters {', '.join(sorted(trained))} would be trained together, but a folder stores one: freeze the "
            "others, `for _, p in lowpeft.adapter_parameters(model, name=…): p.requires_grad_(False)`"
        )
    return next(iter(trained), None)


def record_settings(model: object, settings: TrainSettings) -> None:
    """Note the settings in the recipes of the adapters that are trained, in place of those the recipes came with."""
    plans = record_of(unwrap(model)).plans if is_adapted(model) else {}
    for name in _trained_names(model):
        plans[name] = replace(plans[name], recipe=replace(plans[name].recipe, training=settings))


def _trained_names(model: object) -> set[str]:
    parts = pieces(unwrap(model)) if is_adapted(model) else []
    return {name for name, _, piece in parts if any(p.requires_grad for p in piece.parameters())}


def check_folder(folder: Path, *, resume: bool, model: object = None) -> None:
    """Check that training into a folder overwrites nothing.

    Args:
        folder: The folder.
        resume: True to continue the run in it.
        model: The model, if it is known already.

    Raises:
        AdapterError: The folder contains a README.md, say, that is of no adapter.
        TrainingError: The folder contains a run and `resume` is False, or a result without a checkpoint.
    """
    runs = checkpoints(folder)
    if runs and not resume:
        raise TrainingError(
            f"{folder} contains a run at {runs[-1].name}: continue it with resume=True (--resume), or choose another "
            "folder"
        )
    if not runs and (results := [path.name for name in (TENSORS, NETWORK) for path in folder.glob(name)]):
        raise TrainingError(
            f"{folder} contains {results[0]}, which training would overwrite, and no checkpoint to resume from: choose "
            "another folder"
        )
    if model is not None and is_adapted(model):
        refuse_strangers(folder)


def save_product(model: object, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write the result of training in one step: the adapter, or the weights of a network without adapters.

    Raises:
        LowpeftError: As for `save_adapter` and `save_network`.
    """
    if is_adapted(model):
        return save_adapter(model, folder, name=trained_name(model), facts=facts)
    return save_network(module_of(model), folder, facts=facts)


def read_product(model: object, folder: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_product` wrote to a folder, by name.

    Raises:
        LowpeftError: They cannot be read.
    """
    if is_adapted(model):
        return read_adapter(folder).tensors
    try:
        return load_file(folder / NETWORK)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder / NETWORK} cannot be read: {error}") from error


def save_merged(model: object, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write the network with its adapters merged into the weights; the model is unchanged.

    Raises:
        PlanError: Some adapters cannot be merged.
        TrainingError: The file cannot be written.
    """
    return save_network(merged_copy(module_of(model)), folder, facts=facts)


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
