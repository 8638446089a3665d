"""Which inputs is a network tried on? The user's example, or random images of common channel counts and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import PlanError
from ...ports.facts import Facts
from ...ports.layouts import Size
from ..attachment.views import arguments

SIZES_PX: tuple[Size, ...] = ((32, 48), (48, 80), (64, 128), (48, 48), (64, 64), (24, 24), (128, 256), (256, 256))
"""Image sizes, in pixels, in the order of trial; mostly not square, so that rows and columns can be told apart."""
BATCH = 2
"""Number of images in an observed batch; a single image would not reveal the batch dimension."""


@dataclass(frozen=True)
class Example:
    """Arguments of one call of a network.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, given: Any) -> Example:
        """Return the example that a user gives: a tensor or list is the only argument, a tuple all, a dict keywords.

        Raises:
            PlanError: It has no tensor with dimensions, or one that is empty, nested, not dense or on the meta device.
        """
        example = cls(*arguments(given))
        if not example._tensors:
            raise PlanError(
                "example= must be the network's input, with a batch of images: a tensor or list (the only argument), a "
                f"tuple (all arguments) or a dict (arguments by name); this {type(given).__name__} contains no tensor "
                "with dimensions"
            )
        for tensor in example._tensors:
            if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided or not len(tensor):
                raise PlanError(
                    "example= must be dense tensors with values, of at least one image, because the network is run on "
                    f"it; found a tensor of shape {'nested' if tensor.is_nested else tuple(tensor.shape)}, "
                    f"{tensor.layout}, on {tensor.device}"
                )
        return example

    @property
    def _tensors(self) -> list[Tensor]:
        tensors = (t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor))
        return [t for t in tensors if t.is_nested or t.dim()]

    @property
    def first(self) -> Tensor:
        """First of the tensors with the most dimensions: the images."""
        return max(self._tensors, key=Tensor.dim)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.first)

    @property
    def size(self) -> Size | None:
        """Height and width of the images, in pixels; None if they have fewer than four dimensions."""
        shape = self.first.shape
        return (shape[-2], shape[-1]) if len(shape) >= 4 else None

    @property
    def is_square(self) -> bool:
        """True if height and width are equal or the size is None."""
        return self.size is None or self.size[0] == self.size[1]

    @property
    def image(self) -> Tensor | None:
        """Tensor of shape N,C,H,W if that is the only argument, else None."""
        plain = len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor)
        return self.args[0] if plain and self.args[0].dim() == 4 else None

    def call(self, module: nn.Module) -> Any:
        """Return a module's output. It gets copies of the tensors, because some networks change inputs in place."""

        def copied(value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else value

        return module(*tree_map(copied, self.args), **tree_map(copied, self.kwargs))

    def of_images(self, count: int) -> Example:
        """Return this example with `count` images: the first ones, or copies of the first if there are too few."""
        if self.images >= count:
            return self._each_batch(lambda t: t[:count])
        return self._each_batch(lambda t: t[:1].expand(count, *t.shape[1:]).clone())

    def views(self, count: int) -> tuple[Any, ...]:
        """Return one image for each of `count` views, each as the network's argument, tuple or dict of arguments.

        With fewer images than views, every view is the first image.
        """

        def view(i: int) -> Any:
            image = self._each_batch(lambda t: t[i : i + 1])
            return image.kwargs or (image.args[0] if len(image.args) == 1 else image.args)

        return tuple(map(view, range(count))) if self.images >= count else (view(0),) * count

    def with_other(self, index: int) -> Example:
        """Return this example with the image at `index` changed: flipped, and halved if floating-point."""

        def other(batch: Tensor) -> Tensor:
            batch = batch.clone()
            flipped = batch[index].flip(tuple(range(batch.dim() - 1)))
            batch[index] = flipped * 0.5 if batch.is_floating_point() else flipped
            return batch

        return self._each_batch(other)

    def _each_batch(self, change: Callable[[Tensor], Tensor]) -> Example:
        """Return this example with each tensor changed whose first dimension is as long as the batch of images."""

        def changed(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.dim() and len(value) == self.images
            return change(value) if is_batch else value

        return Example(tree_map(changed, self.args), tree_map(changed, self.kwargs))


def examples(
    root: nn.Module, *, batch: int = BATCH, facts: Facts | None = None, sizes: tuple[Size, ...] = SIZES_PX
) -> Iterator[Example]:
    """Yield random image batches (values 0..1) of common channel counts and sizes, to run the network on.

    Args:
        root: Network that the batches are for; they get the dtype and device of its first floating-point parameter.
        batch: Number of images in each batch.
        facts: Known facts, which determine the channels and the allowed sides.
        sizes: Image sizes, in pixels, before they are adjusted to the facts.

    Raises:
        PlanError: The network has no floating-point parameters, so its dtype and device are unknown.
    """
    tensor = next((p for p in root.parameters() if p.is_floating_point()), None)
    if tensor is None:
        raise PlanError(
            "the network has no floating-point parameters, so the dtype of test images is unknown; pass example="
        )
    generator = torch.Generator().manual_seed(0)
    first = next((m for m in root.modules() if isinstance(m, nn.Conv2d)), None)
    counts = dict.fromkeys(([first.in_channels] if first is not None else []) + [3, 1, 4])
    if facts is not None and facts.input_channels is not None:
        counts = {facts.input_channels: None}
    if facts is not None and facts.fixed_px is not None:
        sizes = ((facts.fixed_px, facts.fixed_px),)
    elif facts is not None:
        sizes = tuple(dict.fromkeys(facts.sides_for(height, width) for height, width in sizes))
    for channels in counts:
        for height, width in sizes:
            images = torch.rand(batch, channels, height, width, generator=generator, device="cpu")
            yield Example((images.to(tensor.device, tensor.dtype),), {})
