"""Are LR files on disk those that MATLAB's bicubic makes of the HR files, and with which border?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from ... import tables
from ...errors import DataError
from ..images import Border, matlab_downscale
from .examples import load_example
from .model import Example, Scene

BORDERS: tuple[Border, ...] = get_args(Border)


@dataclass(frozen=True)
class Match:
    """How LR files compare with those that MATLAB's bicubic makes, over all R, G and B values.

    Attributes:
        exact: Values that are equal.
        values: All of them.
        largest_error: In 8-bit steps.
    """

    exact: int
    values: int
    largest_error: int

    def __str__(self) -> str:
        """Rounded down, so that 100.0000 % means every value."""
        percent = math.floor(self.exact / self.values * 1e6) / 1e4 if self.exact < self.values else 100
        return f"{percent:.4f} % ({self.largest_error})"


@dataclass(frozen=True)
class LRReport:
    """What `verify_lr` found: every scene's LR files against both borders."""

    scenes: Mapping[str, Mapping[Border, Match]]

    def total(self, border: Border) -> Match:
        """Over all scenes."""
        found = [matches[border] for matches in self.scenes.values()]
        return Match(sum(m.exact for m in found), sum(m.values for m in found), max(m.largest_error for m in found))

    @property
    def borders(self) -> tuple[Border, ...]:
        """The borders with which MATLAB's bicubic gives every value of every file."""
        return tuple(b for b in BORDERS if self.total(b).exact == self.total(b).values)

    def __str__(self) -> str:
        """A table, and what follows from it."""
        rows = [[name, *(str(matches[b]) for b in BORDERS)] for name, matches in self.scenes.items()]
        rows.append(["all", *(str(self.total(b)) for b in BORDERS)])
        header = ["exact values (largest error)", *BORDERS]
        if self.borders:
            verdict = f"MATLAB's bicubic with border {' or '.join(self.borders)} makes every value of these files."
        else:
            verdict = "MATLAB's bicubic makes these files with neither border: they were resized otherwise."
        return f"{tables.text([header, *rows])}\n{verdict}"


def verify_lr(
    scenes: Sequence[Scene],
    scale: int,
    *,
    halve: bool = False,
    advance: Callable[[str], None] = lambda name: None,
) -> LRReport:
    """Compare the LR files of scenes with what MATLAB's bicubic makes of their HR files, under both borders.

    Args:
        scenes: At least one, all with LR files.
        scale: The SR factor.
        halve: The LR files belong to halved HR views; see `load_example`.
        advance: Called with the name of every scene, once it is compared.

    Raises:
        DataError: There are no scenes, one has no LR files, or one cannot be loaded.
    """
    if not scenes or not all(scene.lr for scene in scenes):
        raise DataError("only scenes with LR files can be verified, and there must be at least one")
    found = {}
    for scene in scenes:
        if halve:  # the border counts in the HR views too
            examples = {border: load_example(scene, scale, border=border, halve=True) for border in BORDERS}
        else:
            examples = dict.fromkeys(BORDERS, load_example(scene, scale))
        found[scene.name] = {border: _match(example, scale, border) for border, example in examples.items()}
        advance(scene.name)
    return LRReport(found)


def _match(example: Example, scale: int, border: Border) -> Match:
    pairs = zip(example.lr, example.hr, strict=True)
    errors = [(lr.int() - matlab_downscale(hr, scale, border=border).int()).abs() for lr, hr in pairs]
    exact = sum(int((e == 0).sum()) for e in errors)
    return Match(exact, sum(e.numel() for e in errors), max(int(e.max()) for e in errors))
