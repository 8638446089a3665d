"""Room for an image: how much memory its run takes, and how it is cut if that is more than there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...ports.layouts import Size
from ..inference import Tiling, peak_bytes, strips_remark
from ..inference.memory import MB, SAFE_SHARE
from ..inference.network import first_parameter, in_eval_mode, multi_view, run
from ..inference.whole import COPIES, WHOLE

TRIAL_PX = 64
"""Side of the image, in px, that is run to learn what each pixel takes."""
SHARE_OF_FREE = 0.8
"""Share of the free memory that is used."""
_CGROUP = Path("/sys/fs/cgroup")
_FLOAT_BYTES = 4


def free_mb(device: torch.device) -> float | None:
    """Return the free memory of a device in MB; None if it is not known (MPS, a system without psutil or /proc)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) / MB
    if device.type != "cpu":
        return None
    found = [size for size in (_free_of_system(), _free_of_container()) if size is not None]
    return min(found) / MB if found else None


def _free_of_system() -> int | None:
    if find_spec("psutil") is not None:
        import psutil  # type: ignore[import-untyped]

        return int(psutil.virtual_memory().available)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_container() -> int | None:
    """Return what is left of the limit of a container (control group, version 2); None if there is no limit."""
    try:
        limit, used = (
            (_CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current")
        )
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))


class Room:
    """Chooses how each image is cut; the free memory is asked once, before the first image.

    Args:
        model: As for `lowpeft.enhance`.
        memory_mb: Limit of the user; None for the free memory.
        say: Called once with a sentence if images are run in strips.
    """

    def __init__(self, model: object, memory_mb: float | None, say: Callable[[str], None]) -> None:
        self._model, self._module, self._facts = model, module_of(model), image_facts(model)
        self._given, self._say, self._said = memory_mb, say, False
        together = multi_view(self._module)
        self._views = 1 if together is None else together.views
        self._like = first_parameter(self._module, default=torch.empty(0))
        free = free_mb(self._like.device)
        self._free = None if free is None else free * SHARE_OF_FREE
        self._mb_per_px: float | None = None

    @property
    def may_cut(self) -> bool:
        """Whether the network may be run in strips."""
        return self._facts.strips and not self._facts.square and self._facts.fixed_px is None

    def tiling(self, size: Size) -> Tiling:
        """Return how an image of this height and width (px) is cut."""
        limit = self._given if self._given is not None else self._free
        if limit is None or (self._given is None and not self.may_cut):
            return WHOLE
        if self.may_cut and self.needed_mb(size) > limit:
            self._tell(size, limit)
            return Tiling(memory_mb=limit)
        return WHOLE if self._given is None else Tiling(memory_mb=limit)

    def halved(self, size: Size) -> Tiling | None:
        """Return how an image is cut that did not fit; None if the network must not be cut."""
        if not self.may_cut:
            return None
        known = [mb for mb in (self._given, self._free, self.needed_mb(size)) if mb is not None]
        limit = (self._given if self._given is not None else min(known)) / 2
        self._tell(size, limit)
        return Tiling(memory_mb=limit)

    def needed_mb(self, size: Size) -> float:
        """Return about how much memory an image of this height and width (px) takes when it is run whole."""
        height, width = size
        if self._mb_per_px is None:
            self._mb_per_px = self._measured()
        images = self._views * self._facts.channels * height * width * _FLOAT_BYTES
        results = images * self._facts.scale**2 if self._like.device.type == "cpu" else 0
        return height * width * self._mb_per_px + (COPIES * images + results) / MB

    def _measured(self) -> float:
        sides = self._facts.sides_for(TRIAL_PX, TRIAL_PX)
        shape = (1, self._facts.channels, *sides)
        views = (torch.zeros(shape, device=self._like.device, dtype=self._like.dtype),) * self._views
        with in_eval_mode(self._module):
            peak = peak_bytes(lambda: run(self._module, views, self._facts))
        return peak / SAFE_SHARE / MB / math.prod(sides)

    def _tell(self, size: Size, limit: float) -> None:
        if self._said:
            return
        self._said = True
        self._say(
            f"an image of {size[1]}x{size[0]} px takes about {self.needed_mb(size):,.0f} MB, more than the "
            f"{limit:,.0f} MB it may take: such images are run in strips"
        )
        if remark := strips_remark(self._model):
            self._say(remark)
