"""Comparison of LR files on disk with MATLAB's bicubic of the HR files, for each border."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from ... import tables
from ...errors import DataError
from ..images import Border, matlab_downscale
from .examples import load_example
from .model import Example, Loading, Scene

BORDERS: tuple[Border, ...] = get_args(Border)


@dataclass(frozen=True)
class Match:
    """Agreement of LR files with MATLAB's bicubic, over all R, G and B values.

    Attributes:
        exact: Number of equal values.
        values: Number of all values.
        largest_error: Largest absolute difference in 8-bit steps.
    """

    exact: int
    values: int
    largest_error: int

    def __str__(self) -> str:
        """Return the percentage of equal values, rounded down so that 100.0000 % means all, and the largest error."""
        percent = math.floor(self.exact / self.values * 1e6) / 1e4 if self.exact < self.values else 100
        return f"{percent:.4f} % ({self.largest_error})"


@dataclass(frozen=True)
class LRReport:
    """Result of `verify_lr`: the match of every scene's LR files with each border."""

    scenes: Mapping[str, Mapping[Border, Match]]

    def total(self, border: Border) -> Match:
        """Return the match over all scenes."""
        matches = [scene[border] for scene in self.scenes.values()]
        exact, values = sum(m.exact for m in matches), sum(m.values for m in matches)
        return Match(exact, values, max(m.largest_error for m in matches))

    @property
    def borders(self) -> tuple[Border, ...]:
        """Borders for which MATLAB's bicubic reproduces every value of every file."""
        return tuple(b for b in BORDERS if self.total(b).exact == self.total(b).values)

    def as_dict(self) -> dict[str, object]:
        """Return all counts for JSON: of all scenes and of each, by border."""

        def plain(matches: Mapping[Border, Match]) -> dict[str, object]:
            return {border: vars(match) for border, match in matches.items()}

        scenes = {name: plain(matches) for name, matches in self.scenes.items()}
        return {"borders": list(self.borders), "all": plain({b: self.total(b) for b in BORDERS}), "scenes": scenes}

    def __str__(self) -> str:
        """Return a table of all scenes and a verdict."""
        rows = [[name, *(str(matches[b]) for b in BORDERS)] for name, matches in self.scenes.items()]
        rows.append(["all", *(str(self.total(b)) for b in BORDERS)])
        header = ["exact values (largest error)", *BORDERS]
        if self.borders:
            verdict = f"MATLAB's bicubic with border {' or '.join(self.borders)} reproduces every value of these files."
        else:
            verdict = "MATLAB's bicubic reproduces these files with neither border: another program resized them."
        return f"{tables.text([header, *rows])}\n{verdict}"


def verify_lr(
    scenes: Sequence[Scene],
    scale: int,
    *,
    halve: bool = False,
    advance: Callable[[str], None] = lambda name: None,
) -> LRReport:
    """Compare the LR files of scenes with MATLAB's bicubic of their HR files, for both borders.

    Args:
        scenes: One or more scenes, all with LR files.
        scale: SR factor.
        halve: True if the LR files belong to halved HR views; see `load_example`.
        advance: Called with each scene's name after it is compared.

    Raises:
        DataError: There are no scenes, one has no LR files, one cannot be loaded, or its files have 16 bits.
    """
    without = [f"scene {scene.name}: has no LR files" for scene in scenes if not scene.lr]
    if without or not scenes:
        raise DataError("verify_lr needs at least one scene, and LR files of every scene", problems=without)
    matches: dict[str, Mapping[Border, Match]] = {}
    for scene in scenes:
        if halve:  # halving uses the border too, so the HR views differ
            examples = {
                border: load_example(scene, scale, loading=Loading(border=border, halve=True)) for border in BORDERS
            }
        else:
            examples = dict.fromkeys(BORDERS, load_example(scene, scale))
        if any(view.is_floating_point() for e in examples.values() for view in (*e.lr, *e.hr)):
            raise DataError(f"scene {scene.name}: has files of 16 bits per sample, but only 8-bit files are verified")
        matches[scene.name] = {border: _match(example, scale, border) for border, example in examples.items()}
        advance(scene.name)
    return LRReport(matches)


def _match(example: Example, scale: int, border: Border) -> Match:
    pairs = zip(example.lr, example.hr, strict=True)
    errors = [(lr.int() - matlab_downscale(hr, scale, border=border).int()).abs() for lr, hr in pairs]
    exact = sum(int((e == 0).sum()) for e in errors)
    return Match(exact, sum(e.numel() for e in errors), max(int(e.max()) for e in errors))
