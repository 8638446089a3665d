"""Facts of a network that running it on images requires: scale, value range, channels, sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

RECORD = "_lowpeft_record"
"""Attribute of an adapted root module that stores its `lowpeft.core.attachment.record.Record`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a network that running it on images requires.

    Attributes:
        architecture: Display name of the architecture.
        family: Name of lowpeft's family; None if the network belongs to no family (its stages are found by running it).
        scale: Output sides divided by input sides; None if the network returns no image. In a network for several tasks
            it is that of the chosen task, or the largest.
        value_range: Lowest and highest value of images into and out of the network. `lowpeft.enhance` and the commands
            use 0..1 whatever it is.
        output_range: Lowest and highest value of output images if it differs from `value_range` (MixDehazeNet: 0..1 in,
            -1..1 out); None if it does not.
        channels: Channels of input images, without `maps`; None if the network does not take a single image.
        maps: Values, in the network's own range, of constant maps that follow the channels of each input image
            (DRUNet's noise level: 15/255).
        size_multiple: Number of pixels of which sides must be multiples to need no padding.
        min_px: Smallest side, in pixels, that needs no padding.
        square: True if the network takes square images only.
        fixed_px: Only side, in pixels, of the square images that the network takes (IPT: 48); None for any size.
        strips: True if the network may be run in strips; False if it needs the whole image, e.g. for global attention.
        tasks: Names of the tasks of a checkpoint for several tasks; empty for a single task.
        output: Attribute or index (e.g. 0) of the image in the network's output; None if the output is the image.
        notes: How facts that the caller did not give were found: measured, assumed, or why they are missing. Also which
            weights were loaded from a file with averaged ones.
    """

    architecture: str
    family: str | None = None
    scale: int | None
    value_range: tuple[float, float] = (0.0, 1.0)
    output_range: tuple[float, float] | None = None
    channels: int | None
    maps: tuple[float, ...] = ()
    size_multiple: int = 1
    min_px: int = 1
    square: bool = False
    fixed_px: int | None = None
    strips: bool = True
    tasks: tuple[str, ...] = ()
    output: str | int | None = None
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """All facts by name."""
        return {f.name: getattr(self, f.name) for f in fields(Facts)}

    @property
    def range_out(self) -> tuple[float, float]:
        """Lowest and highest value of output images."""
        return self.value_range if self.output_range is None else self.output_range

    @property
    def input_channels(self) -> int | None:
        """Channels of the network's input: those of the image plus one per map; None if `channels` is None."""
        return None if self.channels is None else self.channels + len(self.maps)

    def sides_for(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width, in pixels, to which an image is padded for the network.

        With `fixed_px` the padded image is later cut into crops of that side, so its sides are at least as long.
        """
        least, step = self.fixed_px or self.min_px, self.size_multiple
        height, width = (side + -side % step for side in (max(height, least), max(width, least)))
        return (max(height, width),) * 2 if self.square else (height, width)

    def __str__(self) -> str:
        (low, high), (least, most) = self.value_range, self.range_out
        out = "" if self.output_range is None else f", {least:g}..{most:g} out"
        parts = [
            f"x{self.scale}" if self.scale is not None else "no image out",
            f"{self.channels} channels" if self.channels is not None else "no single image in",
            *(["maps of " + ", ".join(f"{v:.4g}" for v in self.maps)] if self.maps else []),
            f"values {low:g}..{high:g}{out}",
            *self._sizes(),
        ]
        if not self.strips:
            parts.append("not in strips")
        if self.tasks:
            parts.append(f"tasks {', '.join(self.tasks)}")
        return f"{self.architecture} ({self.family or 'no known family'}): {', '.join(parts)}"

    def _sizes(self) -> list[str]:
        if self.fixed_px is not None:
            return [f"{self.fixed_px}x{self.fixed_px} px only"]
        told = {
            "square images": self.square,
            f"sides in multiples of {self.size_multiple} px": self.size_multiple > 1,
            f"sides of at least {self.min_px} px": self.min_px > 1,
        }
        return [text for text, said in told.items() if said]


@dataclass(frozen=True, kw_only=True)
class ImageFacts(Facts):
    """Facts of a network from images to images; scale and channels are known."""

    scale: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a network was made: text for people, which model cards show, and a way to build another one.

    Attributes:
        expression: Python expression that makes the `Backbone` again.
        imports: Lines that the expression needs beside `import lowpeft`.
        anew: Function that builds the network with new weights; None if lowpeft does not know how.
        opening: What `load_backbone` needs beside the file of its weights, or `{"demo": True}` for the built-in
            network; None where more than a file is needed, e.g. a function of the user's.
    """

    expression: str
    imports: tuple[str, ...] = ()
    anew: Callable[[], nn.Module] | None = None
    opening: Mapping[str, str | bool] | None = None

    def described(self, facts: Mapping[str, Any]) -> Making:
        """Return how the network is made with these facts in place of those it has (see `lowpeft.describe`)."""
        if not facts:
            return self
        return replace(self, expression=call("lowpeft.describe", self.expression, **facts))


def call(function: str, *expressions: str, **values: Any) -> str:
    """Return a call as Python code; `expressions` are code, `values` are numbers, texts, lists and the like."""
    return f"{function}({', '.join([*expressions, *(f'{name}={literal(v)}' for name, v in values.items())])})"


def literal(value: object) -> str:
    """Return a value as Python code on one line, with double quotes around a text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


@dataclass(frozen=True, kw_only=True)
class Backbone(Facts):
    """Network and its facts, from `lowpeft.load_backbone` or `lowpeft.describe`; prints as one line.

    Attributes:
        module: Trainable network, never an inference wrapper.
        making: How the network was made; None if lowpeft did not make it. No file but the model card contains its code.
    """

    module: nn.Module = field(repr=False)
    making: Making | None = field(default=None, repr=False, compare=False)

    @property
    def facts(self) -> Facts:
        """Facts without the module."""
        return Facts(**self.values)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.module.parameters())

    def __repr__(self) -> str:
        return f"<Backbone {self}>"

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.parameters:,} parameters"
