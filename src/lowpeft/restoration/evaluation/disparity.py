"""Where a stereo model looks: the disparity that its adapters attend to, for every pixel of both views."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.observation.describe import image_facts
from ...core.operations.listening import listening_copy
from ...core.padding import pad_to
from ...errors import DataError
from ...kinds import FeatureAdapter
from ...ports.layouts import Features, Matches
from ..inference import Tiling
from ..inference.boxes import Box, cut, run_boxes
from ..inference.memory import MemoryLimit
from ..inference.network import check_images, first_parameter, in_eval_mode, multi_view, padded, size
from ..inference.whole import WHOLE


@dataclass(frozen=True, kw_only=True, eq=False)
class AttendedDisparity:
    """Where the adapter of one site looks, for each pixel of the left and the right view.

    Attributes:
        adapter: Name of the adapter.
        site: Path of the site in the network.
        disparity_px: Disparity of the position with the largest attention weight, x_left - x_right in LR px, left view
            and right view: (H,W) each, float32, on the CPU. Positive in rectified pairs.
        confidence: That weight, 0..1, left view and right view: (H,W) each. Attention can be sure of a wrong match too.
    """

    adapter: str
    site: str
    disparity_px: tuple[Tensor, Tensor] = field(repr=False)
    confidence: tuple[Tensor, Tensor] = field(repr=False)

    @property
    def mean_confidence(self) -> float:
        """Mean weight over both views."""
        return torch.stack(self.confidence).mean().item()


def attended_disparity(
    model: object, left: Tensor, right: Tensor, *, tiling: Tiling = WHOLE
) -> list[AttendedDisparity]:
    """Run a stereo model on a pair, and return where each of its adapters that can tell looks in the other view.

    A copy of the model runs once, with the setting that is in force here, on views that are padded and scaled as
    `lowpeft.enhance` does. The kinds that can tell are those with a method `matches`, such as `stereo`. Maps of
    features that are smaller or larger than the view, by a power of two, are resized to its pixels (nearest position),
    and their disparity is scaled.

    Args:
        model: An adapted model of two views.
        left: Left view, (C,H,W), 0..1.
        right: Right view, like `left`.
        tiling: Strips that bound memory; see `lowpeft.enhance`.

    Returns:
        One result for each site, in the order in which the network reaches them; empty if no adapter that is on can
        tell.

    Raises:
        DataError: The model does not take two views; the views do not suit it; it takes crops of a fixed size only, and
            the views are larger; or `tiling` leaves too little memory.
        PlanError: The model has no adapters, or does not take and return images.
    """
    facts = image_facts(model)
    heard: dict[tuple[str, str], list[Matches]] = {}

    def hear(name: str, site: str, adapter: FeatureAdapter, features: Features) -> None:
        matches = adapter.matches(features)
        if matches is not None:
            heard.setdefault((name, site), []).append(Matches(*(m.float().cpu() for m in matches)))

    twin = listening_copy(model, hear)
    together = multi_view(twin)
    if together is None or together.views != 2:
        raise DataError("only a model of two views (a StereoModel) looks at another view's columns")
    check_images((left, right), facts.channels, batches=False)
    like = first_parameter(twin, default=left)
    views = padded(tuple(v[None].to(like.device, like.dtype) for v in (left, right)), facts)
    height, width = left.shape[-2:]
    if facts.fixed_px is not None and views[0].shape[-2:] != (facts.fixed_px, facts.fixed_px):
        raise DataError(f"{facts.architecture} sees crops of {facts.fixed_px} px, so it never looks along {size(left)}")
    limit = None if tiling.memory_mb is None else MemoryLimit(tiling.memory_mb, 0)
    strips: dict[tuple[str, str], list[Tensor]] = {}
    with in_eval_mode(twin):
        for boxes in cut(twin, views, facts, tiling, limit):
            heard.clear()  # also of the runs in which `cut` has measured memory
            run_boxes(twin, views, facts, boxes)
            for key, parts in heard.items():
                strips.setdefault(key, []).append(_kept(parts, boxes[0], views[0].shape[-1]))
    maps = {key: torch.cat(parts, dim=-2)[..., :height, :width] for key, parts in strips.items()}
    return [
        AttendedDisparity(
            adapter=name, site=site, disparity_px=(both[0, 0], both[0, 1]), confidence=(both[1, 0], both[1, 1])
        )
        for (name, site), both in maps.items()
    ]


def _kept(parts: list[Matches], box: Box, width: int) -> Tensor:
    """Return the maps of a strip in LR px, without its context: disparity and confidence of both views, (2,2,h,W)."""
    rows = box.rows.stop - box.rows.start
    maps = torch.stack([torch.cat(m, dim=1) for m in zip(*parts, strict=True)])
    # The width may be above width / ratio, because some networks pad their input to whole windows.
    ratio = 2.0 ** math.ceil(math.log2(0.9 * width / maps.shape[-1]))
    maps = F.interpolate(maps, scale_factor=ratio, mode="nearest-exact")[..., :rows, :width]
    maps = pad_to(maps, rows, width)
    maps[0] *= ratio
    return maps[..., box.kept.start - box.rows.start : box.kept.stop - box.rows.start, :]


def most_confident(found: list[AttendedDisparity]) -> AttendedDisparity:
    """Return the result of the site with the largest mean attention weight, which need not have the best matches.

    Raises:
        DataError: There are no results.
    """
    if not found:
        raise DataError("no adapter of this model that is on can tell where it looks in the other view")
    return max(found, key=lambda each: each.mean_confidence)
