"""The command line from its parser, and the API from `lowpeft.__all__`."""

from __future__ import annotations

import enum
import inspect
import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from sphinx.util.inspect import stringify_signature

from .base import need, table

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Examples?):$")


ENTRY = re.compile(r"    (\*{0,2}\w[\w.]*): (.*)")


def api() -> str:
    names = [name for name in need("lowpeft", "__all__") if not name.startswith("__")]
    return "\n\n".join(description(name, need("lowpeft", name)) for name in names)


def description(name: str, thing: object) -> str:
    if inspect.isclass(thing):
        members = [member(n, m) for n, m in vars(thing).items() if not n.startswith("_")]
        body = "\n\n".join([markdown(thing), *filter(None, members)])
        plain = issubclass(thing, (Exception, enum.Enum))  # their constructors say nothing
        kind = "exception" if issubclass(thing, Exception) else "class"
        shown = "" if plain else signature(thing).removesuffix(" -> None")
        return directive(kind, f"lowpeft.{name}{shown}", body, ticks=8)
    if inspect.isroutine(thing):
        return directive("function", f"lowpeft.{name}{signature(thing)}", markdown(thing), ticks=8)
    return directive("data", f"lowpeft.{name}", "", ticks=8)


def member(name: str, thing: object) -> str:
    """A documented method or property of a class; empty for anything else."""
    if isinstance(thing, property):
        return directive("property", name, markdown(thing), ticks=6)
    if isinstance(thing, (classmethod, staticmethod)):
        thing = thing.__func__
    if not inspect.isfunction(thing) or not thing.__doc__:
        return ""
    return directive("method", name + signature(thing, drop_first=True), markdown(thing), ticks=6)


def directive(kind: str, argument: str, body: str, *, ticks: int) -> str:
    fence = "`" * ticks
    return f"{fence}{{py:{kind}}} {argument}\n{body}\n{fence}"


def signature(thing: Callable[..., object], *, drop_first: bool = False) -> str:
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "()"
    parameters = list(found.parameters.values())
    return stringify_signature(found.replace(parameters=parameters[1:] if drop_first else parameters))


def markdown(thing: object) -> str:
    """A docstring as Markdown: its Google-style sections become lists."""
    out: list[str] = []
    inside = False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if SECTION.match(line):
            inside = True
            out += ["", f"**{line[:-1]}**", ""]
        elif inside and line and not line.startswith(" "):
            inside = False
            out += ["", line]
        elif inside and (entry := ENTRY.match(line)):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            out.append("  " + line.strip() if inside else line)
    return "\n".join(out)


def cli() -> str:
    parser = need("lowpeft.cli", "parser")()
    with mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}):
        return "\n\n".join(
            f"```{{rubric}} {name}\n```\n\n```text\n{each.format_help().rstrip()}\n```"
            for name, each in commands(parser)
        )


def exit_codes() -> str:
    """What each exit code of the command line means."""
    return table(["code", "meaning"], [[f"`{code}`", text] for code, text in need("lowpeft.cli", "EXIT_CODES").items()])


def commands(parser: Any) -> Iterator[tuple[str, Any]]:
    """A parser and its subparsers, each with its full name."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for each in dict.fromkeys(action.choices.values()):
                yield from commands(each)
