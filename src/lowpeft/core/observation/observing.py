"""What does each module of a network do in one forward pass: how often is it called, with features of which layout?

1. Hooks record the calls of all modules, with shapes in place of tensors (`observe`).
2. Sizes of feature maps are collected from the outputs of the convolutions and from the image (`_maps_in`).
3. The shape of each module's output is compared with the number of images and with these sizes (`_with_layout`). For
   two images of 32x48 px: 2x8x32x48 is NCHW, 2x16x24x8 is NHWC (half the size), 2x1536x8 is NLC, 1536x2x8 is LNC.
   A shape that fits two layouts (2x64x64x64 for 64x64 px), or none, gets no layout.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...errors import PlanError
from ...ports.base import base_modules
from ...ports.layouts import Layout, Size, find_size, square_size
from .examples import Example

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Calls and output of one module in a forward pass of the network.

    Attributes:
        calls: Number of calls.
        order: Rank of its first call among the first calls of all modules, from 0.
        shape: Shape of its output (the first tensor of a tuple or list); None if it has no tensor.
        item: Index of that tensor in the tuple or list.
        alike: Indices of all tensors of the same shape in the tuple or list.
        input_shape: Shape of its first tensor argument.
        layout: Layout of the output; None if unknown.
        size: Height and width of the output, in positions.
        is_square: True if the size was assumed: a square grid, for tokens whose module is not given height and width.
        by_image: True if the batch dimension of the layout is as long as the batch.
        is_tokens: True if the output has tokens of each image, N,L,C or L,N,C.
    """

    calls: int
    order: int
    shape: Shape | None
    item: int | None = None
    alike: tuple[int, ...] = ()
    input_shape: Shape | None = None
    layout: Layout | None = None
    size: Size | None = None
    is_square: bool = False
    by_image: bool = False
    is_tokens: bool = False

    @property
    def channels(self) -> int:
        """Number of channels; length of the last dimension if the layout is unknown."""
        if self.shape is None:
            raise PlanError("the output of the module contains no tensor, so it has no channels")
        return self.shape[self.layout.channel_dim if self.layout else -1]

    @property
    def is_ambiguous(self) -> bool:
        """True if several tensors of the output could be the features."""
        return len(self.alike) > 1

    @property
    def is_features(self) -> bool:
        """True if the output has features of each image: maps, or tokens (whose rows and columns may be unknown)."""
        return self.layout is not None or self.is_tokens


@dataclass(frozen=True)
class _Shape:
    """Shape that replaces a tensor in stored calls, so that the features are not kept in memory."""

    shape: Shape


Call = tuple[Any, tuple[Any, ...]]
"""Output and arguments of one call, with tensors replaced by their shapes."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Observations of a network's modules in one forward pass.

    Attributes:
        example: Arguments of the network.
        modules: Observation of each module that was called, by path.
        calls: Shapes of output and arguments of every call, by path.
        describe: Function that returns the observation of a module from its calls, order and the index of the features.
    """

    example: Example
    modules: dict[str, Observation]
    calls: dict[str, list[Call]] = field(repr=False)
    describe: Callable[[list[Call], int, int | None], Observation] = field(repr=False)

    def given(self, path: str) -> list[Any]:
        """Return the arguments of a module's first call that are tensors or true."""
        return [each for each in self.calls[path][0][1] if isinstance(each, _Shape) or each is True]

    def item(self, path: str, item: int | None) -> Observation | None:
        """Return the observation of a module, or None if it was not called.

        Args:
            path: Path of the module.
            item: Index of the features in its output; None for the first tensor.

        Raises:
            PlanError: Its output has no tensor at that index.
        """
        seen = self.modules.get(path)
        if seen is None or item is None:
            return seen
        tensors = _tensors_in(self.calls[path][0][0])
        if item not in tensors:
            listed = ", ".join(f"item {i}: {'x'.join(map(str, s))}" for i, s in tensors.items()) or "none"
            raise PlanError(f"the output of {path} has no tensor at item {item}; its tensors are {listed}")
        return self.describe(self.calls[path], seen.order, item)


# --- 1. calls --------------------------------------------------------------------------------------------------------


def observe(root: nn.Module, example: Example, only_square: Callable[[], bool] = lambda: False) -> Observed:
    """Run the network once and observe the calls of every module of the base.

    Args:
        root: The network.
        example: Arguments of the network, with several images if batch dimensions are to be found.
        only_square: Function that returns True if the network takes square images only; called if tokens are found
            whose module is not given height and width.

    Raises:
        PlanError: The network processes the images of a batch one by one.
    """
    # TorchScript modules do not support these hooks, and cannot be adapted.
    modules = {p: m for p, m in base_modules(root) if p and not isinstance(m, torch.jit.ScriptModule)}
    calls: dict[str, list[Call]] = {}  # in the order in which the first calls begin

    def begin(path: str, module: nn.Module, args: Any) -> None:
        calls.setdefault(path, [])

    def end(path: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        arguments = (*args, *kwargs.values())
        calls[path].append(tree_map_only(Tensor, lambda t: _Shape(tuple(t.shape)), (output, arguments)))

    with contextlib.ExitStack() as hooks:
        for path, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(functools.partial(begin, path)))
            hooks.enter_context(module.register_forward_hook(functools.partial(end, path), with_kwargs=True))
        example.call(root)
    convolved = [output for path, c in calls.items() if isinstance(modules[path], nn.Conv2d) for output, _ in c]
    if any(isinstance(output, _Shape) and len(output.shape) == 3 for output in convolved):
        raise PlanError(
            "the network processes the images of a batch one by one; pass its input, e.g. a list of images, as example="
        )
    first = (c[0][0] for path, c in calls.items() if c and isinstance(modules[path], nn.Conv2d))
    maps = _maps_in(example, [output.shape for output in first if isinstance(output, _Shape)])
    describe = functools.partial(_observation, maps=maps, example=example, only_square=only_square)
    seen = {path: describe(c, order, None) for order, (path, c) in enumerate(calls.items()) if c}
    return Observed(example=example, modules=seen, calls=calls, describe=describe)


def _tensors_in(output: Any) -> dict[int | None, Shape]:
    """Return the shapes of the tensors in an output, by index in the tuple or list; by None for a single tensor."""
    if isinstance(output, _Shape):
        return {None: output.shape}
    items = enumerate(output) if isinstance(output, (tuple, list)) else ()
    return {i: value.shape for i, value in items if isinstance(value, _Shape)}


def _observation(
    calls: list[Call], order: int, item: int | None, *, maps: Maps, example: Example, only_square: Callable[[], bool]
) -> Observation:
    """Return the observation of a module from its calls; `item` is the index of the features, None for the first."""
    output, arguments = calls[0]
    tensors = _tensors_in(output)
    chosen = item if item is not None else next(iter(tensors), None)
    shape = tensors.get(chosen)
    seen = Observation(
        calls=len(calls),
        order=order,
        shape=shape,
        item=chosen,
        alike=tuple(i for i, s in tensors.items() if i is not None and s == shape) if item is None else (),
        input_shape=next((a.shape for a in tree_leaves(arguments) if isinstance(a, _Shape)), None),
    )
    return _with_layout(seen, arguments, maps, example, only_square)


# --- 2. sizes --------------------------------------------------------------------------------------------------------


class Maps(NamedTuple):
    """Feature maps of a network in one forward pass.

    Attributes:
        sizes: Heights and widths, in positions.
        batches: Lengths of the batch dimension: a multiple of the number of images if the network puts frames or views
            into the batch.
    """

    sizes: set[Size]
    batches: set[int]


def _maps_in(example: Example, convolved: list[Shape]) -> Maps:
    """Return sizes and batch lengths from outputs of convolutions; sizes also from the image and its halves."""
    images, size = example.images, example.size
    shapes = [s for s in convolved if len(s) == 4 and s[0] % images == 0 and _is_upright((s[2], s[3]), example)]
    sizes = {(s[2], s[3]) for s in shapes}
    while size is not None and min(size) > 1:  # e.g. 32x48, 16x24, 8x12, 4x6, 2x3
        sizes.add(size)
        size = (size[0] // 2, size[1] // 2) if not (size[0] % 2 or size[1] % 2) else None
    return Maps(sizes, {images, *(s[0] for s in shapes)})


def _is_upright(size: Size, example: Example) -> bool:
    """Return whether a map has the orientation of the image; e.g. a tall map of a wide image was transposed."""
    if example.size is None:
        return True
    (height, width), (rows, columns) = example.size, size
    return (height - width) * (rows - columns) >= 0


# --- 3. layouts ------------------------------------------------------------------------------------------------------


def _with_layout(
    seen: Observation, arguments: tuple[Any, ...], maps: Maps, example: Example, only_square: Callable[[], bool]
) -> Observation:
    """Return an observation with the layout and size of its output, as far as they can be determined.

    A 4-D tensor is a map if its sides are a known map size as either NCHW or NHWC, but not both. A 3-D tensor contains
    tokens if exactly one of its first two dimensions is as long as the batch. Their size is a height and width among
    the arguments of the module, or a square if the network takes square images only.
    """
    shape, images = seen.shape or (), example.images
    if len(shape) == 4 and shape[0] in maps.batches:
        sizes = {Layout.NCHW: (shape[2], shape[3]), Layout.NHWC: (shape[1], shape[2])}
        fitting = [layout for layout, size in sizes.items() if size in maps.sizes]
        if len(fitting) == 1:
            return replace(seen, layout=fitting[0], size=sizes[fitting[0]], by_image=shape[0] == images)
    layout = token_layout(shape, images)
    if layout is None:
        return seen
    seen = replace(seen, is_tokens=True, by_image=True)
    count = shape[1 - layout.batch_dim]
    size, square = find_size(arguments, count), square_size(count)
    if size is not None:
        return replace(seen, layout=layout, size=size) if _is_upright(size, example) else seen
    if square is not None and example.is_square and only_square():
        return replace(seen, layout=layout, size=square, is_square=True)
    return seen


def token_layout(shape: Shape, images: int) -> Layout | None:
    """Return the layout of a tensor with tokens of each image (see `_with_layout`); None for any other tensor."""
    if len(shape) != 3 or (shape[0] == images) == (shape[1] == images):
        return None
    return Layout.NLC if shape[0] == images else Layout.LNC
