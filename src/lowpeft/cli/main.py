"""The parser of the command line, and what its errors become."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ..errors import LowpeftError
from ..restoration.inference import is_out_of_memory
from ..restoration.progress import quiet
from ..version import version
from . import compare, convert, data, demo, enhance, evaluate, export, lam, methods, recipes, reproduce, show, train
from .memory import keep_freed_memory

EXTRAS = {
    "accelerate": "train",
    "PIL": "train",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "rich": "train",
    "skimage": "train",
    "spandrel": "spandrel",
    "submitit": "cluster",
    "tifffile": "train",
}
"""Mapping from the import name of an optional package to the extra of lowpeft that installs it."""

MODULES = (show, recipes, methods, data, train, evaluate, compare, enhance, export, lam, reproduce, convert, demo)
"""Modules of the commands, in the order of the help."""

MOST_PROBLEMS = 20
"""Number of problems of an error that are printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments without the program's name; None means those of the process.

    Returns:
        Exit code: 0 for success, 1 if a command compares and finds a difference, 2 for bad input, a missing package or
        too little memory, 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    quiet()
    if getattr(options, "memory_mb", None) is None:
        keep_freed_memory()
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        return _flushed(run(options) or 0)
    except LowpeftError as error:
        return _fail(options.command, _short(error), 2)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        return _fail(options.command, f"{error.name} is not installed: pip install 'lowpeft[{extra}]'", 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(options.command, "does not fit into memory; smaller images or --memory-mb take less", 2)
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `lowpeft plan … | head`
        return _flushed(1)  # it did not finish
    except KeyboardInterrupt:
        return _fail(options.command, "interrupted", 130)


def _flushed(code: int) -> int:
    """Write what is left of the output where somebody reads it, and return the exit code."""
    try:
        if sys.stdout is not None:  # it was closed by the caller
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to fail at exit
    return code


def _short(error: LowpeftError) -> str:
    """Return the text of an error with its first problems, so that its beginning stays on the screen."""
    if (more := len(error.problems) - MOST_PROBLEMS) <= 1:
        return str(error)
    return str(LowpeftError(error.message, problems=(*error.problems[:MOST_PROBLEMS], f"… and {more:,} more")))


def _fail(command: str, message: str, code: int) -> int:
    print(f"lowpeft {command}: {message}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; docs/cli.md is generated from it."""
    top = argparse.ArgumentParser(
        prog="lowpeft",
        description="Parameter-efficient fine-tuning for low-level vision: small adapters on frozen networks.",
    )
    top.add_argument("--version", action="version", version=f"lowpeft {version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for module in MODULES:
        module.add_to(commands)
    return top
