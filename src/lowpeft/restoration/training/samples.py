"""The training samples: what the loop needs of a data set, and the batches that each process reads."""

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

    `crops[i]` is (lr, hr), (V,3,h,w) and (V,3,sh,sw), float32, 0..1, and depends on i alone, for every i from 0 on.
    """

    @property
    def crop_px(self) -> tuple[int, int]:
        """Height and width of the HR crop."""

    @property
    def scale(self) -> int:
        """HR sides over LR sides, s."""

    @property
    def views(self) -> int:
        """V: 2 for stereo pairs, left first, 1 for single images; those of a scene in their order."""

    @property
    def scenes(self) -> Sequence[Named]:
        """The scenes that the crops are taken from."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples that one process runs at once: a part of its share of a step's batch.

    Attributes:
        first: Number of the first sample, counted from the beginning of the run.
        lr: (n,V,3,h,w).
        hr: (n,V,3,sh,sw).
    """

    first: int
    lr: Tensor
    hr: Tensor

    @property
    def size(self) -> int:
        """Of how many samples it is."""
        return self.lr.shape[0]


def crop_for(model: object) -> tuple[int, int] | None:
    """Height and width of the only HR crop that a network can be trained on; None for any.

    Raises:
        PlanError: The network does not take and give images.
    """
    return _only_crop(image_facts(model))


def _only_crop(facts: ImageFacts) -> tuple[int, int] | None:
    if facts.fixed_px is None:
        return None
    side = facts.fixed_px * facts.scale
    return side, side


def check_crops(crops: CropSource, facts: ImageFacts, *, views: int | None) -> None:
    """Refuse crops that a network cannot be trained on.

    Args:
        crops: The data set.
        facts: Of the network.
        views: How many views of a scene the model takes together; None for a network of single images, which is
            trained on each view by itself.

    Raises:
        TrainingError: They have another scale, size or number of views than the model takes.
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
    """Facts that two data sets must share for a run to go on with the other: scenes, size, and the first crop.

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
    """Why a sample cannot be read; passed on as a value, because a reader process would bury it in its traceback."""

    error: LowpeftError


class _Guarded(Dataset[Any]):
    """The data set, with readable errors as values."""

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
    """This process's share of the batch of every step from `start` on, on the device.

    Step s runs the samples s·batch … s·batch + batch - 1, however many processes there are.

    Raises:
        DataError: A sample cannot be read.
        TrainingError: A reading process died.
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
            generator=torch.Generator(),  # else a seed for the readers would be drawn from everybody's generator
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
