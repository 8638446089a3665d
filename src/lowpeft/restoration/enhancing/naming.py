"""What is read and where results go, checked by the headers of the files before anything is done."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import DataError, LowpeftError
from ...ports.layouts import Size
from ..data.model import SIDES
from ..images import ALPHA_SUFFIXES, DEEP_SUFFIXES, PhotoHeader, check_channels, photo_header
from ..images.photos import Views
from ..inference.network import multi_view
from .failing import about
from .finding import Job, find_jobs
from .settings import FileSettings

STEREO = 2
_MOST_PX = {".webp": 16383, ".jpg": 65535}
"""Largest side of an image in a format, in px."""


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """Files that go through the network together.

    Attributes:
        files: One file, or one for each view.
        views: How the only file contains two views; None if each file is one.
        size: Height and width of a view, in px.
        bits: Bits per sample of each result.
        targets: File of each result.
    """

    files: tuple[Path, ...]
    views: Views | None
    size: Size
    bits: tuple[int, ...]
    targets: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class FileWork:
    """What is to be done.

    Attributes:
        jobs: What goes through the network.
        skipped: Results that exist and are skipped.
        failures: A line for each file that cannot be enhanced; it begins with the file.
        left_out: Images in the folder of the results that are named as the results of others.
    """

    jobs: tuple[FileJob, ...]
    skipped: tuple[Path, ...]
    failures: tuple[str, ...]
    left_out: tuple[Path, ...]


def plan_files(
    model: object, inputs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], settings: FileSettings
) -> FileWork:
    """Find the images, read their headers, and name the results; nothing is decoded, made or written.

    Args:
        model: Network (a `Backbone` or a module), adapted or not, or a stereo model.
        inputs: Files, folders and patterns (`shots/*.png`).
        out: Folder of the results.
        settings: How files are found and written.

    Raises:
        DataError: An input does not exist; the only image cannot be read; two results would have one name, replace an
            input, or exist; the model takes images that files do not have. All problems are listed.
        PlanError: The network does not take and return images.
    """
    facts, together = image_facts(model), multi_view(module_of(model))
    check_channels(facts.channels)
    views = 1 if together is None else together.views
    if views > STEREO:
        raise DataError(f"the model takes {views} views of a scene, but files are read as one image or two views")
    if views == 1 and settings.side_by_side is not None:
        raise DataError("the network takes single images: two views side by side are for stereo models")
    out = Path(out)
    mark = "restored" if facts.scale == 1 else f"x{facts.scale}"
    found = find_jobs(inputs, settings, views=views, out=out, mark=mark)
    jobs, failures = [], found.failures
    only = len(found.jobs) + len(failures) == 1
    if only and failures:
        raise DataError(failures[0])
    for job in found.jobs:
        try:
            jobs.append(_checked(job, views, facts.scale, settings))
        except LowpeftError as error:
            told = about(job[0].path, error)
            if only:
                raise told from None
            failures.append(str(told))
    named = _named(jobs, out, mark)
    skipped = _existing(named, found.files, settings)
    left = tuple(job for job in named if not set(job.targets) <= set(skipped))
    return FileWork(jobs=left, skipped=tuple(skipped), failures=tuple(failures), left_out=tuple(found.left_out))


@dataclass(frozen=True)
class _Checked:
    """A job, how its files contain views, the size of one, and the bits and suffix of each result."""

    job: Job
    views: Views | None
    size: Size
    bits: tuple[int, ...]
    suffixes: tuple[str, ...]


def _checked(job: Job, views: int, scale: int, settings: FileSettings) -> _Checked:
    """Check the headers of a job's files.

    Raises:
        DataError: A file cannot be read, the views do not belong together, or the format does not hold the result.
    """
    paths = [source.path for source in job]
    headers = [photo_header(path) for path in paths]
    size, holds = headers[0].size, None
    if views == STEREO and len(job) == 1:
        held = headers[0].views
        holds = held if held == "frames" else settings.side_by_side or held
        size = _view_size(paths[0], size, holds)
    elif len(job) == STEREO and paths[0] == paths[1]:
        raise DataError(f"{paths[0]} was given as both views: give two files, left and right")
    elif headers[0].size != headers[-1].size:
        sizes = [f"{h.size[1]}x{h.size[0]} px" for h in headers]
        raise DataError(f"the views differ in size: {paths[0]} is {sizes[0]}, {paths[1]} is {sizes[1]}")
    kinds = [_kind(header, settings) for header in headers] * (STEREO if holds else 1)
    for suffix, _ in kinds:
        if scale * max(size) > (most := _MOST_PX.get(suffix, scale * max(size))):
            raise DataError(
                f"the result of {paths[0]} would be {scale * size[1]}x{scale * size[0]} px, but the sides of {suffix} "
                f"are at most {most} px: choose another format"
            )
    for path, header, (suffix, _) in zip(paths, headers, kinds, strict=False):
        if header.alpha and suffix not in ALPHA_SUFFIXES:
            raise DataError(f"{path} has transparency, which {suffix} does not hold: choose another format")
    return _Checked(job, holds, size, tuple(bits for _, bits in kinds), tuple(suffix for suffix, _ in kinds))


def _view_size(path: Path, size: Size, holds: Views | None) -> Size:
    """Return the size of one of the two views of a file."""
    if holds is None:
        raise DataError(
            f"{path} is one image, and the model takes two views: give it two files, left and right, or a folder of "
            "files named in pairs (NAME_L and NAME_R, left/NAME and right/NAME, …), or a file of two views (MPO, JPS, "
            "or any with --side-by-side)"
        )
    if holds == "frames":
        return size
    if size[1] % 2:
        raise DataError(f"{path} is {size[1]} px wide, which is no two views side by side: the width must be even")
    return size[0], size[1] // 2


def _kind(header: PhotoHeader, settings: FileSettings) -> tuple[str, int]:
    """Return the suffix and the bits per sample of a result."""
    suffix = f".{settings.format}" if settings.format else header.suffix
    bits = settings.bits or header.bits
    if settings.format is not None:
        return suffix, bits if suffix in DEEP_SUFFIXES else 8
    fits = (bits == 8 or suffix in DEEP_SUFFIXES) and (not header.alpha or suffix in ALPHA_SUFFIXES)
    return suffix if fits else ".png", bits


def _named(jobs: Sequence[_Checked], out: Path, mark: str) -> list[FileJob]:
    """Name the results; inputs whose results would have one name keep their suffix in it.

    Raises:
        DataError: Results would have one name all the same.
    """

    def targets(checked: _Checked, whole: bool) -> tuple[Path, ...]:
        names = [source.path.name if whole else source.path.stem for source in checked.job]
        folders = [source.below for source in checked.job] * STEREO
        if checked.views is not None or (len(names) == STEREO and names[0] == names[1] and folders[0] == folders[1]):
            names = [f"{names[0]}_{side}" for side in SIDES]
        return tuple(
            out / folder / f"{name}_{mark}{suffix}"
            for folder, name, suffix in zip(folders, names, checked.suffixes, strict=False)
        )

    counts = Counter(target for job in jobs for target in targets(job, whole=False))
    chosen = [targets(job, whole=any(counts[t] > 1 for t in targets(job, whole=False))) for job in jobs]
    counts = Counter(target for each in chosen for target in each)
    if double := [str(target) for target, count in counts.items() if count > 1]:
        raise DataError(
            "several results would be written to one file: rename inputs, or run them apart:", problems=double
        )
    return [
        FileJob(files=tuple(s.path for s in job.job), views=job.views, size=job.size, bits=job.bits, targets=names)
        for job, names in zip(jobs, chosen, strict=True)
    ]


def _existing(jobs: Sequence[FileJob], inputs: Sequence[Path], settings: FileSettings) -> list[Path]:
    """Return the results that are skipped because they exist; those that are inputs are never written.

    Raises:
        DataError: Results would replace inputs, or exist and are neither skipped nor overwritten.
    """
    there = [target for job in jobs for target in job.targets if os.path.lexists(target)]
    if settings.existing == "skip":
        return there
    given = {_identity(path) for path in inputs}
    if own := [str(target) for target in there if _identity(target) in given]:
        raise DataError(
            "results would replace images that are given as inputs: choose another folder, or --skip-existing, or "
            "delete them if they are old results:",
            problems=own,
        )
    if settings.existing == "refuse" and there:
        raise DataError(
            "results exist already: choose another folder, or --skip-existing, or --overwrite:",
            problems=[str(target) for target in there],
        )
    return []


def _identity(path: Path) -> object:
    """Return what two paths of one file have in common, also through links and in other letter case."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
