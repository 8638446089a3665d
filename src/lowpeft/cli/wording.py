"""The text of errors in the words of the command line: `--memory-mb 3` for `memory_mb=3`.

Errors of the library name Python arguments. Where an option is called otherwise, they name it behind the argument, in
brackets: "open it with weights='raw' (--raw-weights)".
"""

from __future__ import annotations

import argparse
import dataclasses
import re

from ..recipes import TrainSettings

_BOTH = re.compile(r"[\w.]+(?:=[^\s,;()]*|\([^()]*\)) \((?:on the command line )?(--[^()]+)\)")
_END = r"(?=[.,;:)]*(?:\s|$))"


def in_options(text: str, parser: argparse.ArgumentParser) -> str:
    """Return the text of an error with the options of a command in place of Python arguments.

    Names of training settings alone stay as they are, because they are also the keys of recipe files.
    """
    text = _BOTH.sub(r"\1", text)
    keys = {field.name for field in dataclasses.fields(TrainSettings)}
    names = {a.dest: a.option_strings[-1] for a in parser._actions if a.option_strings}
    for name, option in names.items():
        # Not within an option's value or a call: `--network-fact scale=4`, `describe(model, scale=4)`.
        free = r"(?<![\w./'\"([-])(?<!-set )(?<!-fact )(?<!model, )"
        text = re.sub(rf"{free}{name}=(?:True)?{_END}", option, text)
        text = re.sub(rf"{free}{name}=(\S+?){_END}", rf"{option} \1", text)
        if "_" in name and name not in keys:
            text = re.sub(rf"{free}{name}{_END}", option, text)
    return text
