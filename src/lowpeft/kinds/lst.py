"""Ladder side-tuning: a small network beside the frozen one reads its stages and adds to its output image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PlanError
from ..ports.attachment import Layer
from ..ports.layouts import Features, Layout
from .base import FeatureAdapter, Forward, RootPart, Surroundings
from .bottleneck import BottleneckConfig

TEMPERATURE = 0.1
KERNEL = 3
EXPANSION = 2


@dataclass(frozen=True, kw_only=True)
class LSTConfig(BottleneckConfig):
    """Settings of a ladder side network of `hidden` channels; the paper takes an eighth of the network's width."""

    kind: ClassVar[str] = "lst"

    @property
    def places(self) -> tuple[str, ...]:
        """Place `stage`: a rung of the ladder reads the output of each stage."""
        return ("stage",)


class LSTLadder(RootPart):
    """Way back from the side network to the image: `out(norm(s_L))`, added to the network's output.

    `out` is a 3x3 convolution to the image's channels · scale², in front of a pixel shuffle; it starts at zero, so a
    new ladder adds nothing. `start` is s_0, a vector of zeros that is trained.
    """

    kind = "lst"
    acts = True

    def __init__(self, shape: tuple[int, ...], config: LSTConfig) -> None:
        super().__init__()
        channels, self.scale, self.pixels = shape
        self.start = nn.Parameter(torch.zeros(config.hidden))
        self.norm = nn.LayerNorm(config.hidden)
        self.out = nn.Conv2d(config.hidden, channels * self.scale**2, KERNEL, padding=KERNEL // 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    @classmethod
    def shape_for(cls, config: LSTConfig, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """Raise, because the shapes depend on the image: see `shape_on`.

        Raises:
            PlanError: Always.
        """
        raise PlanError("the shapes of an lst adapter depend on the network's facts")

    @classmethod
    def shape_on(cls, network: Surroundings, config: LSTConfig, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """Return the channels of the image, the scale of the network, and the pixels per position of the last stage.

        Raises:
            PlanError: The network's scale or channels are not known, or the last stage is not on the image's grid.
        """
        facts = network.facts
        if facts.scale is None or facts.channels is None:
            raise PlanError(
                f"lst adapters add to the output image, and the scale and channels of {facts.architecture} are not "
                "known: give them with lowpeft.describe(module, scale=…, channels=…)"
            )
        if facts.output is None and facts.tasks:
            raise PlanError(
                f"lst adapters add to the output image, and {facts.architecture} returns one for each of its tasks "
                f"({', '.join(facts.tasks)}): choose one with task="
            )
        pixels = network.pixels_per_position()[-1]
        if pixels is None:
            raise PlanError(
                "lst adapters add to the output image, and the features of the last stage do not lie on the input "
                "image's grid (they have other sides, as with unpadded convolutions or a border that is cut off later)"
            )
        return facts.channels, facts.scale, pixels

    def finish(self, forward: Forward, output: Tensor) -> Tensor | None:
        """Return the ladder's image, from the features that its rungs have seen."""
        state: Tensor | None = None
        for rung, features in forward.seen:
            if isinstance(rung, LSTRung) and rung.root_part is self:
                state = rung.climb(self.start[:, None, None] if state is None else state, features.values)
        if state is None:
            return None
        normed = self.norm(state.movedim(1, -1)).movedim(3, 1)
        if self.pixels > 1:
            normed = F.interpolate(normed, scale_factor=self.pixels, mode="bilinear", align_corners=False)
        image = F.pixel_shuffle(self.out(normed), self.scale)
        (height, width), sides = output.shape[-2:], image.shape[-2:]
        if sides[0] < height or sides[1] < width:
            raise PlanError(
                f"an lst adapter made an image of {sides[0]}x{sides[1]} px for an output of {height}x{width} px: the "
                f"network was described with scale {self.scale}, or its features were planned for other sides"
            )
        return image[..., :height, :width]  # the rest belongs to what the network pads, below and to the right


class LSTRung(FeatureAdapter):
    """One step of the ladder: `s_i = f_i(μ_i · s_(i-1) + (1 - μ_i) · down_i(h_i))` with h_i the output of a stage.

    μ_i = σ(gate_i / 0.1) starts at 1/2. f_i is a residual block of the side network, `t + fc2(gelu(fc1(conv t)))`, with
    a depthwise 3x3 convolution and twice the channels between; where the size of the features changes, s_(i-1) is
    resized bilinearly. The frozen network's features are detached: no gradient enters it, so it keeps nothing for
    backward. All but `out` start as PyTorch's layers do.

    Trained parameters per site: (C + 1)·h + 1 for `down` and `gate`, and 4·h² + 13·h for f_i; once 9·h·k + k + 3·h for
    the way back, with h hidden channels and k = channels of the image · scale².

    Source: Ladder Side-Tuning (arXiv 2206.06522). There the side blocks are small copies of the network's own, with
    weights cut out of them, and their last state, led back to the network's width, goes through the frozen head; here
    they are convolutional blocks for any network, and the way back leads to the image, so that not even the network's
    tail is crossed by a gradient. s_0 is a constant, not the embedding.
    """

    kind = "lst"
    root_part_class = LSTLadder
    needs_rows = True
    row_local = False
    reads_only = True

    def __init__(self, channels: int, config: LSTConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.gate = nn.Parameter(torch.zeros(()))
        self.down = nn.Linear(channels, hidden)
        self.conv = nn.Conv2d(hidden, hidden, KERNEL, padding=KERNEL // 2, groups=hidden)
        self.fc1 = nn.Conv2d(hidden, EXPANSION * hidden, 1)
        self.fc2 = nn.Conv2d(EXPANSION * hidden, hidden, 1)

    def read(self, features: Features) -> Features:
        """Return down(h), (N, hidden, H, W)."""
        rows = features.rows.detach().to(self.down.weight.dtype)
        return Features(self.down(rows).movedim(3, 1), Layout.NCHW, features.size)

    def climb(self, before: Tensor, read: Tensor) -> Tensor:
        """Return the next state (N, hidden, H, W) from the one before, or from s_0 (hidden, 1, 1), and down(h)."""
        if before.dim() == 4 and before.shape[2:] != read.shape[2:]:
            before = F.interpolate(before, size=read.shape[2:], mode="bilinear", align_corners=False)
        share = F.sigmoid(self.gate / TEMPERATURE).to(read.dtype)
        mixed = torch.lerp(read, before.expand_as(read).to(read.dtype), share)
        state: Tensor = mixed + self.fc2(F.gelu(self.fc1(self.conv(mixed))))
        return state

    def delta(self, features: Features) -> Any:
        """Raise, because a rung only reads.

        Raises:
            PlanError: Always.
        """
        raise PlanError("an lst adapter adds nothing to features; it reads them")
