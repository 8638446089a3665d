"""The parser of the command line, and what its errors become."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence

from ..errors import LowpeftError, and_more, did_you_mean
from ..restoration.inference import is_out_of_memory
from ..restoration.progress import quiet
from ..version import version
from . import (
    compare,
    completion,
    convert,
    data,
    demo,
    enhance,
    evaluate,
    export,
    lam,
    methods,
    recipes,
    reproduce,
    sharing,
    show,
    train,
)
from .help import Formatter, short_usage
from .memory import keep_freed_memory
from .output import add_json, only_json
from .wording import in_options

EXTRAS = {
    "accelerate": "train",
    "PIL": "train",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "rich": "train",
    "scipy": "train",
    "shtab": "completion",
    "skimage": "train",
    "spandrel": "spandrel",
    "submitit": "cluster",
    "tifffile": "train",
}
"""Mapping from the import name of an optional package to the extra of lowpeft that installs it."""

MODULES = (
    show,
    recipes,
    methods,
    data,
    train,
    evaluate,
    compare,
    enhance,
    export,
    lam,
    reproduce,
    convert,
    sharing,
    demo,
    completion,
)
"""Modules of the commands, in the order of the help."""

EXIT_CODES = {
    "0": "done",
    "1": "verify-lr or check-pair found a difference; enhance could not do some of the files, and did the others; or "
    "lowpeft failed in a way that it did not expect, which a traceback shows",
    "2": "bad options, files or data, a missing package, or too little memory: the last lines say what to do",
    "130": "interrupted with Ctrl-C; the same command goes on from what was saved, with --resume if it has that option",
    "128+n": "ended by signal n: 141 if the reader of a pipe closed it, 143 if train was terminated, after it wrote a "
    "checkpoint for --resume",
}
"""Meaning of each exit code."""

MOST_PROBLEMS = 20
"""Number of problems of an error that are printed."""

_CLOSED_PIPE = 141
_FIRST_STEPS = (
    "lowpeft demo --quick",
    "lowpeft recipes",
    "lowpeft plan lora --weights denoiser.safetensors",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments without the program's name; None means those of the process.

    Returns:
        Exit code, one of `EXIT_CODES`. An error that nobody expected is raised, with a note that it is a bug.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options, unknown = parser().parse_known_args(given)
    if unknown:
        known = [name for action in options.parser._actions for name in action.option_strings]
        near = did_you_mean(unknown[0].partition("=")[0], known, most=1)
        options.parser.error(f"cannot use {and_more(unknown)}{near}; `lowpeft {options.command} --help` shows all")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    options.command_line = shlex.join(["lowpeft", *given])
    quiet()
    if getattr(options, "memory_mb", None) is None:
        keep_freed_memory()
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        with only_json(options):
            code = run(options) or 0
        return _flushed(code)
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `lowpeft plan … | head`
        return _flushed(_CLOSED_PIPE)
    except KeyboardInterrupt:
        return _fail(options, "interrupted", 130)
    except Exception as error:
        message = _expected(error, options)
        if message is None:
            error.add_note(
                f"lowpeft {options.command}: lowpeft {version()} did not expect this error. Unless code of your own "
                "raised it (--network, --loss-module), it is a bug in lowpeft: please report it with the text above."
            )
            raise
        return _fail(options, message, 2)


def _expected(error: Exception, options: argparse.Namespace) -> str | None:
    """Return what to tell people about an error; None if it is a bug."""
    if isinstance(error, LowpeftError):
        return in_options(_short(error), options)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed: pip install 'lowpeft[{EXTRAS[error.name]}]'"
    if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        less = {"memory_mb": "--memory-mb N", "crop": "a smaller --crop or --batch, or --optimize checkpoint,"}
        found = [text for name, text in less.items() if hasattr(options, name)]
        return f"does not fit into memory; {' or '.join(['smaller images', *found])} take less"
    return None


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


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    print(f"lowpeft {options.command}: {message}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; docs/cli.md is generated from it."""
    codes = "\n".join(
        textwrap.fill(f"  {code:<6} {text}", 78, subsequent_indent=" " * 9) for code, text in EXIT_CODES.items()
    )
    top = argparse.ArgumentParser(
        prog="lowpeft",
        description="Parameter-efficient fine-tuning for low-level vision: small adapters on\nfrozen networks.\n\n"
        "examples:\n" + "\n".join(f"  {example}" for example in _FIRST_STEPS),
        epilog=f"`lowpeft COMMAND --help` shows examples and options of a command.\n\nexit codes:\n{codes}",
        formatter_class=Formatter,
    )
    top.add_argument("--version", action="version", version=f"lowpeft {version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for module in MODULES:
        module.add_to(commands)
    for sub in commands.choices.values():
        add_json(sub)
        sub.usage = short_usage(sub)
        sub.set_defaults(top=top)
    return top
