"""Strengths by image: running a batch in one forward, or in one for each group of images with equal strengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ...errors import PlanError
from .running import note, run
from .settings import Setting
from .switches import Switches
from .views import ViewBatch


def run_by_image(
    switches: Switches, setting: Setting, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run a forward in a setting with one strength for each image, or for each scene of several views.

    If all adapters with strengths by image can scale each image, the batch runs at once. Otherwise the images are
    grouped by the strengths of the other adapters: e.g. 0, 1, 0 gives the groups [0, 2] and [1].

    Raises:
        PlanError: The number of images is not the number of strengths, or the outputs of groups cannot be joined.
    """
    inputs = (args, dict(kwargs))
    views = args[0].views if args and isinstance(args[0], ViewBatch) else 1
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()]
    batch = next((t for t in tensors if t.dim() > 2), tensors[0] if tensors else None)
    images = None if batch is None else batch.shape[0]
    if batch is None or images != setting.images:
        what = "images" if views == 1 else f"scenes of {views} views"
        raise PlanError(f"strengths are given for {setting.images} {what}, but the batch has {images or 'none'}")
    groups = setting.groups(switches.in_groups)
    if len(groups) == 1:
        whole = setting.of(groups[0], repeats=views, device=batch.device)
        return run(switches, whole, lambda: call(*args, **kwargs), inputs, called=setting)
    outputs, members = [], []
    for group in groups:
        rows = torch.tensor([image * views + view for image in group for view in range(views)], device=batch.device)
        some_args, some_kwargs = _rows_of(inputs, torch.tensor(group, device=batch.device), len(batch))
        part = setting.of(group, repeats=views, device=batch.device)

        def some(args: Any = some_args, kwargs: Any = some_kwargs) -> Any:
            return call(*args, **kwargs)

        outputs.append(run(switches, part, some, (some_args, some_kwargs), called=setting))
        members.append(rows)
    output = _joined(outputs, members)
    note(switches, setting, setting, inputs, output)
    return output


def _rows_of(inputs: Any, rows: Tensor, images: int) -> Any:
    """Select images from inputs: index every tensor that has `images` rows, and keep everything else."""

    def pick(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == images else value

    return tree_map(pick, inputs)


def _joined(outputs: list[Any], members: list[Tensor]) -> Any:
    """Join the outputs of groups into one output, with the images in the order of the batch."""
    leaves, specs = zip(*map(tree_flatten, outputs), strict=True)
    order = torch.cat(members).argsort()
    joined = []
    for parts in zip(*leaves, strict=True) if all(spec == specs[0] for spec in specs) else ():
        by_image = all(
            isinstance(p, Tensor) and p.dim() and len(p) == len(rows) for p, rows in zip(parts, members, strict=True)
        )
        if by_image:
            joined.append(torch.cat(parts)[order])
        elif all(p is parts[0] or (not isinstance(p, Tensor) and p == parts[0]) for p in parts):
            joined.append(parts[0])
        else:
            break
    if len(joined) != len(leaves[0]):
        raise PlanError(
            "strengths by image are run in groups of images, but the outputs of the groups cannot be joined: some "
            f"values in this {type(outputs[0]).__name__} are not tensors with one row for each image"
        )
    return tree_unflatten(joined, specs[0])
