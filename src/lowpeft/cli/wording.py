"""The text of errors in the words of the command line: `--memory-mb 3` for `memory_mb=3`.

Errors of the library name Python arguments. Where the command line says it otherwise, they say both, in one of these
forms: "take the last step's with weights='raw' (--raw-weights)"; "name the folder with lr_folder=, on the command line
--lr".
"""

from __future__ import annotations

import argparse
import dataclasses
import re

from ..recipes import TrainSettings

_BOTH = re.compile(
    r"[\w.]+(?:=[^\s,;()]*(?:\([^()]*\))?|\([^()]*\))"  # an argument or a call
    r"(?: \((?:on the command line,? )?(--[^()]+)\)|, on the command line (--[^,;:()\n]+))"
)
_ALSO_PYTHON = re.compile(r"\((--[\w-]+|lowpeft [\w-]+), [\w.]+\)")
_END = r"(?=[.,;:)]*(?:\s|$))"


def in_options(text: str, options: argparse.Namespace) -> str:
    """Return the text of an error with the options of a command in place of Python arguments.

    Args:
        text: The text.
        options: Parsed options of the command. The name alone of a training setting is also a key of recipe files, so
            it becomes an option only if that was given.
    """
    names = {a.dest: a.option_strings[-1] for a in options.parser._actions if a.option_strings}
    text = _ALSO_PYTHON.sub(r"(\1)", text)
    text = _BOTH.sub(lambda found: _of_command(found[1] or found[2], {*names.values()}), text)
    keys = {field.name for field in dataclasses.fields(TrainSettings)}
    for name, option in names.items():
        # Not within an option's value or a call: `--network-fact scale=4`, `describe(model, scale=4)`.
        free = r"(?<![\w./'\"([-])(?<!-set )(?<!-fact )(?<!model, )"
        text = re.sub(rf"{free}{name}=(?:True)?{_END}", option, text)
        text = re.sub(rf"{free}{name}=(\S+?){_END}", rf"{option} \1", text)
        if "_" in name and (name not in keys or getattr(options, name) is not None):
            text = re.sub(rf"{free}{name}{_END}", option, text)
    return text


def _of_command(alternatives: str, known: set[str]) -> str:
    """Return those of the options `--a or --b` that a command has; all if it has none of them."""
    each = alternatives.split(" or ")
    return " or ".join([option for option in each if option.split()[0] in known] or each)
