"""The page of an evaluation: verdicts, all figures, and the worst and best scenes in sliders, in one HTML file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..data import Example
from ..data.model import SIDES
from ..images import eight_bit, make_folder
from ..pages import Code, Heading, Part, Pictures, Slider, Table, Text, write_page
from ..words import words
from .measure import by_bicubic
from .outcome import Outcome
from .pictures import ERROR_GAIN, PATCH_PX, error_map, most_different
from .plots import plot_gains
from .report import overview_cells
from .results import read_results

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

NAME = "index.html"
TRUTH = "truth"
"""Name of the clean image on pages."""
LEAST_PX, MOST_PX, PAGE_PX = 160, 640, 4_000_000
"""Smallest and largest side to which images are cut, and pixels of all colour images of a page, so that it can be
mailed: a pixel of a noisy image takes 2 to 3 bytes as PNG, one of a map of errors a third of that."""


@dataclass(frozen=True, kw_only=True)
class ScenePictures:
    """What the pictures of a page are made from.

    Attributes:
        load: Function that reads a scene again, by name.
        scale: HR sides divided by LR sides.
        scenes: Number of scenes to show: the worst and, of an odd number one less, the best.
        attended: Function that draws where a model of two views looks in a scene, or returns None; None for no such
            picture.
    """

    load: Callable[[str], Example]
    scale: int
    scenes: int
    attended: Callable[[Example], Picture | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a measurement came about.

    Attributes:
        command: The command line that made it.
        training: Plots of the training of methods, or why there is none, by method.
    """

    command: str = ""
    training: Mapping[str, Picture | str] = field(default_factory=dict)


def write_outcome_page(
    outcome: Outcome, folder: Path, pictures: ScenePictures | None = None, *, origin: Origin | None = None
) -> Path:
    """Write `index.html` beside the reports and the restored images, which are read for the shown scenes only.

    Args:
        outcome: What was measured.
        folder: Folder of the reports.
        pictures: What the pictures of scenes are made from; None for a page without them.
        origin: How the measurement came about.

    Returns:
        Path of the page.

    Raises:
        DataError: An image cannot be read, or the page cannot be written; an existing page is unchanged.
    """
    origin = origin or Origin()
    parts = [
        *_answer(outcome),
        Heading("Scenes"),
        Table(_scene_cells(outcome), "A click on a heading sorts the table."),
        *(() if pictures is None else _shown(outcome, folder, pictures)),
        *_training(origin.training),
        Heading("About"),
        Table([["fact", "value"], *([key, str(value)] for key, value in outcome.about().items())], wrap=True),
    ]
    if origin.command:
        parts.append(Code(origin.command))
    return write_page(make_folder(folder) / NAME, _title(outcome), parts)


def view_parts(
    images: Mapping[str, Tensor], caption: str, shown: tuple[str, str], *, errors: Iterable[str]
) -> list[Part]:
    """Return a slider of one view of a scene, and below it maps of what methods get wrong.

    Args:
        images: Images of one size by name, with the clean one as `TRUTH`.
        caption: Text below the slider.
        shown: Names of the images that are shown at first.
        errors: Names of the images whose errors are mapped.
    """
    maps = {f"error of {name}": error_map(images[name], images[TRUTH]) for name in errors}
    note = f"Errors times {ERROR_GAIN}: black is none, white 1/{ERROR_GAIN} of the range or more."
    return [Slider(images, caption, shown=shown), Pictures(maps, note)]


def _title(outcome: Outcome) -> str:
    """Return what was measured, and on what."""
    names = [each.method for each in outcome.gains] or [outcome.reports[-1].method]
    beside = f" beside {outcome.gains[0].over}" if outcome.gains else ""
    data = outcome.facts.get("data")
    return f"{', '.join(names)}{beside}" + (f", on {data}" if data else "")


def _answer(outcome: Outcome) -> list[Part]:
    """Return what the reader wants to know first: the verdicts, the means, and the gains with their intervals."""
    gains = (*outcome.gains, *outcome.between)
    parts: list[Part] = [Text(each.verdict()) for each in gains]
    if outcome.other_view is not None:
        parts += map(Text, outcome.other_view.claim().splitlines())
    parts.append(Table(overview_cells(outcome.reports), "Means"))
    if not outcome.gains:
        return parts
    said = "Gains. Interval: how far the mean would move with other scenes of this kind."
    parts += [Table(each.cells(), said * (i == 0)) for i, each in enumerate(gains)]
    if (plotted := plot_gains(outcome.gains)) is not None:
        column = outcome.gains[0].columns[0].column.name
        note = f"{column}: the mean with its 95 % interval, and each scene as a dot."
        parts.append(Pictures({f"gain over {outcome.gains[0].over}": plotted}, note))
    return parts


def _scene_cells(outcome: Outcome) -> list[list[str]]:
    """Return the table of scenes by all columns of the protocol, the first one's figures first, without the mean."""
    names = [column.name for column in outcome.reports[0].protocol.columns]
    parts = [outcome.scene_cells(i) for i in range(len(names))]
    heading = ["scene", *(f"{name}, {of}" for name, cells in zip(names, parts, strict=True) for of in cells[0][1:])]
    rows = zip(*(cells[1:-1] for cells in parts), strict=True)
    return [heading, *([row[0][0], *(cell for part in row for cell in part[1:])] for row in rows)]


def _shown(outcome: Outcome, folder: Path, pictures: ScenePictures) -> Iterable[Part]:
    """Return the sections of the worst and the best scenes."""
    ranking, count = outcome.by_worst(), pictures.scenes
    first, last = outcome.reports[0].protocol.columns[0].name, outcome.reports[-1].method
    gain = "mean gain of all methods" if len(outcome.gains) > 1 else "gain"
    worst, best = f"the smallest {gain}", f"the largest {gain}"
    if not outcome.gains:
        worst, best = (f"the {which} {first} of {last}" for which in ("worst", "best"))
    sections = {f"All scenes, {worst} first": ranking}
    if len(ranking) > count:
        bests = ranking[len(ranking) - count // 2 :][::-1]
        sections = {f"Scenes with {worst}": ranking[: count - len(bests)], f"Scenes with {best}": bests}
    shown = sum(map(len, sections.values()))
    for title, scenes in sections.items():
        yield from [Heading(title)] * bool(scenes)
        for scene in scenes:
            example = pictures.load(scene)
            yield from _scene(outcome, folder, example, pictures.scale, shown)
            if pictures.attended is not None and (picture := pictures.attended(example)) is not None:
                yield Pictures({"attended disparity": picture})


def _scene(outcome: Outcome, folder: Path, example: Example, scale: int, shown: int) -> Iterable[Part]:
    """Return the sliders and maps of errors of one scene, cut to where the methods differ most."""
    over, judged = _compared(outcome, scale)
    views = _views([report.method for report in outcome.reports], folder, example, scale)
    mapped = [name for name in (over, *judged) if name != TRUTH]
    weight = len(views) * (len(views[0]) + len(mapped) / 3)
    side = min(MOST_PX, max(LEAST_PX, math.isqrt(int(PAGE_PX / (shown * weight)))))
    box = _box(views[0][over], [views[0][name] for name in judged], side)
    figures = _figures(outcome, example.name)
    whole = tuple(views[0][over].shape[1:])
    yield Heading(example.name, level=3)
    for i, images in enumerate(views):
        caption = " ".join([f"{SIDES[i].capitalize()} view."] * (len(views) > 1) + [f"{figures}."] * (i == 0))
        if (box.height, box.width) != whole:
            where = "the same part" if i else f"where {over} and {' or '.join(judged)} differ most"
            caption += f" {box.width}x{box.height} of {whole[1]}x{whole[0]} px are shown: {where}."
        cut = {name: box.cut(image) for name, image in images.items()}
        yield from view_parts(cut, caption, (over, judged[0]), errors=mapped)


def _compared(outcome: Outcome, scale: int) -> tuple[str, list[str]]:
    """Return the image that the others are held against, and these: frozen and adapted, where both were measured."""
    if outcome.gains:
        return outcome.gains[0].over, [each.method for each in outcome.gains]
    baseline, last = words(scale).baseline, outcome.reports[-1].method
    return baseline, [TRUTH if last == baseline else last]


def _views(methods: Iterable[str], folder: Path, example: Example, scale: int) -> list[dict[str, Tensor]]:
    """Return for each view its images by name, uint8: bicubic or the input, those of the methods, and the truth."""
    results = {name: read_results(folder, name, example) for name in methods}
    baseline = words(scale).baseline
    if baseline not in results:
        results = {baseline: by_bicubic(scale)(example)} | results
    results[TRUTH] = example.hr
    return [{name: eight_bit(each[i]) for name, each in results.items()} for i in range(len(example.hr))]


class _Box(NamedTuple):
    """A part of an image."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """Return a copy of the part, which does not keep the whole image in memory."""
        return image[:, self.top : self.top + self.height, self.left : self.left + self.width].clone()


def _box(image: Tensor, others: Sequence[Tensor], side: int) -> _Box:
    """Return the part with sides up to `side` around the patch where an image differs most from others."""
    sizes = [min(side, whole) for whole in image.shape[1:]]
    middles = [corner + PATCH_PX // 2 for corner in most_different(image, *others)]
    top, left = (
        min(max(0, middle - size // 2), whole - size)
        for middle, size, whole in zip(middles, sizes, image.shape[1:], strict=True)
    )
    return _Box(top, left, *sizes)


def _figures(outcome: Outcome, scene: str) -> str:
    """Return the figures of a scene as text: `PSNR: frozen 30.123, adapted 30.456, adapted over frozen +0.333`."""
    heading, *rows = outcome.scene_cells()
    row = next(row for row in rows if row[0] == scene)
    pairs = zip(heading[1:], row[1:], strict=True)
    return f"{heading[0]}: {', '.join(f'{name} {figure}' for name, figure in pairs)}"


def _training(training: Mapping[str, Picture | str]) -> Iterable[Part]:
    """Return the section of the curves of training, if there are any."""
    if training:
        yield Heading("Training")
    yield from (Text(f"{name}: {said}") for name, said in training.items() if isinstance(said, str))
    if plots := {name: plotted for name, plotted in training.items() if not isinstance(plotted, str)}:
        yield Pictures(
            plots, "Loss of each step and its running mean, learning rate, and validation if it was measured."
        )
