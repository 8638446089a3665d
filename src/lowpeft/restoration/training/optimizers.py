"""The optimiser of a run: its groups of parameters, its making, and its state as tensors and plain values."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...checks import is_number
from ...core.attachment.record import is_adapted, module_of, pieces, unwrap
from ...errors import PlanError, TrainingError
from ...kinds import TrainingPart
from ...ports.patterns import Candidate, around, select
from ...recipes import TrainSettings
from ...recipes.settings import rate_of
from .own_code import is_plain, users_code

Groups = list[dict[str, Any]]
MakeOptimizer = Callable[[Groups], Optimizer]
"""Function from groups of parameters to an optimiser. A group has `params` and its factor of the rate, `initial_lr`."""

_TIED = {"lr", "initial_lr", "params"}
"""Values of a group that follow from the step and the model."""


def make_optimizer(groups: Groups, settings: TrainSettings, own: MakeOptimizer | None) -> Optimizer:
    """Return the optimiser that the settings name, or the user's own.

    Raises:
        TrainingError: The user's own fails, is no optimiser of exactly these parameters, or its step takes a closure.
    """
    if own is None:
        return _named(groups, settings)
    wanted = {id(p) for group in groups for p in group["params"]}
    with users_code("the function given as optimizer= failed"):
        optimizer = own(groups)
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(f"optimizer= must return a torch.optim.Optimizer, not a {type(optimizer).__name__}")
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if {id(p) for p in held} != wanted or len(held) != len(wanted):
        raise TrainingError(
            f"the optimiser holds {len(held)} tensors, but {len(wanted)} are trained: pass it the groups as they are"
        )
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TrainingError(f"the step of {type(optimizer).__name__} takes a closure, which train does not give")
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", 1.0)
    return optimizer


def _named(groups: Groups, settings: TrainSettings) -> Optimizer:
    decay, betas = settings.weight_decay, settings.betas
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, betas=betas, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(groups, betas=betas, weight_decay=decay)
        case "nadam":
            return torch.optim.NAdam(groups, betas=betas, weight_decay=decay)
        case _:
            return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=betas[0], weight_decay=decay)


def parameter_groups(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], hooks: Mapping[str, TrainingPart], rates: Sequence[str]
) -> Groups:
    """Group the parameters by their learning-rate factor (`initial_lr`) for the optimiser.

    The factor is the product of what the kind of adapter says and of all `rates` that name the parameter.

    Raises:
        TrainingError: A kind gives a factor that is not above 0, or for a name that is not a parameter; or one of the
            rates names nothing.
    """
    factors = _of_kinds(hooks)
    kinds: dict[str, set[int]] = {}
    for _, _, piece in pieces(unwrap(model)) if is_adapted(module_of(model)) else ():
        kinds.setdefault(piece.kind, set()).update(map(id, piece.parameters()))
    candidates = [Candidate(path=name, within=around(name)) for name in parameters]
    problems: list[str] = []
    for pattern, factor in map(rate_of, rates):
        try:
            names = [c.path for c in select(pattern, candidates, what="trained tensors")] if pattern not in kinds else [
                name for name, p in parameters.items() if id(p) in kinds[pattern]
            ]  # fmt: skip
        except PlanError as error:
            problems += error.problems or [error.message]
            continue
        for name in names:
            factors[id(parameters[name])] = factors.get(id(parameters[name]), 1.0) * factor
    if problems:
        known = f", nor a kind of adapter ({', '.join(kinds)})" if kinds else ""
        raise TrainingError(f"rates name what is not trained{known}:", problems=problems)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters.values():
        groups.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": members, "initial_lr": factor} for factor, members in groups.items()]


def _of_kinds(hooks: Mapping[str, TrainingPart]) -> dict[int, float]:
    """Return the factors that the kinds of adapters give, by the parameter's identity."""
    factors: dict[int, float] = {}
    for hook in hooks.values():
        named = {f"{site}.{n}": p for site, a in hook.adapters.items() for n, p in a.named_parameters()}
        rates = hook.rates()
        if bad := [f"{n}: {f}" for n, f in rates.items() if n not in named or not is_number(f, above=0)]:
            raise TrainingError(
                f"{type(hook).__name__}.rates() must give numbers above 0 by names of parameters; these are not:",
                problems=bad,
            )
        factors |= {id(named[name]): factor for name, factor in rates.items()}
    return factors


def optimizer_tensors(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state by name, e.g. "exp_avg.body.0.weight"; not copied."""
    items = ((k, n, v) for n, p in parameters.items() for k, v in optimizer.state.get(p, {}).items())
    return {f"{key}.{name}": value for key, name, value in items if isinstance(value, Tensor)}


def optimizer_values(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return the plain values of an optimiser's state: `state` by key and name, `groups`, and shapes of the `tensors`.

    Raises:
        TrainingError: The state has what no checkpoint can hold: values that are neither tensors nor plain, keys that
            are not words, or the state of something that is not trained.
    """
    state = {
        f"{key}.{name}": value
        for name, p in parameters.items()
        for key, value in optimizer.state.get(p, {}).items()
        if not isinstance(value, Tensor)
    }
    groups = [{k: v for k, v in group.items() if k not in _TIED} for group in optimizer.param_groups]
    bad = _keys_that_cannot_be_stored(optimizer, parameters)
    bad += [f"{key}: {type(v).__name__}" for key, v in state.items() if not is_plain(v)]
    bad += [
        f"group {i}, {k}: {type(v).__name__}"
        for i, g in enumerate(groups)
        for k, v in g.items()
        if not (is_plain(v) and isinstance(k, str))
    ]
    if bad:
        raise TrainingError(
            f"a checkpoint cannot hold all of the state of {type(optimizer).__name__}: tensors of a parameter, "
            "numbers, texts and lists of them can be stored, under keys that are words (self.state[p]['exp_avg']); "
            "these cannot:",
            problems=bad[:10],
        )
    shapes = {name: [*tensor.shape] for name, tensor in optimizer_tensors(optimizer, parameters).items()}
    return {"name": type(optimizer).__name__, "state": state, "groups": groups, "tensors": shapes}


def _keys_that_cannot_be_stored(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """List keys of the state that are not of a trained tensor, and those of its values that are not words."""
    names = {id(p): name for name, p in parameters.items()}
    bad = [
        f"state under {key!r:.40}, which is no trained tensor"
        if not isinstance(key, Tensor)
        else f"state of a tensor of shape {tuple(key.shape)}, which is not trained"
        for key, of_it in optimizer.state.items()
        if id(key) not in names and of_it
    ]
    return bad + [
        f"{names[id(p)]}: the key {key!r:.40}"
        for p, of_it in optimizer.state.items()
        if id(p) in names
        for key in of_it
        if not (isinstance(key, str) and key.isidentifier())
    ]


def optimizer_problems(
    optimizer: Optimizer, here: Mapping[str, Any], saved: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> list[str]:
    """List what keeps a stored state from being put into an optimiser.

    Args:
        optimizer: The optimiser.
        here: Its own `optimizer_values`.
        saved: The stored ones, of any form.
        tensors: The stored tensors.
    """
    kind, groups = here["name"], saved.get("groups")
    of_groups = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    if (
        not (of_groups and isinstance(saved.get("state"), dict))
        or saved.get("name") != kind
        or [set(group) for group in groups or ()] != [set(group) for group in here["groups"]]
    ):
        return [f"the optimiser is {kind}, in the checkpoint it is {str(saved.get('name'))[:40]} or other"]
    found = {name: [*tensor.shape] for name, tensor in tensors.items()}
    problems = [] if saved.get("tensors") == found else [f"tensors of the state of {kind} are missing or changed"]
    fixed = type(optimizer).__module__.startswith("torch.optim.")
    return problems + [
        f"{key} of group {i} of {kind} is {mine[key]!r}, in the checkpoint {str(theirs[key])[:40]!r}"
        for i, (mine, theirs) in enumerate(zip(here["groups"], groups or (), strict=True))
        for key in mine
        if not _goes_on(mine[key], theirs[key], fixed=fixed)
    ]


def _goes_on(here: object, saved: object, *, fixed: bool) -> bool:
    """Return whether a group's value may go on from a stored one: if `fixed`, from the same; else, of the same type."""
    here = json.loads(json.dumps(here))  # tuples are lists in the checkpoint
    if fixed or (isinstance(saved, float) and not math.isfinite(saved)):
        return here == saved
    kinds = {float if type(value) is int else type(value) for value in (here, saved)}
    return len(kinds - {type(None)}) <= 1


def restore_optimizer(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Put a stored state into an optimiser; the inverse of `optimizer_tensors` and `optimizer_values`.

    Single numbers stay on the CPU, unless the optimiser is fused or capturable, as in torch.
    """
    for group, saved in zip(optimizer.param_groups, values["groups"], strict=True):
        like = {key: type(group[key]) for key in saved if isinstance(group.get(key), tuple)}
        group.update({key: tuple(value) if key in like else value for key, value in saved.items()})
    on_device = {
        id(p): bool(group.get("capturable") or group.get("fused"))
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in parameters.items():
        of_it: dict[str, Any] = {}
        for key, value in values["state"].items():
            if key.endswith(f".{name}") and (first := key.removesuffix(f".{name}")).isidentifier():
                of_it[first] = value
        for key, tensor in tensors.items():
            if key.endswith(f".{name}") and (first := key.removesuffix(f".{name}")).isidentifier():
                moved = tensor.ndim or on_device[id(parameter)]
                of_it[first] = tensor.to(parameter.device).clone() if moved else tensor.clone()
        if of_it:
            optimizer.state[cast(Tensor, parameter)] = of_it
