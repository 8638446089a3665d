"""Observation of a network's modules in one forward pass: their calls, outputs and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

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
            raise PlanError("a module without a tensor output has no channels")
        return self.shape[self.layout.channel_dim if self.layout else -1]

    @property
    def is_ambiguous(self) -> bool:
        """True if several tensors of the output could be the features."""
        return len(self.alike) > 1


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Observations of a network's modules in one forward pass.

    Attributes:
        example: Arguments of the network.
        modules: Observation of each module that was called, by path.
        calls: Shapes of output and arguments of every call, by path.
        tell: Function that finds layout and size of a tensor from its shape and the shapes of the arguments.
    """

    example: Example
    modules: dict[str, Observation]
    calls: dict[str, list[Call]] = field(repr=False)
    tell: Callable[[Shape, tuple[Any, ...]], Told] = field(repr=False)

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
            raise PlanError(f"{path} gives no tensor at item {item}; its tensors are {_listed(tensors)}")
        return _observation(self.calls[path], seen.order, item, self.tell)


@dataclass(frozen=True)
class _Shape:
    """Shape that replaces a tensor in stored calls, so that the features are not kept in memory."""

    shape: Shape


Call = tuple[Any, tuple[Any, ...]]
"""Output and arguments of one call, with tensors replaced by their shapes."""


class Told(NamedTuple):
    """Findings from a shape; see `Observation` for the fields."""

    layout: Layout | None = None
    size: Size | None = None
    is_square: bool = False
    by_image: bool = False
    is_tokens: bool = False


def observe(root: nn.Module, example: Example, only_square: Callable[[], bool] = lambda: False) -> Observed:
    """Run the network once and observe the calls of every module of the base.

    Args:
        root: The network.
        example: Arguments of the network.
        only_square: Function that returns True if the network takes square images only; called if tokens are found
            whose module is not given height and width.
    """
    # TorchScript modules do not support these hooks, and cannot be adapted.
    modules = {p: m for p, m in base_modules(root) if not isinstance(m, torch.jit.ScriptModule)}
    calls: dict[str, list[Call]] = {}

    def before(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            begun.setdefault(path, len(begun))

        return note

    def after(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.setdefault(path, []).append((_shapes(output), tuple(map(_shapes, (*args, *kwargs.values())))))

        return record

    begun: dict[str, int] = {}
    handles = [m.register_forward_hook(after(p), with_kwargs=True) for p, m in modules.items() if p]
    handles += [m.register_forward_pre_hook(before(p), with_kwargs=True) for p, m in modules.items() if p]
    try:
        example.call(root)
    finally:
        for handle in handles:
            handle.remove()
    if any(_took_apart(modules[path], c) for path, c in calls.items()):
        raise PlanError("the network takes the images of a batch apart: say with example= what it is called with")
    maps, counts = _maps(example, modules, calls)

    def tell(shape: Shape, arguments: tuple[Any, ...]) -> Told:
        return tell_layout(shape, arguments, (maps, counts), example, only_square)

    seen = {path: _observation(c, begun[path], None, tell) for path, c in calls.items()}
    return Observed(example=example, modules=seen, calls=calls, tell=tell)


def _is_upright(size: tuple[int, ...], example: Example) -> bool:
    """Return whether a map has the orientation of the image; e.g. a tall map of a wide image was transposed."""
    if example.size is None:
        return True
    (height, width), (rows, columns) = example.size, size
    return (height - width) * (rows - columns) >= 0


def _took_apart(module: nn.Module, calls: list[Call]) -> bool:
    """Return whether a convolution gave an unbatched image: the network takes a list of images, but got a tensor."""
    return isinstance(module, nn.Conv2d) and any(isinstance(o, _Shape) and len(o.shape) == 3 for o, _ in calls)


Maps = tuple[set[Size], set[int]]
"""Sizes of a network's feature maps, and lengths of their batch dimensions: a multiple of the number of images if the
network puts frames or views into the batch."""


def _maps(example: Example, modules: dict[str, nn.Module], calls: dict[str, list[Call]]) -> Maps:
    """Collect sizes and batch lengths from the outputs of convolutions, the image's size and its successive halves."""
    found: set[Size] = set()
    counts = {example.images}
    for path, ((output, _), *_) in calls.items():
        is_map = isinstance(modules[path], nn.Conv2d) and isinstance(output, _Shape) and len(output.shape) == 4
        if is_map and output.shape[0] % example.images == 0 and _is_upright(output.shape[2:], example):
            found.add((output.shape[2], output.shape[3]))
            counts.add(output.shape[0])
    size = example.size
    while size is not None and min(size) > 1:
        found.add(size)
        size = (size[0] // 2, size[1] // 2) if not (size[0] % 2 or size[1] % 2) else None
    return found, counts


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape))
    if isinstance(value, dict):
        return {key: _shapes(v) for key, v in value.items()}
    return tuple(map(_shapes, value)) if isinstance(value, (tuple, list)) else value


def _tensors_in(output: Any) -> dict[int | None, Shape]:
    """Return the shapes of the tensors in an output, by index in the tuple or list; by None for a single tensor."""
    if isinstance(output, _Shape):
        return {None: output.shape}
    return {i: v.shape for i, v in enumerate(output) if isinstance(v, _Shape)} if isinstance(output, tuple) else {}


def _listed(tensors: dict[int | None, Shape]) -> str:
    return ", ".join(f"item {i}: {'x'.join(map(str, s))}" for i, s in tensors.items()) or "none"


def _observation(
    calls: list[Call], order: int, item: int | None, tell: Callable[[Shape, tuple[Any, ...]], Told]
) -> Observation:
    output, arguments = calls[0]
    tensors = _tensors_in(output)
    chosen = item if item is not None else next(iter(tensors), None)
    shape = tensors.get(chosen)
    told = tell(shape, arguments) if shape else Told()
    return Observation(
        calls=len(calls),
        order=order,
        shape=shape,
        item=chosen,
        alike=tuple(i for i, s in tensors.items() if i is not None and s == shape) if item is None else (),
        input_shape=next((a.shape for a in tree_leaves(arguments) if isinstance(a, _Shape)), None),
        **told._asdict(),
    )


def tell_layout(
    shape: Shape, arguments: tuple[Any, ...], maps: Maps, example: Example, only_square: Callable[[], bool]
) -> Told:
    """Return layout and size of a feature tensor, None for either if unknown.

    A 4-D tensor is a map if its sides are a known map size as either NCHW or NHWC, but not both. A 3-D tensor contains
    tokens if exactly one of its first two dimensions is as long as the batch.

    Args:
        shape: Shape of the tensor.
        arguments: Arguments of its module; the size of tokens is a height and width among them.
        maps: Map sizes and batch lengths of the network.
        example: Arguments of the network, with several images.
        only_square: Function that returns True if the network takes square images only, so that tokens lie on a
            square grid.
    """
    images, (sides, counts) = example.images, maps
    if len(shape) == 4 and shape[0] in counts:
        nchw, nhwc = (shape[2], shape[3]) in sides, (shape[1], shape[2]) in sides
        if nchw != nhwc:
            place = (shape[2], shape[3]) if nchw else (shape[1], shape[2])
            return Told(Layout.NCHW if nchw else Layout.NHWC, place, by_image=shape[0] == images)
    if len(shape) == 3 and (shape[0] == images) != (shape[1] == images):
        layout, tokens = (Layout.NLC, shape[1]) if shape[0] == images else (Layout.LNC, shape[0])
        size = find_size(arguments, tokens)
        if size is not None and _is_upright(size, example):
            return Told(layout, size, by_image=True, is_tokens=True)
        square = square_size(tokens)
        if size is None and example.is_square and square is not None and only_square():
            return Told(layout, square, is_square=True, by_image=True, is_tokens=True)
        return Told(is_tokens=True, by_image=True)
    return Told()


def tokens_layout(shape: Shape, images: int) -> Layout:
    """Return the layout of a feature tensor whose rows and columns are unknown."""
    if len(shape) == 3 and (shape[0] == images) != (shape[1] == images):
        return Layout.NLC if shape[0] == images else Layout.LNC
    return Layout.WLC


# --- outputs that are added to other features ------------------------------------------------------------------------

CARRIES = frozenset(
    "view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze clone contiguous roll slice select "  # noqa: SIM905
    "expand alias detach mul mul_ div constant_pad_nd cat stack split split_with_sizes unbind _to_copy native_dropout "
    "dropout lift_fresh as_strided copy_ index".split()
)
"""Operations that move, scale or join values; their results are still traced to the module."""


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that traces the outputs of chosen modules until they are added to other tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins: Any = WeakTensorKeyDictionary()
        self.added: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tags = [self._tags(t) for t in tree_leaves(args) if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        if not any(tags):
            return out
        if name in ("add", "add_") and len(tags) == 2:
            self.added |= tags[0] ^ tags[1]
            if name == "add_":
                self.origins.pop(args[0], None)
        elif name in CARRIES and not _is_gate(name, args):
            everything = frozenset().union(*tags)
            for t in tree_leaves(out):
                if isinstance(t, Tensor):
                    self.origins[t] = everything
        return out

    def _tags(self, tensor: Tensor) -> frozenset[str]:
        return self.origins.get(tensor, frozenset())  # type: ignore[no-any-return]


def _is_gate(name: str, args: Any) -> bool:
    """Return whether a product has two tensors, neither a parameter or a 0-D scale: one of them may be a gate."""
    if name.removesuffix("_") not in ("mul", "div"):
        return False
    factors = [t for t in args if isinstance(t, Tensor)]
    return len(factors) == 2 and not any(isinstance(t, nn.Parameter) or t.dim() == 0 for t in factors)


def find_additions(root: nn.Module, example: Example, paths: Iterable[str]) -> set[str]:
    """Find the modules whose output is added to other features, possibly after operations in `CARRIES`.

    Args:
        root: The network.
        example: Arguments of the network.
        paths: Paths of the modules to test.
    """
    mode = _Additions()

    def after(path: str) -> Callable[..., None]:
        def tag(module: nn.Module, args: Any, output: Any) -> None:
            tensor = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
            if tensor is not None:
                mode.origins[tensor] = frozenset({path})

        return tag

    handles = [root.get_submodule(path).register_forward_hook(after(path)) for path in paths]
    try:
        with mode:
            example.call(root)
    finally:
        for handle in handles:
            handle.remove()
    return mode.added
