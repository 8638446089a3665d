"""A backbone that takes two views at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attach import PairedViews
from .errors import PlanError


class StereoModel(nn.Module):
    """Runs a stereo-adapted backbone on pairs of views; made by `lowpeft.adapt` or `lowpeft.wrap_stereo`.

    The backbone itself refuses plain batches. A module inside it does not know what it is called with: called directly,
    it takes neighbouring images of the batch for pairs.

    Attributes:
        backbone: The very object that was adapted. Left and right views, next to each
            other, go through it as one batch.
        output: The attribute of the backbone's output that holds the image, None where the output is the image.
    """

    def __init__(self, backbone: nn.Module, *, output: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = output

    def forward(self, left: Tensor, right: Tensor | None = None) -> Any:
        """Super-resolve (or restore) both views.

        Args:
            left: The left views, (N,C,H,W) in the backbone's own value range; or both views as (N,2,C,H,W) or
                (N,2C,H,W), left first, and no `right`.
            right: The right views, same shape as `left`.

        Returns:
            What came in: a tuple (left, right) of (N,C,sH,sW), or one tensor (N,2,C,sH,sW) or (N,2C,sH,sW).

        Raises:
            PlanError: The views differ in shape, or one tensor cannot be split into two views.
        """
        if right is not None:
            return self._pair(left, right)
        if left.dim() == 5 and left.shape[1] == 2:
            return torch.stack(self._pair(left[:, 0], left[:, 1]), dim=1)
        if left.dim() == 4 and left.shape[1] % 2 == 0:
            return torch.cat(self._pair(*left.chunk(2, dim=1)), dim=1)
        raise PlanError(
            f"cannot split a tensor of shape {tuple(left.shape)} into two views; "
            "call with (left, right), or with one tensor N,2,C,H,W or N,2C,H,W"
        )

    def _pair(self, left: Tensor, right: Tensor) -> tuple[Any, Any]:
        if left.shape != right.shape or left.dim() != 4:
            raise PlanError(
                f"the views must be two N,C,H,W tensors of one shape, not {tuple(left.shape)} and {tuple(right.shape)}"
            )
        output = self.backbone(PairedViews(torch.stack((left, right), dim=1).flatten(0, 1)))
        if self.output is not None:
            output = getattr(output, self.output)
        return _view(output, 0), _view(output, 1)


def _view(output: Any, index: int) -> Any:
    """The left (0) or right (1) views of every tensor in a network's output."""
    if isinstance(output, Tensor):
        return output[index::2]
    if isinstance(output, (list, tuple)):
        views = [_view(o, index) for o in output]
        return views if isinstance(output, list) else tuple(views)
    return output
