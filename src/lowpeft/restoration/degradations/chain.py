"""`Degradation`: a chain of steps, or a practical chain by name, written as one text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...checks import plain_whole
from ...errors import DataError, did_you_mean
from ..images import check_values, to_float
from .draws import generator, uniform, whole
from .practical import PRESETS, Preset
from .steps import STEPS

FORM = "STEP:VALUE,STEP:LOW..HIGH,…"
_PAIRED = {
    word: f"{word} is not made here: give the degraded images that belong to the clean ones (--data-lr, or a folder of "
    "pairs)"
    for word in ("rain", "haze", "snow", "motion", "lowlight")
}


@dataclass(frozen=True)
class Span:
    """Values of a step: one, or all from `low` to `high`, each equally likely.

    Attributes:
        low: Smallest value.
        high: Largest value.
    """

    low: float
    high: float

    def __str__(self) -> str:
        low, high = (repr(float(end)).removesuffix(".0") for end in (self.low, self.high))
        return low if self.low == self.high else f"{low}..{high}"


@dataclass(frozen=True)
class Degradation:
    """A degradation; `degradation(text)` reads one from its text, and printing it gives the text.

    Attributes:
        parts: Names of steps of `STEPS` with their values (None for a step without one), in order; or the one name of a
            practical chain of `PRESETS`.
    """

    parts: tuple[tuple[str, Span | None], ...]

    def __str__(self) -> str:
        return ",".join(name if span is None else f"{name}:{span}" for name, span in self.parts)

    def check(self, scale: int) -> None:
        """Check that the degraded images fit a network.

        Args:
            scale: Sides of the network's output divided by those of its input.

        Raises:
            DataError: The factors of `down` make another scale, or the scale is no whole number of at least 1.
        """
        if (plain_whole(scale) or 0) < 1:
            raise DataError(f"the scale must be a whole number of at least 1, not {scale!r}")
        if self._preset is not None:
            return
        factor = self._factor
        if factor == scale:
            return
        if factor == 1:
            raise DataError(
                f"the network enlarges by {scale}, but the degradation {self} does not shrink: add down:{scale} in its "
                f"place, for example down:{scale},{self}"
            )
        does = "keeps the size" if scale == 1 else f"enlarges by {scale}"
        raise DataError(f"the network {does}, but the degradation {self} shrinks by {factor}")

    def reach(self, scale: int) -> int:
        """Return the distance in px, a multiple of `scale`, at which a pixel of a clean image can change the result."""
        preset, reach, factor = self._preset, 0, 1
        if preset is not None:
            reach = preset.reach_px
        for name, span in self.parts if preset is None else ():
            reach += factor * STEPS[name].reach(0 if span is None else span.high)
            factor *= int(span.high) if name == "down" and span is not None else 1
        return math.ceil(reach / scale) * scale

    def views(self, clean: Sequence[Tensor], scale: int, *key: str | int) -> tuple[Tensor, ...]:
        """Degrade the views of a scene: with the same strengths in all, and noise of its own in each.

        Args:
            clean: One image (C,H,W) per view, all of one size, uint8 or float 0..1. Sides are multiples of `scale`.
            scale: Scale of the network; see `check`.
            key: What the random numbers depend on, and nothing else; e.g. a seed and the name of the scene.

        Returns:
            One float32 image (C,H/scale,W/scale) per view. Noise and bicubic can leave 0..1, unless a later step clips.

        Raises:
            DataError: The scale differs, there are no images, they differ in size, their sides are no multiples of the
                scale, they contain NaN or values far outside 0..1, or JPEG cannot hold their number of channels.
        """
        self.check(scale)
        _check_images(clean, scale)
        images, random = torch.stack([to_float(view).float() for view in clean]), generator(*key)
        if self._preset is not None:
            return self._preset.call(images, scale, random).unbind()
        for name, span in self.parts:
            images = STEPS[name].call(images, _drawn(name, span, random), random)
        return images.unbind()

    @property
    def _factor(self) -> int:
        return math.prod(int(span.high) for name, span in self.parts if name == "down" and span is not None)

    @property
    def _preset(self) -> Preset | None:
        return PRESETS.get(self.parts[0][0])


def _check_images(images: Sequence[Tensor], scale: int) -> None:
    shapes = [tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__ for image in images]
    if not shapes:
        raise DataError("a degradation needs at least one image, but none was given")
    if len(set(shapes)) > 1:
        raise DataError(f"the images of a scene must be of one size, but these are {', '.join(map(str, shapes))}")
    shape = shapes[0]
    if isinstance(shape, str) or len(shape) != 3 or 0 in shape:
        raise DataError(f"a degradation takes image tensors (C, H, W), not {shape}")
    if shape[1] % scale or shape[2] % scale:
        raise DataError(
            f"the sides of an image must be multiples of the scale {scale}, but this one is {shape[2]}x{shape[1]} px: "
            "mod_crop it first"
        )
    for image in images:
        check_values(image, "an image to degrade")


def _drawn(name: str, span: Span | None, random: Generator) -> float:
    if span is None:
        return 0
    if STEPS[name].whole:
        return whole(int(span.low), int(span.high), random)
    return uniform(span.low, span.high, random)


def degradation(text: str) -> Degradation:
    """Read a degradation.

    Args:
        text: Steps of `STEPS` in the order in which they are applied, e.g. "blur:1.2,down:4,noise:5..10,jpeg:60"; or
            one name of `PRESETS`.

    Raises:
        DataError: The text is not of this form, a name is unknown, or a value is out of range; all problems are listed.
    """
    if not isinstance(text, str):
        raise DataError(f"a degradation is written as text ({FORM}), for example 'noise:25', not {text!r}")
    problems: list[str] = []
    parts = [part for word in text.split(",") if (part := _part(word.strip(), problems)) is not None]
    names = [name for name, _ in parts]
    if len(parts) > 1 and (presets := [name for name in names if name in PRESETS]):
        problems.append(f"{presets[0]} is a whole chain: give it alone")
    if problems:
        known = ", ".join([*(f"{n}:VALUE" if s.valued else n for n, s in STEPS.items()), *PRESETS])
        raise DataError(f"{text!r} is not a degradation ({FORM}); known: {known}", problems=problems)
    return Degradation(tuple(parts))


def _part(word: str, problems: list[str]) -> tuple[str, Span | None] | None:
    name, colon, values = word.partition(":")
    if name in PRESETS and not colon:
        return name, None
    step = STEPS.get(name)
    if step is None:
        problems.append(_PAIRED.get(name) or f"{name!r} is no step{did_you_mean(name, [*STEPS, *PRESETS])}")
        return None
    if not step.valued or not colon:
        if step.valued or colon:
            problems.append(f"{name} needs a value: {name}:VALUE" if step.valued else f"{name} has no value")
        return name, None
    try:
        low, high = (_number(end) for end in (values.split("..") if ".." in values else (values, values)))
    except ValueError:
        problems.append(f"{word}: {values!r} is neither a number nor LOW..HIGH")
        return None
    if problem := _problem(name, Span(low, high)):
        problems.append(f"{word}: {problem}")
    return name, Span(low, high)


def _number(text: str) -> float:
    """Read a number; Python's 5_0 for 50 is none."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _problem(name: str, span: Span) -> str | None:
    """Return what is wrong with the values of a step; None if nothing is."""
    step, ends = STEPS[name], (span.low, span.high)
    if not all(step.least <= end <= step.most for end in ends) or span.high == 0:
        least = f"from {step.least:g}" if step.least else "above 0"
        return f"values must be numbers {least} to {step.most:g}"
    if span.low > span.high:
        return "the smaller value comes first"
    if step.whole and not all(end.is_integer() for end in ends):
        return "values must be whole numbers"
    if step.fixed and span.low != span.high:
        return "this step takes one value, no range"
    return None
