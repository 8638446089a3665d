"""Functions of the user's own code, by name: only ever those that the user names, never those that a file names."""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from torch import nn

from .errors import LowpeftError, did_you_mean


def make_folder_importable() -> None:
    """Let modules in the current folder be imported, as under `python -m`."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def function_named(name: str, what: str, example: str, *, advice: str = "") -> Callable[..., object]:
    """Import a function.

    Args:
        name: Module and function, `package.module:function`; the function may be inside a class (`module:Net.small`).
        what: What the function should be, for errors.
        example: A name that would be right, for errors.
        advice: What to do instead of naming a function, for errors.

    Raises:
        LowpeftError: The name has another form, the module cannot be imported, or it has no such function.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), *path.split(".")))):
        raise LowpeftError(
            f"{name!r} does not name {what}: give MODULE:FUNCTION, as in {example}{advice and f'. {advice}'}"
        )
    module = _imported(module_name)
    try:
        found = functools.reduce(getattr, path.split("."), module)
    except AttributeError as error:
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = did_you_mean(path, callables)
        raise LowpeftError(f"{module_name} ({_place(module)}) has no {path}{near}") from error
    if isinstance(found, nn.Module) or not callable(found):
        raise LowpeftError(
            f"{name} is a {type(found).__name__}, not {what}: write one that returns it, def make(): return {path}"
        )
    return found


def _imported(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise LowpeftError(
                f"there is no module {error.name!r}, neither in the current folder, {Path.cwd()}, nor on the path of "
                "Python (PYTHONPATH), nor among the installed packages"
            ) from error
        raise LowpeftError(f"the module {name} cannot be imported: {cause(error)}") from error
    except (Exception, SystemExit) as error:
        raise LowpeftError(f"the module {name} cannot be imported: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return the first line of a user's error, and where in their code it was raised."""
    text = (str(error).splitlines() or [""])[0][:300]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {text}{place}"


def _place(module: object) -> str:
    return str(getattr(module, "__file__", None) or "a package without a file")
