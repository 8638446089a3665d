"""Running a network on files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import DataError, LowpeftError, printable
from ..images import Photo, bicubic_upscale, make_folder, read_photo, to_float, with_channels, write_image
from ..inference import Tiling, is_out_of_memory
from ..inference.network import first_parameter
from ..inference.whole import enhance_views
from .failing import about
from .naming import FileJob, FileWork, plan_files
from .room import Room
from .settings import FileSettings

PLAIN = FileSettings()
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What was done.

    Attributes:
        written: Files of the results.
        skipped: Results that existed and were skipped.
        failures: A line for each file that could not be enhanced; it begins with the file.
        left_out: Images in the folder of the results that are named as the results of others.
    """

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failures: tuple[str, ...]
    left_out: tuple[Path, ...]


def _silent(_: str) -> None:
    """Say nothing."""


def enhance_files(
    model: object,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    settings: FileSettings = PLAIN,
) -> Enhanced:
    """Enhance image files: `plan_files`, then `run_files`.

    Raises:
        DataError: As for `plan_files` and `run_files`.
        PlanError: The network does not take and return images.
    """
    return run_files(model, plan_files(model, inputs, out, settings), settings)


def run_files(
    model: object,
    work: FileWork,
    settings: FileSettings = PLAIN,
    *,
    say: Callable[[str], None] = _silent,
    advance: Callable[[str], None] = _silent,
) -> Enhanced:
    """Read, enhance and write the files of `plan_files`.

    A file that fails does not end the others, whatever the network raises. An image that does not fit into memory is
    tried once more with half of it.

    Args:
        model: As for `plan_files`.
        work: What is to be done.
        settings: As for `plan_files`.
        say: Called with sentences that concern several images, e.g. that they are run in strips.
        advance: Called after each job with the name of its first file.

    Raises:
        DataError: The precision is not for this device, or the folder of the results cannot be made.
        LowpeftError: The only job failed. What else its network raises is raised with a note of the file.
    """
    device = first_parameter(module_of(model), default=torch.empty(0)).device
    if settings.precision == "fp16" and device.type == "cpu":
        raise DataError("precision fp16 is for GPUs; on the CPU it gains nothing: give bf16 or fp32")
    room = Room(model, settings.memory_mb, say)
    written: list[Path] = []
    skipped, failures = list(work.skipped), list(work.failures)
    only = len(work.jobs) + len(failures) + len(work.skipped) == len(work.jobs) == 1
    for job in work.jobs:
        try:
            done = _run(model, job, settings, room)
            written += done
            skipped += [target for target in job.targets if target not in done and target not in skipped]
        except Exception as error:
            told = about(job.files[0], error)
            if only and isinstance(error, LowpeftError):
                raise told from error.__cause__
            if only:
                error.add_note(f"while enhancing {printable(job.files[0])}")
                raise
            failures.append(str(told))
        advance(job.files[0].name)
    return Enhanced(written=tuple(written), skipped=tuple(skipped), failures=tuple(failures), left_out=work.left_out)


def _run(model: object, job: FileJob, settings: FileSettings, room: Room) -> tuple[Path, ...]:
    """Enhance the files of one job, and write and return the results; none that exists if those are skipped."""
    for folder in dict.fromkeys(target.parent for target in job.targets):
        make_folder(folder)
    facts = image_facts(model)
    photos = _read(job, facts.channels, settings.white_level)
    views = tuple(to_float(photo.image) for photo in photos)
    results = _enhanced(model, views, job, settings, room)
    written = []
    for photo, result, bits, target in zip(photos, results, job.bits, job.targets, strict=True):
        if settings.existing != "skip" or not os.path.lexists(target):
            _write(photo, result, facts.scale, bits, target)
            written.append(target)
    return tuple(written)


def _read(job: FileJob, channels: int, white_level: int) -> list[Photo]:
    """Read the views of a job."""
    if job.views is None:
        return [read_photo(path, channels=channels, white_level=white_level) for path in job.files]
    path = job.files[0]
    if job.views == "frames":
        photos = [read_photo(path, channels=channels, white_level=white_level, frame=n) for n in (0, 1)]
        if photos[0].image.shape != photos[1].image.shape:
            raise DataError(f"{path} contains two images of different size: a photo and its preview, not two views")
        return photos
    photo = read_photo(path, channels=channels, white_level=white_level)
    halves = [_cut(photo, slice(None, job.size[1])), _cut(photo, slice(job.size[1], None))]
    return halves if job.views == "left-right" else halves[::-1]


def _cut(photo: Photo, columns: slice) -> Photo:
    alpha = None if photo.alpha is None else photo.alpha[..., columns].contiguous()
    return replace(photo, image=photo.image[..., columns].contiguous(), alpha=alpha)


def _enhanced(
    model: object, views: tuple[Tensor, ...], job: FileJob, settings: FileSettings, room: Room
) -> tuple[Tensor, ...]:
    """Run the network; once more with half the memory if the first run does not fit.

    Raises:
        LowpeftError: It does not fit into memory.
    """
    module, facts = module_of(model), image_facts(model)
    device = first_parameter(module, default=views[0]).device
    tiling: Tiling | None = room.tiling(job.size)
    for choose_next in (room.halved, lambda _: None):
        if tiling is None:
            break
        try:
            with _autocast(device.type, settings.precision):
                return enhance_views(module, views, facts, ensemble=settings.ensemble, tiling=tiling)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tiling = choose_next(job.size)
    raise LowpeftError(f"{job.files[0]} does not fit into memory: set a bound (--memory-mb)")


def _autocast(device: str, precision: str) -> AbstractContextManager[object]:
    return nullcontext() if precision == "fp32" else torch.autocast(device, _DTYPES[precision])


def _write(photo: Photo, result: Tensor, scale: int, bits: int, target: Path) -> None:
    """Write a result with what its file had beside the pixels; of a grey file it is grey."""
    image = with_channels(result, 1) if photo.grey else result
    alpha = photo.alpha
    if alpha is not None and scale > 1:
        alpha = bicubic_upscale(alpha, scale)
        alpha = alpha.clamp(0, 1) if alpha.is_floating_point() else alpha
    # The profile of colours does not describe the grey result of a grey network.
    profile = photo.profile if photo.grey or len(image) > 1 else None
    write_image(image, target, bits=bits, alpha=alpha, profile=profile, exif=photo.exif)
