"""The form of every command's help: a short usage, examples first, then options in groups."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence

_WIDTH = range(100, 121)
"""Widths at which text below rows of a table is broken, in characters: that of the terminal, within these."""
_EXAMPLE_WIDTH = 76
_INDENT = "  "


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Layout of the help; names of options and recipes are not broken at their hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def wrapped(text: str) -> str:
    """Return a paragraph broken into lines for the terminal, all with the indent of its beginning."""
    width = min(max(shutil.get_terminal_size((_WIDTH[0], 0)).columns, _WIDTH[0]), _WIDTH[-1])
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def description(text: str, examples: Sequence[str]) -> str:
    """Return what a command does, and its examples, as the beginning of its help."""
    heading = "example:" if len(examples) == 1 else "examples:"
    sentence = text[0].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")
    about = textwrap.fill(sentence, _EXAMPLE_WIDTH + len(_INDENT), break_on_hyphens=False)
    return "\n".join([about, "", heading, *map(_shell_lines, examples)])


def _shell_lines(example: str) -> str:
    """Return a command line, broken before options where it is long, so that it can be pasted as it stands."""
    lines, line = [], ""
    for part in example.replace(" --", "\n--").splitlines():
        if line and len(line) + 1 + len(part) + len(" \\") > _EXAMPLE_WIDTH:
            lines.append(line)
            line = f"    {part}"
        else:
            line = f"{line} {part}" if line else part
    return " \\\n".join(_INDENT + each for each in (*lines, line))


def option_group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Return the group of options with this title, a new one if the parser has none."""
    found = (group for group in parser._action_groups if group.title == title)
    return next(found, None) or parser.add_argument_group(title)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its name."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def short_usage(parser: argparse.ArgumentParser) -> str:
    """Return a usage with only the arguments that must be given, or stand by themselves."""
    choices = [group for group in parser._mutually_exclusive_groups if group.required]
    alternatives = {id(action) for group in choices for action in group._group_actions}
    parts = [f"({' | '.join(map(_option, group._group_actions))})" for group in choices]
    needed = (action for action in parser._actions if action.option_strings and action.required)
    parts += [_option(action) for action in needed if id(action) not in alternatives]
    places = [_positional(action) for action in parser._actions if not action.option_strings]
    return " ".join((parser.prog, *places, *parts, "[options]")).replace("%", "%%")


def _option(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or action.dest.upper(),)
    return " ".join((action.option_strings[-1], *metavar))


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    if action.choices is not None and action.metavar is None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    name = name if name.startswith(("[", "{")) else name.upper()
    return {"?": f"[{name}]", "+": f"{name} …"}.get(str(action.nargs), name)
