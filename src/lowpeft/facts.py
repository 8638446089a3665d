"""Facts about a network that its modules do not say: scale, value range, channels, sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

RECORD = "_lowpeft_record"
"""The attribute of an adapted root module that holds its `lowpeft.record.Record`."""


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
        channels: Channels of input images, without further maps that some networks take (DRUNet's noise level). None
            for a network that takes no single image.
        size_multiple: Sides that the network takes without padding are multiples of this, in pixels.
        fixed_px: The only side, in pixels, of the square images that the network takes (IPT: 48); None for any size.
        tasks: What a checkpoint for several tasks can do; empty for a single task.
        output: The attribute of the network's output that holds the image; None if the output is the image.
        notes: How each fact that nobody gave was found: measured, assumed, or why it is missing.
    """

    architecture: str
    family: str | None = None
    scale: int | None
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: int | None
    size_multiple: int = 1
    fixed_px: int | None = None
    tasks: tuple[str, ...] = ()
    output: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """Every fact by its name."""
        return {f.name: getattr(self, f.name) for f in fields(Facts)}

    def __str__(self) -> str:
        low, high = self.value_range
        parts = [
            f"x{self.scale}" if self.scale is not None else "no image out",
            f"{self.channels} channels" if self.channels is not None else "no single image in",
            f"values {low:g}..{high:g}",
        ]
        if self.fixed_px is not None:
            parts.append(f"{self.fixed_px}x{self.fixed_px} px only")
        elif self.size_multiple > 1:
            parts.append(f"sides in multiples of {self.size_multiple} px")
        if self.tasks:
            parts.append(f"tasks {', '.join(self.tasks)}")
        return f"{self.architecture} ({self.family or 'no known family'}): {', '.join(parts)}"


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
