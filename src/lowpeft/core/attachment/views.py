"""Several views of a scene: `ViewBatch`, and the models that take them (`MultiViewModel`, `StereoModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ...errors import PlanError
from ...ports.facts import RECORD
from .calls import image_in
from .wrappers import network_in


class ViewBatch(NamedTuple):
    """Batch of N scenes with V views each.

    In the network's batch, the views of a scene are next to each other: left 0, right 0, left 1, right 1. Until the
    network runs, scenes and views are two dimensions, so splitting the batch (DataParallel) keeps scenes whole.

    Attributes:
        scenes: Tensor (N,V,…), or a list, tuple or dict of such tensors.
        views: Number of views, V.
        length: Number of scenes, N.
    """

    scenes: Any
    views: int

    @classmethod
    def of(cls, views: tuple[Any, ...]) -> ViewBatch:
        """Join views into a batch.

        Args:
            views: For each view an (N,C,H,W) tensor, or the arguments that the network takes for one batch of images.

        Raises:
            PlanError: The views differ in structure, shape, dtype or non-tensor values, or are tensors that are not
                N,C,H,W.
        """
        leaves, forms = zip(*map(tree_flatten, views), strict=True)
        plain = isinstance(views[0], Tensor)
        if any(form != forms[0] for form in forms) or (plain and views[0].dim() != 4):
            raise PlanError(f"the views must be N,C,H,W tensors of the same shape and dtype, not {_shapes(views)}")
        joined = []
        for parts in zip(*leaves, strict=True):
            if all(isinstance(p, Tensor) and p.dim() for p in parts):
                alike = all(p.shape == parts[0].shape and p.dtype == parts[0].dtype for p in parts)
                if not alike:
                    raise PlanError(
                        f"the views must be N,C,H,W tensors of the same shape and dtype, not {_shapes(parts)}"
                    )
                joined.append(torch.stack(parts, dim=1))
            elif not all(_same(p, parts[0]) for p in parts):
                raise PlanError(
                    f"arguments other than tensors must be equal for all views, not {' and '.join(map(repr, parts))}"
                )
            else:
                joined.append(parts[0])
        return cls(tree_unflatten(joined, forms[0]), len(views))

    @property
    def length(self) -> int:
        first = next((t for t in tree_leaves(self.scenes) if isinstance(t, Tensor) and t.dim()), None)
        return 0 if first is None else first.shape[0]

    @property
    def batch(self) -> Any:
        """Arguments for the network: every (N,V,…) tensor as (N·V,…)."""
        return tree_map(lambda t: t.flatten(0, 1) if isinstance(t, Tensor) and t.dim() else t, self.scenes)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)


def _shapes(values: tuple[Any, ...]) -> str:
    return " and ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)


def arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split one value into (args, kwargs): a tuple is positional, a dict keyword arguments, others are one argument."""
    if isinstance(given, tuple):
        return given, {}
    return ((), dict(given)) if isinstance(given, dict) else ((given,), {})


def view_of(output: Any, index: int, batch: ViewBatch) -> Any:
    """Return one view of every tensor in a network's output that has N·V rows; other tensors stay whole.

    Raises:
        PlanError: The output contains an object other than tensors, lists, tuples, mappings and plain values.
    """
    if isinstance(output, Tensor):
        return output[index :: batch.views] if output.dim() and len(output) == batch.length * batch.views else output
    if isinstance(output, Mapping):
        return {key: view_of(value, index, batch) for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        parts = [view_of(o, index, batch) for o in output]
        return output._make(parts) if hasattr(output, "_make") else type(output)(parts)
    if output is None or isinstance(output, (bool, int, float, str)):
        return output
    raise PlanError(
        f"the network returns a {type(output).__name__}, which cannot be split into views; name its attribute that is "
        "the image: adapt(lowpeft.describe(network, output=…), …)"
    )


class MultiViewModel(nn.Module):
    """Model that runs an adapted network on several views of each scene; created by `lowpeft.adapt`.

    The network itself raises for plain batches. A submodule of it does not: called directly, it treats neighbouring
    images of the batch as views of one scene.

    Attributes:
        backbone: The adapted object itself, or the wrapper around it. It gets the views of all scenes as one batch,
            with the views of a scene next to each other.
        views: Number of views of a scene.
        output: Attribute or index of the image in the backbone's output; None if the output is the image.
        channels: Number of channels of a view, including the maps that the backbone takes after it; None if unknown.
    """

    lowpeft_holds = "backbone"

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
            views: One (N,C,H,W) tensor for each view, all of one shape, in the backbone's value range and with its
                maps; or all views in one tensor (N,V,C,H,W) or (N,V·C,H,W). For a backbone with other arguments, one
                value for each view: a tuple of positional arguments, a dict of keyword arguments, or a list as the one
                argument.

        Returns:
            The restored views in the form of the input: a tuple of (N,C,sH,sW), or one tensor (N,V,C,sH,sW) or
            (N,V·C,sH,sW).

        Raises:
            PlanError: The views differ in number or shape, or one tensor cannot be split into V views.
        """
        count = self.views
        if len(views) == count:
            return self._run(views)
        if not all(isinstance(view, Tensor) for view in views):
            raise PlanError(f"this model takes {count} views, not {_shapes(views) or 'none'}")
        if len(views) == 1 and views[0].dim() == 5 and views[0].shape[1] == count:
            return torch.stack(self._run(views[0].unbind(1)), dim=1)
        channels = views[0].shape[1] if len(views) == 1 and views[0].dim() == 4 else 0
        if channels and channels % count == 0 and self.channels in (None, channels // count):
            return torch.cat(self._run(views[0].chunk(count, dim=1)), dim=1)
        raise PlanError(
            f"this model takes {count} views: {count} tensors N,C,H,W, or one N,{count},C,H,W or N,{count}·C,H,W, not "
            f"{' and '.join(str(tuple(v.shape)) for v in views)}"
        )

    def _run(self, views: tuple[Any, ...]) -> tuple[Any, ...]:
        record = network_in(self.backbone).__dict__.get(RECORD)
        if record is None or record.views != self.views:
            raise PlanError(
                f"this model no longer has adapters that mix {self.views} views: call its backbone, or adapt it again"
            )
        batch = ViewBatch.of(views)
        output = image_in(self.backbone(batch), self.output)
        return tuple(view_of(output, i, batch) for i in range(self.views))


class StereoModel(MultiViewModel):
    """A `MultiViewModel` of two views, left and right; created by `lowpeft.adapt` or `lowpeft.wrap_stereo`."""

    def __init__(self, backbone: nn.Module, *, output: str | int | None = None, channels: int | None = None) -> None:
        super().__init__(backbone, views=2, output=output, channels=channels)

    def forward(self, left: Any, right: Any = None) -> Any:  # type: ignore[override]  # names for the two
        """Restore both views, given as `(left, right)` or as one tensor, left first; see `MultiViewModel.forward`."""
        return super().forward(left) if right is None else super().forward(left, right)
