"""Training samples: the protocol of a data set, its checks, and the batches of each process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...core.observation.describe import image_facts
from ...core.observation.fingerprint import digest
from ...errors import DataError, LowpeftError, TrainingError
from ...ports.facts import ImageFacts
from ...recipes import TrainSettings
from .parallel import Processes, shares


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str: ...


class CropSource(Protocol):
    """A data set of training crops; `lowpeft.restoration.data.Crops` is one.

    `crops[i]` is a pair (lr, hr) of shapes (V,3,h,w) and (V,3,sh,sw), float32, 0..1. It is defined for every i >= 0 and
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


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples that one process runs at once: one of `accumulate` parts of its share of a step's batch.

    Attributes:
        first: Number of the first sample, counted from the start of the run.
        lr: LR crops, (n,V,3,h,w).
        hr: HR crops, (n,V,3,sh,sw).
    """

    first: int
    lr: Tensor
    hr: Tensor

    @property
    def size(self) -> int:
        """Number of samples, n."""
        return self.lr.shape[0]


def crop_for(model: object) -> tuple[int, int] | None:
    """Return height and width of the only HR crop that a network can be trained on; None if it takes any size.

    Raises:
        PlanError: The network does not take and return images.
    """
    return _only_crop(image_facts(model))


def _only_crop(facts: ImageFacts) -> tuple[int, int] | None:
    if facts.fixed_px is None:
        return None
    side = facts.fixed_px * facts.scale
    return side, side


def check_crops(crops: CropSource, facts: ImageFacts, *, views: int | None) -> None:
    """Check that a network can be trained on these crops.

    Args:
        crops: Data set.
        facts: Facts of the network.
        views: Number of views of a scene that the model takes together; None for a single-image network, which is
            trained on each view separately.

    Raises:
        TrainingError: The scale, size or number of views of the crops differs from what the model takes.
    """
    problems = []
    wanted = _only_crop(facts)
    if wanted is not None and wanted != crops.crop_px:
        problems.append(
            f"{facts.architecture} is trained on crops of {wanted[0]}x{wanted[1]} HR px, "
            f"not {crops.crop_px[0]}x{crops.crop_px[1]}"
        )
    if crops.scale != facts.scale:
        problems.append(f"the crops are made for x{crops.scale}, the network is a x{facts.scale} one")
    if views not in (None, crops.views):
        problems.append(f"the model takes {views} views of a scene together, the crops have {crops.views}")
    if problems:
        raise TrainingError("the network cannot be trained on these crops:", problems=problems)


def identity_of(crops: CropSource) -> dict[str, Any]:
    """Return values that must be unchanged for a run to resume: scenes, crop size, scale, views and first crop.

    Raises:
        DataError: The first crop cannot be read.
    """
    names = hashlib.sha256("\n".join(s.name for s in crops.scenes).encode(), usedforsecurity=False).hexdigest()
    return {
        "scenes": len(crops.scenes),
        "names of the scenes": names,
        "crop px": list(crops.crop_px),
        "scale": crops.scale,
        "views": crops.views,
        "first crop": [digest(image) for image in crops[0]],
    }


@dataclass(frozen=True)
class _Failure:
    """Error of a sample that cannot be read.

    It is returned as a value, because a DataLoader worker would bury a raised error in its traceback.
    """

    error: LowpeftError


class _Guarded(Dataset[Any]):
    """Data set of (index, lr, hr) that returns a `_Failure` instead of raising."""

    def __init__(self, crops: CropSource) -> None:
        self._crops = crops

    def __getitem__(self, index: int) -> Any:
        try:
            lr, hr = self._crops[index]
        except LowpeftError as error:
            return _Failure(error)
        except OSError as error:
            return _Failure(DataError(str(error)))
        return index, lr, hr


def _stacked(rows: list[Any]) -> Any:
    for row in rows:
        if isinstance(row, _Failure):
            return row
    return rows[0][0], torch.stack([lr for _, lr, _ in rows]), torch.stack([hr for _, _, hr in rows])


def batches(
    crops: CropSource, settings: TrainSettings, processes: Processes, *, start: int, device: torch.device
) -> Iterator[list[Part]]:
    """Yield this process's share of each step's batch, from step `start` (from 0) on, as parts on the device.

    Step s runs samples s·batch … s·batch + batch - 1, for any number of processes. E.g. batch 4: step 2 runs samples
    8 … 11.

    Raises:
        DataError: A sample cannot be read.
        TrainingError: A DataLoader worker died.
    """
    share = shares(settings.batch, processes.number, settings.accumulate)[processes.index]
    steps = range(start, settings.steps)
    loader: Iterator[Any] = iter(
        DataLoader(
            _Guarded(crops),
            batch_sampler=([s * settings.batch + i for i in part] for s in steps for part in share),
            num_workers=settings.workers,
            collate_fn=_stacked,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the workers' seed would be drawn from the global generator
        )
    )
    for _ in steps:
        yield [_next(loader, device, workers=settings.workers) for _ in share]


def _next(loader: Iterator[Any], device: torch.device, *, workers: int) -> Part:
    try:
        row = next(loader)
    except RuntimeError as error:
        if not workers:
            raise
        raise TrainingError(f"a process that reads crops died: {error}") from error
    if isinstance(row, _Failure):
        raise row.error
    first, lr, hr = row
    return Part(first=first, lr=lr.to(device, non_blocking=True), hr=hr.to(device, non_blocking=True))
