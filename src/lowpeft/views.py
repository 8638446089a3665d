"""Several views of a scene at once: the batch that holds them, and the models that take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .calls import image_in
from .errors import PlanError
from .facts import RECORD


class ViewBatch(NamedTuple):
    """Scenes of several views as one batch: the views of a scene next to each other, in order.

    Neighbours stay together where a network (or DataParallel) runs its batch in parts. Example: two scenes of left and
    right views are the batch left 0, right 0, left 1, right 1.
    """

    batch: Tensor
    views: int

    @classmethod
    def of(cls, views: tuple[Tensor, ...]) -> ViewBatch:
        """Join views, one (N,C,H,W) tensor each, all of one shape.

        Raises:
            PlanError: They differ in shape, or are not N,C,H,W.
        """
        if (
            views[0].dim() != 4
            or any(v.dtype != views[0].dtype for v in views)
            or any(v.shape != views[0].shape for v in views)
        ):
            shapes = " and ".join(str(tuple(v.shape)) for v in views)
            raise PlanError(f"the views must be N,C,H,W tensors of one shape and dtype, not {shapes}")
        return cls(torch.stack(views, dim=1).flatten(0, 1), len(views))


def view_of(output: Any, index: int, batch: ViewBatch) -> Any:
    """One view of every tensor for a batch in a network's output; tensors that are not for each image stay whole.

    Raises:
        PlanError: The output is no tensor and no list, tuple or table of them.
    """
    if isinstance(output, Tensor):
        return output[index :: batch.views] if output.dim() and len(output) == len(batch.batch) else output
    if isinstance(output, Mapping):
        return {key: view_of(value, index, batch) for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        found = [view_of(o, index, batch) for o in output]
        return output._make(found) if hasattr(output, "_make") else type(output)(found)
    if output is None or isinstance(output, (bool, int, float, str)):
        return output
    raise PlanError(
        f"the network gives a {type(output).__name__}, whose views cannot be told apart; say which attribute of it is "
        "the image: adapt(lowpeft.describe(network, output=…), …)"
    )


class MultiViewModel(nn.Module):
    """Runs an adapted network on several views of each scene; made by `lowpeft.adapt`.

    The network itself refuses plain batches. A module inside it does not know what it is called with: called directly,
    it takes neighbouring images of the batch for views of one scene.

    Attributes:
        backbone: The very object that was adapted. The views of a scene, next to each other, go through it as one
            batch.
        views: How many views a scene has.
        output: The attribute or the index of the backbone's output that is the image, None where the output is it.
        channels: Of a view, with the maps that the backbone takes behind it; None where that is not known.
    """

    def __init__(
        self, backbone: nn.Module, *, views: int, output: str | int | None = None, channels: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.views = views
        self.output = output
        self.channels = channels

    def forward(self, *views: Tensor) -> Any:
        """Super-resolve (or restore) every view.

        Args:
            views: One (N,C,H,W) tensor for each view, all of one shape, as the backbone takes them (its own value
                range, its maps); or all views in one tensor (N,V,C,H,W) or (N,V·C,H,W).

        Returns:
            What came in: a tuple of (N,C,sH,sW), or one tensor (N,V,C,sH,sW) or (N,V·C,sH,sW).

        Raises:
            PlanError: The views differ in number or shape, or one tensor cannot be split into so many views.
        """
        count = self.views
        if not all(isinstance(view, Tensor) for view in views):
            raise PlanError(f"views are tensors, not {' and '.join(type(v).__name__ for v in views)}")
        if len(views) == count:
            return self._run(views)
        if len(views) == 1 and views[0].dim() == 5 and views[0].shape[1] == count:
            return torch.stack(self._run(views[0].unbind(1)), dim=1)
        channels = views[0].shape[1] if len(views) == 1 and views[0].dim() == 4 else 0
        if channels and channels % count == 0 and self.channels in (None, channels // count):
            return torch.cat(self._run(views[0].chunk(count, dim=1)), dim=1)
        raise PlanError(
            f"this model takes {count} views: {count} tensors N,C,H,W, or one N,{count},C,H,W or N,{count}·C,H,W, not "
            f"{' and '.join(str(tuple(v.shape)) for v in views)}"
        )

    def _run(self, views: tuple[Tensor, ...]) -> tuple[Any, ...]:
        record = self.backbone.__dict__.get(RECORD)
        if record is None or record.views != self.views:
            raise PlanError(
                f"the adapters that mix {self.views} views were taken out of this model: call its backbone, or adapt "
                "it again"
            )
        batch = ViewBatch.of(views)
        output = image_in(self.backbone(batch), self.output)
        return tuple(view_of(output, i, batch) for i in range(self.views))


class StereoModel(MultiViewModel):
    """A `MultiViewModel` of two views, left and right; made by `lowpeft.adapt` or `lowpeft.wrap_stereo`."""

    def __init__(self, backbone: nn.Module, *, output: str | int | None = None, channels: int | None = None) -> None:
        super().__init__(backbone, views=2, output=output, channels=channels)

    def forward(self, left: Tensor, right: Tensor | None = None) -> Any:  # type: ignore[override]  # names for the two
        """As `MultiViewModel`: `(left, right)`, or both views in one tensor, left first, and no `right`."""
        return super().forward(left) if right is None else super().forward(left, right)
