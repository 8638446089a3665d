"""What a user passes to `train`: checks of the arguments, and errors of functions of the user's own in words."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import LowpeftError, TrainingError
from ...importing import cause
from ...recipes import TrainSettings
from .events import Callback

_METHODS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def check_arguments(
    *, settings: object, out: object, resume: object, callbacks: object, functions: Mapping[str, object]
) -> None:
    """Check the types of the arguments of `train`.

    Args:
        settings: As in `train`.
        out: As in `train`.
        resume: As in `train`.
        callbacks: As in `train`.
        functions: The arguments that must be functions or None, by name.

    Raises:
        TrainingError: Some do not fit; all are listed.
    """
    problems = []
    if not isinstance(settings, TrainSettings):
        problems.append(f"settings must be a TrainSettings (of a recipe: recipe.training), not {_shown(settings)}")
    if not isinstance(out, str | os.PathLike | None) or "\0" in str(out):
        problems.append(f"out must be the path of a folder, not {_shown(out)}")
    if not isinstance(resume, bool):
        problems.append(f"resume must be True or False, not {_shown(resume)}")
    problems += _problems_of_callbacks(callbacks)
    for name, function in functions.items():
        if function is not None and not callable(function):
            advice = f"; one that lowpeft knows by name is settings.{name}" if isinstance(function, str) else ""
            problems.append(f"{name} must be a function, not {_shown(function)}{advice}")
    if isinstance(loss := functions.get("loss"), type):
        problems.append(f"loss must be a function of (output, target), not the class {loss.__name__}: make one of it")
    if problems:
        raise TrainingError("train was called with what it cannot use:", problems=problems)


def _problems_of_callbacks(callbacks: object) -> list[str]:
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
        return [f"callbacks must be a list of Callback, not {_shown(callbacks)}"]
    return [
        f"callbacks[{i}] must be a Callback, not {_shown(each)}; a plain function is report="
        for i, each in enumerate(callbacks)
        if isinstance(each, type) or not all(hasattr(each, name) for name in _METHODS)
    ]


def _shown(value: object) -> str:
    """Return a text or a number as it is, and the type of anything else."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def is_plain(value: object) -> bool:
    """Return whether a value is a number, text, bool or None, or a list or tuple of these, as JSON can hold."""
    return isinstance(value, bool | int | float | str | None) or (
        isinstance(value, list | tuple) and all(map(is_plain, value))
    )


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Raise what a user's own code raises as a TrainingError that begins with `what`.

    Errors of lowpeft pass unchanged, as does a lack of GPU memory.
    """
    try:
        yield
    except (LowpeftError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise TrainingError(f"{what}: {cause(error)}") from error


def figure_of(value: Any) -> float:
    """Return what `validate` returned as a float: a number, or an array or tensor of one.

    Raises:
        TrainingError: It is anything else, or not finite.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        figure = float(value)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else _shown(value)
        raise TrainingError(f"validate must return a number, not {found}") from None
    if not math.isfinite(figure):
        shown = "NaN" if math.isnan(figure) else "infinite"
        raise TrainingError(f"the validation figure is {shown}: check the function given as validate=")
    return figure
