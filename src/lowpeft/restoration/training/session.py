"""State of a training run: trained parameters, optimiser, moving average; saving and resuming it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.attachment.record import is_adapted, module_of, pieces, record_of, unwrap
from ...core.files.adapter_files import TENSORS, save_adapter
from ...core.observation.fingerprint import fingerprint
from ...core.operations.state import adapter_parameters, adapter_state_dict
from ...errors import PlanError, TrainingError
from ...recipes import TrainSettings, recipe_to_dict, settings_to_dict
from .average import Average
from .building import NETWORK, save_network
from .checkpoint import Checkpoint, Progress, checkpoints, differences, read_checkpoint, write_checkpoint
from .kinds import KindParts
from .samples import CropSource, identity_of

FREE = ("accumulate", "keep_checkpoints", "save_every_steps", "workers")
"""Settings that may differ in a resumed run. Of these only `accumulate` changes results: the order of additions and the
dropout masks."""

PRODUCTS = (TENSORS, NETWORK)
"""Files that `save_product` writes last: of an adapter and of a network."""

OPTIMIZER = "optimizer."


def trained_parameters(model: object) -> dict[str, nn.Parameter]:
    """Return what is trained, by name: adapter parameters of an adapted model, any parameter of another network.

    Parameters that require no gradient are left out.

    Raises:
        TrainingError: No parameter requires a gradient.
    """
    module = module_of(model)
    named = adapter_parameters(module) if is_adapted(module) else module.named_parameters()
    found = {name: parameter for name, parameter in named if parameter.requires_grad}
    if not found:
        raise TrainingError(f"{type(module).__name__} has no parameter that requires a gradient")
    return found


def trained_name(model: object) -> str | None:
    """Return the name of the adapter that is trained, beside frozen ones; None for a network without adapters.

    Raises:
        PlanError: Several adapters are trained, but a folder stores one.
    """
    if not is_adapted(model):
        return None
    root = unwrap(model)
    trained = {name for name, _, piece in pieces(root) if any(p.requires_grad for p in piece.parameters())}
    if len(trained) > 1:
        raise PlanError(
            f"the adapters {', '.join(sorted(trained))} would be trained together, and a folder holds one: freeze the "
            "others, `for _, p in lowpeft.adapter_parameters(model, name=…): p.requires_grad_(False)`"
        )
    return next(iter(trained), None)


def save_product(model: object, folder: Path, *, facts: Mapping[str, str | float]) -> Path:
    """Write the result of training in one step: the adapter, or the weights of a network without adapters.

    Raises:
        LowpeftError: As for `save_adapter` and `save_network`.
    """
    if is_adapted(model):
        return save_adapter(model, folder, name=trained_name(model), facts=facts)
    return save_network(module_of(model), folder, facts=facts)


def identity(model: nn.Module, crops: CropSource, settings: TrainSettings) -> dict[str, Any]:
    """Return JSON values that identify the run; a checkpoint with other values is refused."""
    kept = {key: value for key, value in settings_to_dict(settings).items() if key not in FREE}
    found: dict[str, Any] = {"setting": kept, "data": identity_of(crops)}
    if is_adapted(model):
        record = record_of(unwrap(model))
        recipes = {name: recipe_to_dict(plan.recipe) for name, plan in record.plans.items()}
        found["adapter"] = {n: {k: r[k] for k in ("adapter", "freeze_statistics")} for n, r in recipes.items()}
        found["base"] = record.base.as_dict()
    else:
        found["network"] = fingerprint(model).as_dict()
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _read(folders: Sequence[Path]) -> Checkpoint:
    """Read the last of these checkpoints; if it is damaged, the message says how to continue."""
    try:
        return read_checkpoint(folders[-1])
    except TrainingError as error:
        way_out = f"go on from {folders[-2].name}" if len(folders) > 1 else "begin again"
        raise TrainingError(f"{error.message}; remove {folders[-1]} to {way_out}") from error


class Session:
    """A model in training.

    Attributes:
        model: Module that is trained.
        parameters: Trained parameters by name.
        optimizer: AdamW on `parameters`.
        kinds: Training parts of the kinds of adapters.
        average: Moving average of `parameters`; None without `ema_decay`.
        progress: Steps taken and figures so far.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model = model
        self.parameters = trained_parameters(model)
        self.kinds = KindParts(model, settings.steps)
        self.optimizer = torch.optim.AdamW(
            self.kinds.groups(self.parameters),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.average = Average(self.parameters, settings.ema_decay) if settings.ema_decay else None
        self.progress = Progress()

    def save(self, out: Path, identity: dict[str, Any], *, logs: Mapping[str, int], keep: int) -> Path:
        """Write a checkpoint.

        Raises:
            TrainingError: A tensor contains NaN or infinity, so that training could not continue from it.
            OSError: The checkpoint cannot be written; older ones are intact.
            SafetensorError: As for `OSError`.
        """
        tensors = self._values() | self._moments()
        if problems := [f"{name} holds NaN or infinity" for name, t in tensors.items() if not torch.isfinite(t).all()]:
            raise TrainingError("no checkpoint was written:", problems=problems)
        self.progress = replace(self.progress, logs=dict(logs))
        checkpoint = Checkpoint(progress=self.progress, identity=identity, tensors=tensors)
        return write_checkpoint(out, checkpoint, keep=keep)

    def resume(self, out: Path, identity: dict[str, Any]) -> None:
        """Load the newest checkpoint in the folder, if one exists.

        Raises:
            TrainingError: The checkpoint is damaged or of another run; nothing is loaded.
        """
        folders = checkpoints(out)
        if not folders:
            return
        checkpoint = _read(folders)
        problems = differences(identity, checkpoint.identity) or self._misfits(checkpoint.tensors)
        if problems:
            raise TrainingError(f"{folders[-1]} is of another run; this one cannot go on from it:", problems=problems)
        with torch.no_grad():
            for name, tensor in self._values().items():
                tensor.copy_(checkpoint.tensors[name])
            for full, tensor in checkpoint.tensors.items():
                if full.startswith(OPTIMIZER):
                    key, name = full.removeprefix(OPTIMIZER).split(".", 1)
                    self._restore_moment(name, key, tensor)
        self.progress = checkpoint.progress

    def _restore_moment(self, name: str, key: str, tensor: Tensor) -> None:
        """Restore one tensor of AdamW's state as AdamW creates it: moments have the parameter's device and layout."""
        parameter = self.parameters[name]
        moment = tensor.clone() if key == "step" else torch.zeros_like(parameter).copy_(tensor)
        self.optimizer.state[parameter][key] = moment

    def _values(self) -> dict[str, Tensor]:
        """Return the trained tensors, buffers, tensors of the kinds, and averages by name; not copied."""
        adapted = is_adapted(self.model)
        state = adapter_state_dict(self.model, name=trained_name(self.model)) if adapted else self.model.state_dict()
        values = {f"model.{name}": tensor for name, tensor in state.items()}
        values |= {f"kinds.{name}": tensor for name, tensor in self.kinds.state().items()}
        if self.average is not None:
            values |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        return values

    def _moments(self) -> dict[str, Tensor]:
        """Return AdamW's state by name; parameters that never had a gradient have none."""
        return {
            f"{OPTIMIZER}{key}.{name}": tensor
            for name, parameter in self.parameters.items()
            for key, tensor in self.optimizer.state.get(parameter, {}).items()
        }

    def _misfits(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """List the differences in name and shape between a checkpoint's tensors and those of this run."""
        wanted = {name: tensor.shape for name, tensor in self._values().items()}
        for name, parameter in self.parameters.items():
            moments = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            wanted |= {full: s for k, s in moments.items() if (full := f"{OPTIMIZER}{k}.{name}") in tensors}
        problems = [f"{name} is missing" for name in wanted if name not in tensors]
        problems += [f"{name} is not of this run" for name in tensors if name not in wanted]
        shared = [name for name in wanted if name in tensors]
        return problems + [f"{name} has another shape" for name in shared if tensors[name].shape != wanted[name]]
