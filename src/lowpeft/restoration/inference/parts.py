"""Partwise runs of the padded views of one pass: in strips, or in crops for a network of fixed input size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from torch import nn

from ...errors import DataError
from ...ports.facts import ImageFacts
from .memory import MB, SAFE_SHARE, most_that_fits, peak_bytes
from .network import Views, run_scaled
from .tiling import Crops, Tiling, strips


class Part(NamedTuple):
    """Results of one part, the images of the batch that they belong to, and their top left corner in HR px."""

    results: Views
    images: slice
    top: int
    left: int


def cut_into_parts(module: nn.Module, views: Views, facts: ImageFacts, tiling: Tiling) -> Cut:
    """Choose strips or crops for these views, which must have a size that the network takes."""
    kind = InStrips if facts.fixed_px is None else InCrops
    return kind(module, views, facts, tiling)


class Cut(ABC):
    """Views that are run in parts of a number of units, which are rows (strips) or crops.

    Attributes:
        shape: Shape of each view, (N,C,H,W).
        whole: Total number of units.
        step: Numbers of units to run are multiples of this.
        around: Number of extra units that go through the network with a part and are discarded.
    """

    whole: int
    step: int
    around: int

    def __init__(self, module: nn.Module, views: Views, facts: ImageFacts, tiling: Tiling) -> None:
        self.views, self.shape, self.scale = views, views[0].shape, facts.scale
        self.run = partial(run_scaled, module, facts=facts)

    @abstractmethod
    def parts(self, at_once: int) -> Iterator[Part]:
        """Run the parts one by one; no reference to results is kept while the next part runs."""

    @abstractmethod
    def unbounded(self, tiling: Tiling) -> int:
        """Return the number of units of a part if the tiling sets no memory limit."""

    @abstractmethod
    def run_first(self, count: int) -> Views:
        """Run the first `count` units, to measure their memory."""

    @abstractmethod
    def __str__(self) -> str:
        """Describe the smallest part, for messages."""

    def at_once(self, tiling: Tiling, *, kept_bytes: int) -> int:
        """Choose the number of units of a part.

        Args:
            tiling: The user's tiling.
            kept_bytes: Bytes needed beside the network's own tensors.

        Raises:
            DataError: Not even the smallest part fits into the memory limit.
        """
        if tiling.memory_mb is None:
            return self.unbounded(tiling)
        found = most_that_fits(
            self._bytes, step=self.step, whole=self.whole, budget=(tiling.memory_mb * MB - kept_bytes) * SAFE_SHARE
        )
        if found == self.whole:
            return found
        if found >= self.step + self.around:
            return found - self.around
        small, least = min(self.step, self.whole), min(self.step + self.around, self.whole)
        needed = kept_bytes + self._bytes(small) * least / small / SAFE_SHARE
        raise DataError(
            f"memory_mb={tiling.memory_mb:g} is too little: {self} takes about {needed / MB:.0f} MB, "
            f"{kept_bytes / MB:.0f} MB of them for the images themselves"
        )

    def _bytes(self, count: int) -> int:
        return peak_bytes(lambda: self.run_first(count))


class InStrips(Cut):
    """Full-width strips; a unit is a row. If the network must not be cut, the only strip is the whole image."""

    def __init__(self, module: nn.Module, views: Views, facts: ImageFacts, tiling: Tiling) -> None:
        super().__init__(module, views, facts, tiling)
        self.whole, self.facts = self.shape[-2], facts
        self.cut = facts.strips and not facts.square
        self.step = tiling.aligned_to(facts.size_multiple) if self.cut else self.whole
        self.context_px = -(-tiling.context_px // self.step) * self.step if self.cut else 0
        self.around = 2 * self.context_px

    def unbounded(self, tiling: Tiling) -> int:
        rows = tiling.strip_px or self.whole
        if rows < self.whole and not self.cut:
            raise DataError(f"strip_px={tiling.strip_px} was asked for an image of {self.whole} rows, and {self._why}")
        return rows

    def parts(self, at_once: int) -> Iterator[Part]:
        for strip in strips(self.whole, at_once, self.context_px, self.step, self.facts.min_px):
            rows = tuple(v[..., strip.first : strip.last, :] for v in self.views)
            top = (strip.keep_first - strip.first) * self.scale
            kept = slice(top, top + (strip.keep_last - strip.keep_first) * self.scale)
            yield Part(tuple(r[..., kept, :] for r in self.run(rows)), slice(None), strip.keep_first * self.scale, 0)

    def run_first(self, count: int) -> Views:
        rows, _ = self.facts.sides_for(count, 1)
        return self.run(tuple(v[..., :rows, :] for v in self.views))

    @property
    def _why(self) -> str:
        if self.facts.square:
            return f"{self.facts.architecture} takes square images only, so that it cannot be run in strips"
        return (
            f"{self.facts.architecture} needs the whole image, so that strips would give another result; if they "
            "shall: lowpeft.describe(model, strips=True)"
        )

    def __str__(self) -> str:
        if not self.cut:
            return f"the whole image ({self._why})"
        return f"a strip of {self.step} rows with {self.context_px} more on either side"


class InCrops(Cut):
    """Overlapping crops of the network's fixed input size; a unit is one crop of each view."""

    step, around = 1, 0

    def __init__(self, module: nn.Module, views: Views, facts: ImageFacts, tiling: Tiling) -> None:
        super().__init__(module, views, facts, tiling)
        images, _, height, width = self.shape
        self.crops = Crops(images, height, width, side_px=facts.fixed_px or 1, scale=facts.scale)
        self.whole = len(self.crops.all)

    def unbounded(self, tiling: Tiling) -> int:
        return tiling.chunk

    def parts(self, at_once: int) -> Iterator[Part]:
        for crops in self.crops.chunks(at_once):
            results = self.run(tuple(self.crops.cut(v, crops) for v in self.views))
            for i, crop in enumerate(crops):
                weighted = tuple((r[i] * self.crops.weight(crop, r))[None] for r in results)
                images = slice(crop.image, crop.image + 1)
                yield Part(weighted, images, crop.top * self.scale, crop.left * self.scale)
            del results, weighted

    def run_first(self, count: int) -> Views:
        return self.run(tuple(self.crops.cut(v, self.crops.all[:count]) for v in self.views))

    def __str__(self) -> str:
        return "one crop"
