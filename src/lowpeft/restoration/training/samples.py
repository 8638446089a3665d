"""Training samples: their checks against the model, and the batches of each process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import LowpeftError, TrainingError
from ...recipes import TrainSettings
from ..data import Crops, EachViewTwice
from ..inference.network import multi_view
from .parallel import Processes
from .sources import CropSource, Samples, control_facts, names_digest, read


class MicroBatch(NamedTuple):
    """Samples that one process runs at once: one of `accumulate` parts of its share of a step's batch.

    Attributes:
        first: Number of the first sample, counted from the start of the run.
        lr: LR crops, (n,V,3,h,w).
        hr: HR crops, (n,V,3,sh,sw).
    """

    first: int
    lr: Tensor
    hr: Tensor


def crop_for(model: object) -> tuple[int, int] | None:
    """Return height and width of the only HR crop that a network can be trained on; None if it takes any size.

    Raises:
        PlanError: The network does not take and return images.
    """
    facts = image_facts(model)
    return None if facts.fixed_px is None else (facts.fixed_px * facts.scale, facts.fixed_px * facts.scale)


def check_crops(crops: CropSource | Samples, model: object) -> None:
    """Check that a network can be trained on these crops.

    A `MultiViewModel` takes crops with its number of views. Any other network is trained on each view separately.

    Raises:
        TrainingError: The scale, size, number of views or channels of the crops differs from what the model takes.
        PlanError: The network does not take and return images.
    """
    facts, views_model = image_facts(model), multi_view(module_of(model))
    only, problems = crop_for(model), []
    if only not in (None, crops.crop_px):
        problems.append(f"{facts.architecture} takes crops of {only} HR px (height, width), these have {crops.crop_px}")
    if crops.scale != facts.scale:
        problems.append(f"the network is for scale x{facts.scale}, the crops are for x{crops.scale}")
    if views_model is not None and views_model.views != crops.views:
        problems.append(f"the model takes {views_model.views} views of a scene, the crops have {crops.views}")
    if isinstance(crops, Crops | Samples) and crops.channels != facts.channels:
        problems.append(
            f"the network takes images of {facts.channels} channels, the crops have {crops.channels} (Crops(…, "
            f"loading=Loading(channels={facts.channels})) reads files so)"
        )
    if problems:
        raise TrainingError("the network cannot be trained on these crops:", problems=problems)


def run_facts(crops: CropSource | Samples, settings: TrainSettings) -> dict[str, str | float]:
    """Return what is saved of a run with its result: number and names of its scenes, `control_facts`, the average."""
    if isinstance(crops, Samples):
        data = f"{crops.count} sample{'s' * (crops.count > 1)} of a data set of one's own"
    else:
        count = len(crops.scenes)
        data = f"{count} scene{'s' * (count > 1)} (SHA-256 of their names: {names_digest(crops)[:16]}…)"
    inner = crops.crops if isinstance(crops, EachViewTwice) else crops
    if isinstance(inner, Crops) and inner.deep_scenes:
        data += f", {inner.deep_scenes} of 16 bits, read as float"
    average = {"trained tensors": f"moving average (EMA), decay {settings.ema_decay}"} if settings.ema_decay else {}
    return {"training data": data, **control_facts(crops), **average}


def check_batch(settings: TrainSettings, processes: Processes) -> None:
    """Check that a batch has a sample for every micro-batch of every process.

    Raises:
        TrainingError: The batch is too small; the message states the minimum.
    """
    least = processes.number * settings.accumulate
    if settings.batch < least:
        raise TrainingError(
            f"a batch of {settings.batch} cannot be split over {processes.number} processes with accumulate = "
            f"{settings.accumulate}: it must have at least {least} samples"
        )


def shares(batch: int, processes: int, parts: int) -> list[list[range]]:
    """Split a step's samples 0 … batch - 1 into ranges: a list of `parts` ranges for each process.

    Ranges are consecutive and differ in size by at most one; together they cover every sample once. E.g. batch 5, 2
    processes, 1 part each: 0 … 1 and 2 … 4.
    """
    edges = [batch * i // (processes * parts) for i in range(processes * parts + 1)]
    ranges = [range(a, b) for a, b in itertools.pairwise(edges)]
    return [ranges[p * parts : (p + 1) * parts] for p in range(processes)]


class _ErrorsAsValues(Dataset[Any]):
    """Data set of (index, lr, hr) that returns the error of a sample that cannot be read.

    A DataLoader worker would bury a raised error in its traceback.
    """

    def __init__(self, crops: CropSource | Samples) -> None:
        self._crops = crops

    def __getitem__(self, index: int) -> Any:
        try:
            return index, *read(self._crops, index)
        except LowpeftError as error:
            return error


def _stacked(samples: list[Any]) -> Any:
    """Return (index of the first, lr, hr) of these samples, or the first error among them."""
    for sample in samples:
        if isinstance(sample, LowpeftError):
            return sample
    indices, lr, hr = zip(*samples, strict=True)
    if sizes := sorted({tuple(image.shape) for image in hr} if len({image.shape for image in hr}) > 1 else ()):
        return TrainingError(
            f"the samples of a batch differ in size, (V,C,H,W): {' and '.join(map(str, sizes[:3]))}; crop them to one "
            "size, or set batch = 1"
        )
    return indices[0], torch.stack(lr), torch.stack(hr)


def batches(
    crops: CropSource | Samples, settings: TrainSettings, processes: Processes, *, start: int, device: torch.device
) -> Iterator[list[MicroBatch]]:
    """Yield this process's share of each step's batch, from step `start` (from 0) on, as micro-batches on the device.

    Step s runs samples s·batch … s·batch + batch - 1, for any number of processes. E.g. batch 4: step 2 runs samples
    8 … 11.

    Raises:
        LowpeftError: A sample cannot be read, or a DataLoader worker died.
    """
    share = shares(settings.batch, processes.number, settings.accumulate)[processes.index]
    steps = range(start, settings.steps)
    loader: Iterator[Any] = iter(
        DataLoader(
            _ErrorsAsValues(crops),
            batch_sampler=([s * settings.batch + i for i in part] for s in steps for part in share),
            num_workers=settings.workers,
            collate_fn=_stacked,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the workers' seed would be drawn from the global generator
        )
    )
    for _ in steps:
        try:
            samples = [next(loader) for _ in share]
        except RuntimeError as error:
            if not settings.workers:
                raise
            raise TrainingError(f"a worker process that reads crops died: {error}") from error
        for failed in samples:
            if isinstance(failed, LowpeftError):
                raise failed
        yield [
            MicroBatch(n, lr.to(device, non_blocking=True), hr.to(device, non_blocking=True)) for n, lr, hr in samples
        ]
