"""The errors that lowpeft raises on purpose.

    LowpeftError
    ├── PlanError       the model, recipe or pattern does not fit; nothing was changed
    ├── AdapterError    an adapter file or state dict does not fit; nothing was changed
    ├── DataError       an image, folder or pair cannot be used
    └── TrainingError   a training run cannot go on

Every one is also a `ValueError`, because every one means that an argument does not fit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MOST_SHOWN = 100


class LowpeftError(ValueError):
    """Base of every error that lowpeft raises on purpose.

    `message` is the first line or lines, and `problems` keeps each finding as a line of its own, so that a program can
    show them as it likes. As text it has the first 100 of them, and control characters, which a file's names may hold,
    are written as in Python's literals.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        self.message = message
        self.problems = tuple(problems)
        lines = [message, *(f"  - {problem}" for problem in self.problems[:MOST_SHOWN])]
        if (more := len(self.problems) - MOST_SHOWN) > 0:
            lines.append(f"  … and {more:,} more (.problems has all)")
        super().__init__("".join(map(_printable, "\n".join(lines))))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.problems)


def _printable(character: str) -> str:
    return character if character.isprintable() or character == "\n" else ascii(character)[1:-1]


def _rebuild(cls: type[LowpeftError], message: str, problems: tuple[str, ...]) -> LowpeftError:
    return cls(message, problems=problems)


class PlanError(LowpeftError):
    """The model, the recipe or a pattern does not fit; the model is as it was."""


class AdapterError(LowpeftError):
    """An adapter file or state dict does not fit the model; the model is as it was."""


class DataError(LowpeftError):
    """An image, a folder or a pair of views cannot be used."""


class TrainingError(LowpeftError):
    """A training run cannot start or go on; what was saved before is intact."""


def did_you_mean(word: str, known: Iterable[str], *, most: int = 3) -> str:
    """` (did you mean 'a', 'b'?)`, or the empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=most, cutoff=0.6)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
