"""What commands print on standard output: text for people or, with `--json`, exactly one JSON object."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

from ..storage import finite_or_text
from .help import option_group


def add_json(sub: argparse.ArgumentParser) -> None:
    """Add the option `--json`."""
    option_group(sub, "output").add_argument(
        "--json",
        action="store_true",
        help="print one JSON object with all figures instead of text; everything else goes to standard error",
    )


def emit(options: argparse.Namespace, figures: Mapping[str, object], text: object = None) -> None:
    """Give what a command found: `main` prints the figures with `--json`, and the text is printed without.

    Args:
        options: Parsed options of the command.
        figures: The figures; see `as_json` for what they may hold.
        text: The same for people; None if it was printed already.
    """
    if options.json:
        options.figures = figures
    elif text is not None:
        print(text)


@contextmanager
def only_json(options: argparse.Namespace) -> Iterator[None]:
    """With `--json`, send what is printed in the block to standard error, and print the figures after it."""
    if not getattr(options, "json", False):
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
    if options.figures is not None:  # only one of several processes has them
        print(json.dumps(as_json(options.figures), indent=2, ensure_ascii=False, allow_nan=False))


def as_json(value: object) -> object:
    """Return a value as JSON holds it: infinity and NaN as text, dataclasses as objects, other objects as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [as_json(each) for each in value]
    if isinstance(value, float):
        return finite_or_text(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
