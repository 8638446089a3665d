"""What an export is checked against, and what is reported of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.attachment.copies import copy_in_force
from ...core.attachment.record import has_record, module_of, recipes_of, record_of, root_of, unwrap
from ...core.files.contents import CONFIG
from ...core.observation.describe import image_facts
from ...core.observation.fingerprint import fingerprint
from ...errors import LowpeftError
from ...ports.facts import ImageFacts
from ...version import version

Size = tuple[int, int]

LEAST_SIDE = 16
"""Unit of the sides of the images that are tried, in pixels, for networks that take any size."""

LARGE: Size = (160, 96)
"""Larger size at which graphs are compared as well, in pixels, for networks that take any size."""

FULL_TOLERANCE = 1e-4
"""Largest difference of an export in float32, as a fraction of the largest output, or of 1 if that is smaller."""

HALF_TOLERANCE = 16 * torch.finfo(torch.float16).eps
"""The same for half precision: 16 steps of float16 at 1, which is 4 of 255.

Each weight and each activation is rounded by up to half a step. The roundings of many layers are independent, so
they add up like a root: 16 steps are room for some 1,000 of them.
"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written file, and how far its output is from the adapted network's.

    Attributes:
        path: Path of the file.
        bytes: Size of the file.
        program: Program that ran the file for the comparison.
        sizes: Height and width, in pixels, of the random images that were compared.
        difference: Largest absolute difference between the outputs, which are about 0..1.
        tolerance: Difference up to which the file was accepted.
        inputs: Shapes of the inputs by name, for ONNX; sides that may be of any size are names.
        outputs: The same for the outputs.
        notes: What the file is not able to do, or what was left in it.
    """

    path: Path
    bytes: int
    program: str
    sizes: tuple[Size, ...]
    difference: float
    tolerance: float
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """Return every figure by name, as values that JSON holds."""
        return {**vars(self), "path": str(self.path), "sizes": [*map(list, self.sizes)], "notes": [*self.notes]}

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in self.sizes)
        text = f"{self.path}: {self.bytes / 1e6:.2f} MB, run by {self.program} at {sizes} px: largest difference "
        text += f"{self.difference:.2g} (at most {self.tolerance:.2g})"
        return "; ".join([text, *self.notes])


@dataclass(frozen=True, kw_only=True)
class Source:
    """The network to export.

    Attributes:
        network: Copy of it on the CPU, in float32 and eval mode, with the adapters that act and their strengths.
        facts: Its facts.
        metadata: Facts for the metadata of the file.
    """

    network: nn.Module
    facts: ImageFacts
    metadata: dict[str, str]

    @classmethod
    def of(cls, model: object) -> Source:
        """Copy a network, adapted or not.

        Raises:
            PlanError: It is no network from images to images, or cannot be copied.
        """
        facts = image_facts(model)
        base = record_of(unwrap(model)).base if has_record(model) else fingerprint(root_of(model))
        metadata = {
            "lowpeft": version(),
            "architecture": facts.architecture,
            "recipe": ", ".join(recipe.name for recipe in recipes_of(model)) or "none",
            "scale": str(facts.scale),
            "channels": str(facts.channels),
            "value_range": "0..1",
            "size_multiple": str(facts.size_multiple),
            "base_sha256": base.weights,
        }
        return cls(network=copy_in_force(module_of(model)).cpu().float().eval(), facts=facts, metadata=metadata)


def sizes_to_try(facts: ImageFacts) -> tuple[Size, ...]:
    """Return heights and widths, in pixels, at which an export is compared; the first is the one for tracing.

    They are above and below the first in both directions, and mostly no multiples of what the network needs.
    """
    if facts.fixed_px is not None:
        return ((facts.fixed_px, facts.fixed_px),)
    multiple = facts.size_multiple
    unit = max(LEAST_SIDE, facts.min_px)
    unit += -unit % multiple
    return (2 * unit - 1, 3 * unit - 2), (3 * unit - 3, 2 * unit), (unit, 4 * unit - 5)


def random_images(facts: ImageFacts, size: Size, *, views: int = 1, batch: int = 1) -> tuple[Tensor, ...]:
    """Return one random image (N,C,H,W) per view, 0..1, always the same."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(batch, facts.channels, *size, generator=generator, device="cpu") for _ in range(views))


def other_images(facts: ImageFacts, size: Size, *, views: int = 1) -> dict[str, tuple[Tensor, ...]]:
    """Return images (1,C,H,W) of other kinds by name, 0..1, one per view: dark and bright noise, and smooth colours."""
    noise = random_images(facts, size, views=views)
    down, across = (torch.linspace(0.05, 0.45, side) for side in size)
    smooth = (down[:, None] + across).expand(1, facts.channels, *size)
    return {
        "dark": tuple(0.01 + 0.05 * image for image in noise),
        "bright": tuple(0.94 + 0.05 * image for image in noise),
        "smooth": tuple(smooth / (1 + 0.1 * index) for index in range(views)),
    }


def largest_difference(expected: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """Return the largest difference between images, as a fraction of the largest value, or of 1 if that is smaller.

    It is infinite for images of another shape, and NaN or infinity where the other has none.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        difference = (one - other.to(one.dtype)).abs().max() / max(1.0, float(one.abs().max()))
        worst = max(worst, float(difference.nan_to_num(float("inf"))))
    return worst


def tolerance(*, half: bool) -> float:
    """Return the largest difference at which an export is accepted."""
    return HALF_TOLERANCE if half else FULL_TOLERANCE


def checked_path(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a file to write.

    Raises:
        LowpeftError: It has none of the suffixes, is a folder, or its folder does not exist, cannot be written to, or
            contains an adapter, whose own files it might replace.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in suffixes:
        raise LowpeftError(f"{file} must end in {' or '.join(suffixes)}")
    if file.is_dir():
        raise LowpeftError(f"{file} is a folder: give the path of a file")
    if not file.parent.is_dir():
        raise LowpeftError(f"there is no folder {file.parent} to write {file.name} to: make it first")
    if not os.access(file.parent, os.W_OK):
        raise LowpeftError(f"the folder {file.parent} cannot be written to: give {file.name} another")
    if (file.parent / CONFIG).exists():
        raise LowpeftError(f"{file.parent} is the folder of an adapter: write {file.name} to another one")
    return file
