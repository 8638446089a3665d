"""Errors that lowpeft raises on purpose.

    LowpeftError
    ├── PlanError       the model, recipe or pattern does not fit; the model is unchanged
    ├── AdapterError    an adapter file or state dict does not fit; the model is unchanged
    ├── DataError       an image, folder or pair cannot be used
    └── TrainingError   a training run cannot start or continue
        └── DivergedError   its loss or gradient is not finite

Each is also a `ValueError`, because each means that an argument does not fit.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence

MOST_SHOWN, MOST_CHARACTERS = 100, 8_000
"""Problems of an error that its text shows, and characters after which no further one is shown."""


class LowpeftError(ValueError):
    """Base class of the errors that lowpeft raises on purpose.

    `message` contains the first line or lines. `problems` contains each finding as a separate line, for programs that
    format them differently. The text of the error shows the first 100 problems,
    and fewer if they are long. Control characters, which names in a file may contain, are escaped as in Python
    literals.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        self.message = message
        self.problems = tuple(problems)
        lines = [_cut(message)]
        for problem in self.problems[:MOST_SHOWN]:
            lines.append(f"  - {_cut(problem)}")
            if sum(map(len, lines)) > MOST_CHARACTERS:
                break
        if (more := 1 + len(self.problems) - len(lines)) > 0:
            lines.append(f"  … and {more:,} more (.problems has all)")
        super().__init__("".join(map(_character, "\n".join(lines))))

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(type(self), problems=self.problems), (self.message,)


def _cut(text: str) -> str:
    """Return a text that may be from a file, shortened if it is as long as no text for people."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def printable(text: object) -> str:
    """Return a text, e.g. a path, on one line, with control characters escaped as in Python literals."""
    return "".join(map(_character, str(text))).replace("\n", "\\n")


def _character(character: str) -> str:
    return character if character.isprintable() or character == "\n" else ascii(character)[1:-1]


class PlanError(LowpeftError):
    """The model, the recipe or a pattern does not fit; the model is unchanged."""


class AdapterError(LowpeftError):
    """An adapter file or state dict does not fit the model; the model is unchanged."""


class DataError(LowpeftError):
    """An image, a folder or a pair of views cannot be used."""


class TrainingError(LowpeftError):
    """A training run cannot start or continue; files that were saved before are intact."""


class DivergedError(TrainingError):
    """The loss or its gradient is not finite: the learning rate is too high."""


def and_more(names: Sequence[object], *, most: int = 5) -> str:
    """Return the first names of a list that may be long as text: `a, b, c` or `a, b, c and 1,900 more`."""
    text = ", ".join(map(str, names[:most]))
    return text + (f" and {more:,} more" if (more := len(names) - most) > 0 else "")


def did_you_mean(word: object, known: Iterable[str], *, most: int = 3) -> str:
    """Return ` (did you mean 'a', 'b'?)`, or the empty string if no known word is similar."""
    near = difflib.get_close_matches(str(word), list(known), n=most, cutoff=0.6)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
