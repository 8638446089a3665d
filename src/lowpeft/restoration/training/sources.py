"""Where training samples come from: crops of scenes, or any map-style data set of pairs (lr, hr)."""

from __future__ import annotations

import functools
import hashlib
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ...core.observation.fingerprint import digest
from ...errors import DataError, TrainingError
from ..data import EachViewTwice
from ..images import check_values
from .own_code import users_code

EXPECTED = (
    "a sample is a pair (lr, hr) of float tensors with values 0..1 and shapes (C,h,w) and (C,s*h,s*w), or "
    "(V,C,h,w) and (V,C,s*h,s*w) for V views of a scene"
)


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str: ...


@runtime_checkable
class CropSource(Protocol):
    """An endless source of training crops; `lowpeft.restoration.data.Crops` is one.

    `crops[i]` is a pair (lr, hr) of shapes (V,C,h,w) and (V,C,sh,sw), float32, 0..1. It is defined for every i >= 0 and
    depends on i alone.
    """

    @property
    def crop_px(self) -> tuple[int, int]:
        """Height and width of the HR crop."""

    @property
    def scale(self) -> int:
        """HR sides divided by LR sides: s."""

    @property
    def views(self) -> int:
        """Number of views of a scene, V: 1 for single images, 2 for stereo pairs (left first), or more, in order."""

    @property
    def scenes(self) -> Sequence[Named]:
        """Scenes from which the crops are taken."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


class MapStyle(Protocol):
    """A finite data set: a list of pairs, or a `torch.utils.data.Dataset` with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Samples:
    """A finite data set as an endless source: all of it in each epoch, in an order drawn from the seed and the epoch.

    Sample i depends on i alone: the global generators of Python, NumPy and torch, from which a data set may draw its
    augmentations, are seeded for each sample and put back afterwards. So a run can be resumed anywhere. They belong to
    the whole process: with two runs in two threads, such augmentations, and dropout, are not repeatable.

    Attributes:
        data: The data set.
        seed: Seed of the order and of augmentations.
        crop_px, scale, views: As in `CropSource`, measured from the first sample. Other samples must have the same
            scale and number of views; their sizes may differ from batch to batch.

    Raises:
        TrainingError: The data set is empty, or its first sample is not as expected.
    """

    def __init__(self, data: MapStyle, seed: int) -> None:
        with users_code("the length of the data set cannot be found"):
            self.data, self.seed, self.count = data, seed, len(data)
        if not self.count:
            raise TrainingError("the data set is empty: give at least one pair (lr, hr)")
        lr, hr = self._sample(0, 0)
        scale, rest = divmod(hr.shape[-1], lr.shape[-1])
        if rest or not scale or [s * scale for s in lr.shape[-2:]] != [*hr.shape[-2:]]:
            raise TrainingError(
                f"sample 0 has lr {tuple(lr.shape)} and hr {tuple(hr.shape)}: the sides of hr must be those of lr "
                f"times one whole number; {EXPECTED}"
            )
        self.scale, self.views, self.channels = scale, lr.shape[0], lr.shape[1]
        self.crop_px: tuple[int, int] = (hr.shape[-2], hr.shape[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(index, self.count)
        number = int(_order(self.seed, epoch, self.count)[position])
        lr, hr = self._sample(number, index)
        if (lr.shape[0], lr.shape[1]) != (self.views, self.channels) or [s * self.scale for s in lr.shape[-2:]] != [
            *hr.shape[-2:]
        ]:
            raise TrainingError(
                f"sample {number} has lr {tuple(lr.shape)} and hr {tuple(hr.shape)}, but the first sample has scale "
                f"x{self.scale}, {self.views} view(s) and {self.channels} channels: all samples must agree in these"
            )
        return lr, hr

    def facts(self) -> dict[str, Any]:
        """Return what identifies the data set: its length, and digests of up to 16 samples, evenly spaced."""
        most = min(self.count, 16)
        numbers = [i * (self.count - 1) // max(1, most - 1) for i in range(most)]
        return {"samples": self.count, "some samples": [digest(t) for n in numbers for t in self._sample(n, n)]}

    def _sample(self, number: int, index: int) -> tuple[Tensor, Tensor]:
        with users_code(f"sample {number} of the data set cannot be read"), _seeded(self.seed, index):
            sample = self.data[number]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            found = f"{len(sample)} items" if isinstance(sample, tuple | list) else f"a {type(sample).__name__}"
            raise TrainingError(f"sample {number} of the data set has {found}: {EXPECTED}")
        problems = [p for name, t in zip(("lr", "hr"), sample, strict=True) for p in _problems(name, t)]
        if not problems and sample[0].ndim != sample[1].ndim:
            problems.append(f"lr has shape {tuple(sample[0].shape)}, hr {tuple(sample[1].shape)}")
        if not problems and sample[0].shape[:-2] != sample[1].shape[:-2]:
            problems.append(f"views and channels of lr {tuple(sample[0].shape)} and hr {tuple(sample[1].shape)} differ")
        if problems:
            raise TrainingError(f"sample {number} of the data set cannot be used ({EXPECTED}):", problems=problems)
        lr, hr = (t.detach().float() if t.ndim == 4 else t.detach().float()[None] for t in sample)
        return lr, hr


def _problems(name: str, value: object) -> list[str]:
    if not isinstance(value, Tensor):
        return [f"{name} is a {type(value).__name__}, not a tensor: convert it, e.g. by torchvision's to_tensor"]
    if value.ndim not in (3, 4) or 0 in value.shape:
        return [f"{name} has shape {tuple(value.shape)}"]
    if not value.dtype.is_floating_point:
        return [f"{name} is {str(value.dtype).removeprefix('torch.')}, not float: divide 0..255 by 255"]
    try:
        check_values(value, name)
    except DataError as error:
        return [error.message]
    return []


def source_of(data: object, seed: int) -> CropSource | Samples:
    """Return a source of training samples from what the user gave.

    Raises:
        TrainingError: It is neither a `CropSource` nor a map-style data set of pairs.
    """
    if isinstance(data, CropSource | Samples):
        return data
    if isinstance(data, DataLoader | IterableDataset):
        kind = "a DataLoader" if isinstance(data, DataLoader) else "an IterableDataset"
        raise TrainingError(
            f"train makes its own batches, in an order that can be resumed: give a data set, not {kind}"
        )
    if not (hasattr(type(data), "__getitem__") and hasattr(type(data), "__len__")) or isinstance(data, dict | str):
        raise TrainingError(
            f"a {type(data).__name__} is not a data set: give lowpeft.restoration.data.Crops, a list of pairs, or a "
            f"torch.utils.data.Dataset with a length; {EXPECTED}"
        )
    return Samples(cast(MapStyle, data), seed)


def read(source: CropSource | Samples, index: int) -> tuple[Tensor, Tensor]:
    """Return a pair (lr, hr) of a source.

    Raises:
        LowpeftError: The pair cannot be read, or is not a pair of images with values about 0..1.
    """
    with users_code(f"crop {index} cannot be read"):
        lr, hr = source[index]
        for image in (lr, hr):
            check_values(image, f"the images of sample {index}")
        return lr, hr


def names_digest(crops: CropSource) -> str:
    """Return the SHA-256 of the scenes' names."""
    names = "\n".join(scene.name for scene in crops.scenes).encode(errors="surrogateescape")
    return hashlib.sha256(names, usedforsecurity=False).hexdigest()


def control_facts(crops: CropSource | Samples) -> dict[str, str | float]:
    """Return what tells a control from the run that it is compared with; empty for all crops but `EachViewTwice`."""
    return dict(crops.facts) if isinstance(crops, EachViewTwice) else {}


def identity_of(source: CropSource | Samples) -> dict[str, Any]:
    """Return JSON values that identify the data of a run.

    Raises:
        DataError: The first crop cannot be read.
    """
    shape = {"crop px": source.crop_px, "scale": source.scale, "views": source.views}
    if isinstance(source, Samples):
        return {**shape, **source.facts()}
    return {
        **shape,
        "scenes": len(source.scenes),
        "names of the scenes": names_digest(source),
        "first crop": [digest(image) for image in read(source, 0)],
        **control_facts(source),
    }


@contextmanager
def _seeded(seed: int, index: int) -> Iterator[None]:
    """Seed the global generators for a sample within the block, and put them back."""
    value = int.from_bytes(hashlib.sha256(f"sample {seed} {index}".encode()).digest()[:8]) >> 1
    numpy = sys.modules.get("numpy")
    before = random.getstate(), torch.get_rng_state(), None if numpy is None else numpy.random.get_state()
    random.seed(value)
    torch.default_generator.manual_seed(value)
    if numpy is not None:
        numpy.random.seed(value & 0xFFFFFFFF)
    try:
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if numpy is not None:
            numpy.random.set_state(before[2])


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the numbers below `count` in the random order of an epoch."""
    value = int.from_bytes(hashlib.sha256(f"order {seed} {epoch}".encode()).digest()[:8]) >> 1
    return torch.randperm(count, generator=torch.Generator().manual_seed(value), device="cpu")
