"""The identity of a run: what must be the same in the run that a checkpoint is of and the one that continues it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...core.attachment.record import is_adapted, record_of, unwrap
from ...core.observation.fingerprint import fingerprint
from ...recipes import TrainSettings, recipe_to_dict, settings_to_dict
from .sources import CropSource, Samples, identity_of

FREE = ("accumulate", "keep_checkpoints", "patience", "save_every_steps", "workers")
"""Settings that may differ in a resumed run. Of these `accumulate` changes results (the order of additions and the
dropout masks), and `patience` the last step."""

_MISSING = object()


def identity(
    model: nn.Module, crops: CropSource | Samples, settings: TrainSettings, own: Mapping[str, str]
) -> dict[str, Any]:
    """Return JSON values that identify a run; a checkpoint with other values is refused.

    Args:
        model: Module that is trained.
        crops: Training samples.
        settings: Training settings.
        own: Names of the user's own functions, e.g. {"loss": "package.losses.perceptual"}.

    Raises:
        DataError: The first crop cannot be read.
    """
    values: dict[str, Any] = {
        "setting": {key: value for key, value in settings_to_dict(settings).items() if key not in FREE},
        "data": identity_of(crops),
        **{f"own {what}": name for what, name in own.items()},
    }
    if is_adapted(model):
        record = record_of(unwrap(model))
        recipes = {name: recipe_to_dict(plan.recipe) for name, plan in record.plans.items()}
        values["adapter"] = {n: {k: r[k] for k in ("adapter", "freeze_statistics")} for n, r in recipes.items()}
        values["base"] = record.base.as_dict()
    else:
        values["network"] = fingerprint(model).as_dict()
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def differences(run: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[str]:
    """List the differences between a run and a checkpoint, e.g. "setting.steps is 7, in the checkpoint 6".

    Tensors differ if their shapes do.
    """
    here, saved = _flat(run), _flat(checkpoint)
    keys = [key for key in {**here, **saved} if here.get(key, _MISSING) != saved.get(key, _MISSING)]
    return [
        f"{key} is {_short(here.get(key, _MISSING))}, in the checkpoint {_short(saved.get(key, _MISSING))}"
        for key in keys
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists into one dict with dotted names, e.g. "setting.betas.0"."""
    if isinstance(value, Tensor):
        return {name: tuple(value.shape)}
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {name: value}
    inner = [_flat(v, f"{name}.{key}" if name else str(key)) for key, v in value.items()]
    return {key: leaf for leaves in inner for key, leaf in leaves.items()}


def _short(value: Any) -> str:
    text = "missing" if value is _MISSING else repr(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-5:]}"


def of_other_length(
    run: Mapping[str, Any], saved: Mapping[str, Any], *, step: int, why_not: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return a checkpoint's identity as that of a run of this run's number of steps, and why it cannot be that.

    A run of more (or fewer) steps than the checkpoint's continues it if its first steps would have been the same.

    Args:
        run: Identity of the run.
        saved: Identity in the checkpoint.
        step: Number of steps that the checkpoint counts.
        why_not: Why the first steps would have been others; None if they would not.
    """
    here, there = run["setting"]["steps"], _steps(saved)
    if there is None or here == there:
        return dict(saved), []
    changed = {**saved, "setting": {**saved["setting"], "steps": here}}
    problem = f"setting.steps is {here}, in the checkpoint {there}"
    if here < step:
        return changed, [f"{problem}, of which {step} are done"]
    if why_not is not None:
        return changed, [f"{problem}: {why_not}. Train on from the saved adapter in another folder (--adapter)"]
    return changed, []


def _steps(identity: Mapping[str, Any]) -> int | None:
    setting = identity.get("setting")
    steps = setting.get("steps") if isinstance(setting, Mapping) else None
    return steps if isinstance(steps, int) else None
