"""Facts about a network that its modules do not say: scale, value range, channels, sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

RECORD = "_lowpeft_record"
"""The attribute of an adapted root module that holds its `lowpeft.core.attachment.record.Record`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What has to be known of a network to run it on images.

    Attributes:
        architecture: Name for people.
        family: lowpeft's family, None for a network of none (its stages are found by running it).
        scale: Output sides over input sides; of the task that is chosen, or the largest, in a network for several.
            None for a network that gives no image.
        value_range: Lowest and highest value of images in and out of the network. `lowpeft.enhance` and the commands
            take and give 0..1 whatever it is.
        output_range: Lowest and highest value of images out, where it is another (MixDehazeNet: -1..1 for 0..1); None
            for `value_range`.
        channels: Channels of input images, without `maps`. None for a network that takes no single image.
        maps: Values, the network's own, of constant maps that it takes behind the channels of each image (DRUNet's
            noise level: 15/255).
        size_multiple: Sides that the network takes without padding are multiples of this, in pixels.
        min_px: The least side that the network takes without padding, in pixels.
        square: The network takes square images only.
        fixed_px: The only side, in pixels, of the square images that the network takes (IPT: 48); None for any size.
        strips: Whether the network may be run in strips. Not if it needs the whole image, as for its global attention.
        tasks: What a checkpoint for several tasks can do; empty for a single task.
        output: What of the network's output is the image: the name of an attribute, or the index of an item (0); None
            if the output is the image.
        notes: How each fact that nobody gave was found: measured, assumed, or why it is missing; and which weights were
            taken of a file that has averaged ones.
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
        """Every fact by its name."""
        return {f.name: getattr(self, f.name) for f in fields(Facts)}

    @property
    def range_out(self) -> tuple[float, float]:
        """Lowest and highest value of images out of the network."""
        return self.value_range if self.output_range is None else self.output_range

    @property
    def input_channels(self) -> int | None:
        """Channels of what goes into the network: an image's and the maps'."""
        return None if self.channels is None else self.channels + len(self.maps)

    def sides_for(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, in pixels, that an image is padded to for the network.

        With `fixed_px` they are those that crops are cut from, no shorter than a crop.
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
    """Facts of a network that takes and gives images: scale and channels are known."""

    scale: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Backbone(Facts):
    """A network and its facts, from `lowpeft.load_backbone` or `lowpeft.describe`; prints as one line.

    Attributes:
        module: The trainable network. Never an inference wrapper.
    """

    module: nn.Module = field(repr=False)

    @property
    def facts(self) -> Facts:
        """The facts alone."""
        return Facts(**self.values)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.module.parameters())

    def __repr__(self) -> str:
        return f"<Backbone {self}>"

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.parameters:,} parameters"
