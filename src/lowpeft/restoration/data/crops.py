"""Training crops: a sequence without end in which each crop depends only on the seed and its index."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import DataError
from ...ports.layouts import Size
from ..images import ImageHeader, to_float
from ..words import words
from .examples import bicubic_views, check_degraded, clean_crop_of, read_views, usable_size
from .index import read_headers
from .model import USUAL, Example, Loading, Rectangle, Scene, as_whole

BICUBIC_REACH = 3
"""LR px around a crop on which MATLAB's bicubic depends: its kernel reaches 2 and a half."""

Headers = Mapping[Path, ImageHeader | DataError]

_PERMUTATIONS = torch.tensor([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])


@dataclass(eq=False)
class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random training crops of scenes: `crops[i]` is (LR (V,C,h,w), HR (V,C,scale*h,scale*w)), float32 0..1.

    `crops[i]` depends only on the settings, `seed` and `i`, not on earlier calls or on the process. Resuming at `i`,
    any number of DataLoader workers, and the shards of a distributed run therefore give the same samples. Crops are
    numbered without end and already shuffled: read them in order, from any index. Each scene is used once per pass, in
    a new random order; positions within a scene are equally likely. `len` is the number of scenes, which is one pass,
    and iterating ends after it; `crops[i]` with a larger `i` belongs to a later pass, with other crops.

    Pairs are randomly mirrored left to right (which swaps the views, since a mirrored left camera stands on the right),
    mirrored top to bottom, and have R, G and B permuted. Single images are randomly mirrored both ways; square crops
    are also turned by quarter turns.

    With `loading.degrade` the LR crops are made from the HR crops, anew for each sample, with random numbers that
    depend on `seed` and `i` too. A margin around the crop is degraded with it where the scene has one, so that blur
    sees its surroundings. Without it, scenes without LR files get LR views by MATLAB's bicubic.

    Scenes are decoded on first use and cached (8-bit ones as uint8) until `memory_mb` is reached. The remaining scenes
    are decoded on every use; evicting others for them would gain nothing, since all scenes recur equally often.

    Attributes:
        scenes: One or more scenes, all with the same number of views.
        scale: SR factor.
        crop_px: Height and width of a crop in HR px, multiples of `scale`. The default is ASteISR's.
        augment: True to mirror, permute and turn crops as above.
        seed: Any whole number.
        clean_crops: Usable rectangle of a scene in HR px, by scene name; see `read_clean_crops`.
        loading: How the files are read and the LR crops made.
        memory_mb: Size of the cache in MiB, per process: each DataLoader worker has a cache of this size.
        deep_scenes: Number of scenes with HR files of 16 bits per sample.

    Raises:
        DataError: There are no scenes, their numbers of views differ, the crop is not a multiple of the scale, nothing
            degrades the images (at scale 1), the degradation is for another scale, or scenes are smaller than the crop
            or have files of inconsistent sizes (all are listed). The headers of all files are read for this, with an
            index of those that were read before (see `read_headers`). Damage after a header raises from `crops[i]`. The
            scene is always named.
    """

    scenes: Sequence[Scene]
    scale: int
    _: KW_ONLY
    crop_px: Size = (128, 320)
    augment: bool = True
    seed: int = 0
    clean_crops: Mapping[str, Rectangle] | None = None
    loading: Loading = USUAL
    memory_mb: float = 4096
    deep_scenes: int = field(default=0, init=False)
    _kept: dict[int, Example] = field(default_factory=dict, init=False, repr=False)
    _free_bytes: float = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.scenes, self.crop_px = tuple(self.scenes), (self.crop_px[0], self.crop_px[1])
        if self.loading.degrade is not None:
            self.scenes = tuple(Scene(scene.name, scene.hr) for scene in self.scenes)
        self._free_bytes = self.memory_mb * 2**20
        self.seed = as_whole(self.seed, "the seed of crops")
        height, width = self.crop_px
        if self.scale < 1 or min(height, width) < 1 or height % self.scale or width % self.scale:
            raise DataError(f"crop_px must be two positive multiples of the scale {self.scale}, not {self.crop_px}")
        if not self.scenes:
            raise DataError("crops need at least one scene, but none was given")
        if len({len(scene.hr) for scene in self.scenes}) > 1:
            raise DataError("some scenes are pairs and others single images; give them to separate Crops")
        for scene in self.scenes:
            check_degraded(scene, self.scale, self.loading.degrade)
        headers = read_headers([path for scene in self.scenes for path in (*scene.hr, *scene.lr)])
        problems = [problem for scene in self.scenes if (problem := self._problem(scene, headers)) is not None]
        if problems:
            raise DataError(
                f"{words(self.scale).clean} crops of {_sides(self.crop_px)} (crop_px=, on the command line --crop H W) "
                "cannot be taken from these scenes:",
                problems=problems,
            )
        self.deep_scenes = sum(any(_found(headers, path).bits > 8 for path in scene.hr) for scene in self.scenes)

    @property
    def views(self) -> int:
        """Number of views of every scene, 1 or 2."""
        return len(self.scenes[0].hr)

    @property
    def channels(self) -> int:
        """Number of channels of the crops, 3 or 1."""
        return self.loading.channels

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = as_whole(index, "the number of a crop")
        if index < 0:
            raise IndexError(f"crops are numbered from 0, without end; there is no crop {index}")
        epoch, position = divmod(index, len(self.scenes))
        example = self._example(_shuffled(self.seed, epoch, len(self.scenes))[position])
        draws = _Draws("crop", self.seed, index)
        height, width = (side // self.scale for side in self.crop_px)
        rows, columns = (side // self.scale for side in example.hr[0].shape[-2:])
        top = draws.below(rows - height + 1)
        left = draws.below(columns - width + 1)
        hr = _cut(example.hr, top * self.scale, left * self.scale, self.crop_px)
        lr = _cut(example.lr, top, left, (height, width)) if example.lr else self._made(example.hr, top, left, index)
        cut = [to_float(lr), to_float(hr)]
        if self.augment:
            cut = _augmented(cut, draws)
        return cut[0].contiguous(), cut[1].contiguous()

    def _made(self, images: Sequence[Tensor], top: int, left: int, index: int) -> Tensor:
        """Make the LR crop at a row and a column of LR px from HR views, with a margin of the scene around it."""
        s = self.scale
        margin = BICUBIC_REACH if self.loading.degrade is None else self.loading.degrade.reach(s) // s
        height, width = (side // s for side in self.crop_px)
        y0, x0 = max(0, top - margin), max(0, left - margin)
        around = [
            image[:, y0 * s : (top + height + margin) * s, x0 * s : (left + width + margin) * s] for image in images
        ]
        if self.loading.degrade is None:
            made = bicubic_views(around, s, border=self.loading.border)
        else:
            made = self.loading.degrade.views(around, s, "crop", self.seed, index)
        return _cut(made, top - y0, left - x0, (height, width))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker starts with an empty cache.
        return {**self.__dict__, "_kept": {}, "_free_bytes": self.memory_mb * 2**20}

    def _example(self, number: int) -> Example:
        if number in self._kept:
            return self._kept[number]
        scene = self.scenes[number]
        crop = clean_crop_of(scene, self.clean_crops)
        lr, hr = read_views(scene, self.scale, clean_crop=crop, loading=self.loading)
        example = Example(scene.name, lr, hr)
        if smaller := self._smaller(scene, (example.hr[0].shape[-2], example.hr[0].shape[-1])):
            raise DataError(smaller)
        size = sum(image.nbytes for image in (*example.lr, *example.hr))
        if not example.lr and self.loading.degrade is None:
            size += size // self.scale**2
        if size > self._free_bytes:
            return example
        if (
            not example.lr and self.loading.degrade is None
        ):  # made once where it is kept, otherwise only around each crop
            example = replace(example, lr=bicubic_views(hr, self.scale, border=self.loading.border))
        self._kept[number] = example
        self._free_bytes -= size
        return example

    def _problem(self, scene: Scene, headers: Headers) -> str | None:
        try:
            crop = clean_crop_of(scene, self.clean_crops)
            size = usable_size(scene, self.scale, clean_crop=crop, size_of=lambda path: _found(headers, path).size)
        except DataError as error:
            return str(error)
        return self._smaller(scene, size)

    def _smaller(self, scene: Scene, size: Size) -> str | None:
        if size[0] >= self.crop_px[0] and size[1] >= self.crop_px[1]:
            return None
        return f"scene {scene.name}: {_sides(size)} can be used, but a crop has {_sides(self.crop_px)}"


def _found(headers: Headers, path: Path) -> ImageHeader:
    """Return the header of a file, or raise the error that it has instead."""
    found = headers[path]
    if isinstance(found, DataError):
        raise found
    return found


def _cut(images: Sequence[Tensor], top: int, left: int, size: Size) -> Tensor:
    """Return the same rectangle of each view, stacked: (V,C,h,w)."""
    return torch.stack([image[:, top : top + size[0], left : left + size[1]] for image in images])


def _sides(size: Size) -> str:
    """Return height and width in the order in which crops are given."""
    return f"height {size[0]}, width {size[1]} px"


class _Draws:
    """Random whole numbers from a hash of a key, the same on every machine and with any version of Python and torch."""

    def __init__(self, *key: str | int) -> None:
        self._left = int.from_bytes(hashlib.sha512(repr(key).encode()).digest())

    def below(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1, all equally likely (there are 2**512 states)."""
        self._left, number = divmod(self._left, count)
        return number


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, epoch: int, count: int) -> list[int]:
    """Return the numbers below `count` in the random order of an epoch."""
    return sorted(range(count), key=lambda n: hashlib.sha512(repr(("order", seed, epoch, n)).encode()).digest())


def _augmented(cut: list[Tensor], draws: _Draws) -> list[Tensor]:
    """Return the LR and HR views (V,3,H,W) of a crop, both augmented in the same way."""
    pair = cut[0].shape[0] == 2
    if draws.below(2):
        cut = [views.flip(0, -1) for views in cut]  # the mirrored left view is the new right view
    if draws.below(2):
        cut = [views.flip(-2) for views in cut]
    if pair and cut[0].shape[1] == 3:
        channels = _PERMUTATIONS[draws.below(len(_PERMUTATIONS))]
        cut = [views[:, channels] for views in cut]
    if not pair and cut[0].shape[-1] == cut[0].shape[-2] and draws.below(2):
        cut = [views.transpose(-1, -2) for views in cut]  # with the flips: all eight turns and reflections
    return cut
