"""Attention in windows with frozen weights, the windows of one mask next to each other; and MLPs in chunks.

The mask of shifted windows is the same in all windows of a region: the inside, the last column, the last row, and the
corner where these meet. So tokens are put in the order of regions (one gather, in place of a roll and a partition), and
`scaled_dot_product_attention` runs at most four times, with one bias + mask for all windows of a region. It keeps no
scores, but q, k, v, its output, and the bias, which is made again in backward.

Heads are padded with zeros to a multiple of 8 channels, which changes no result: the CPU's kernel is a fifth faster,
and CUDA's memory-efficient kernel refuses other sizes (30 channels a head in HAT and SwinIR, 15 in EDT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ports.layouts import Size
from .linear import Affine, Padding
from .rebuilding import Level, note

HEAD_MULTIPLE = 8
"""Multiple to which the channels of a head are padded."""


class Order(NamedTuple):
    """Order of the tokens of a batch in which each window is together, and so are the windows of each region.

    Attributes:
        rows: For each token in this order, its row in (N·H·W, C).
        inverse: For each row of (N·H·W, C), its place in this order.
        counts: Number of windows in each region that there is.
        regions: Row and column of the first window of each region, among the windows of an image.
    """

    rows: Tensor
    inverse: Tensor
    counts: tuple[int, ...]
    regions: tuple[Size, ...]

    def taken(self, x: Tensor) -> Tensor:
        """Return rows (N·H·W, C) in this order."""
        return _gathered(x, self.rows, self.inverse)

    def put_back(self, x: Tensor) -> Tensor:
        """Return rows of this order in the order of the image."""
        return _gathered(x, self.inverse, self.rows)


def order_of(batch: int, size: Size, window: Size, shift: Size, *, masked: bool, device: torch.device) -> Order:
    """Return the order of tokens in windows.

    Args:
        batch: Number of images.
        size: Height and width in tokens; multiples of the window's.
        window: Height and width of a window.
        shift: Shift of the windows down and to the right; (0, 0) for none.
        masked: True if the regions have masks of their own; else all windows are one region.
        device: Device of the order.
    """
    (height, width), rows, columns = size, size[0] // window[0], size[1] // window[1]
    place = torch.arange(height * width, device=device).view(height, width)
    if any(shift):
        place = place.roll((-shift[0], -shift[1]), (0, 1))
    windows = place.view(rows, window[0], columns, window[1]).transpose(1, 2).flatten(2)
    parts, regions = [windows.flatten(0, 1)], [(0, 0)]
    if masked:
        split = [windows[r, c].flatten(0, 1) for r in _last_apart(rows) for c in _last_apart(columns)]
        firsts = [(r.start, c.start) for r in _last_apart(rows) for c in _last_apart(columns)]
        kept = [i for i, part in enumerate(split) if part.numel()]
        parts, regions = [split[i] for i in kept], [firsts[i] for i in kept]
    images = torch.arange(batch, device=device).view(-1, 1) * (height * width)
    order = torch.cat([(images + part.reshape(1, -1)).flatten() for part in parts])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=device)
    return Order(order, inverse, tuple(batch * len(part) for part in parts), tuple(regions))


def _last_apart(count: int) -> tuple[slice, slice]:
    return slice(0, count - 1), slice(count - 1, count)


class _Gather(torch.autograd.Function):
    """Rows in another order. The gradient is gathered by the inverse order, not added up row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.orders = order, inverse
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.orders
        return _gathered(gradients[0], inverse, order), None, None


def _gathered(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    if not x.requires_grad:
        return x.index_select(0, order)
    out: Tensor = _Gather.apply(x, order, inverse)
    return out


class _Overlapping(torch.autograd.Function):
    """Windows that overlap their neighbours, padded with zeros: (N,H,W,C) to (N, rows, columns, side, side, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, side: int, step: int) -> Tensor:
        ctx.shape, ctx.side, ctx.step = x.shape, side, step
        return _cut(x, side, step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (batch, height, width, channels) = gradients, ctx.shape
        around = (ctx.side - ctx.step) // 2
        total = gradient.new_zeros(batch, height + 2 * around, width + 2 * around, channels)
        windows = total.unfold(1, ctx.side, ctx.step).unfold(2, ctx.side, ctx.step).permute(0, 1, 2, 4, 5, 3)
        for down in (0, 1):  # every second window does not overlap the others, so many can be added at once
            for right in (0, 1):
                windows[:, down::2, right::2] += gradient[:, down::2, right::2]
        return total[:, around : around + height, around : around + width], None, None


def overlapping(x: Tensor, side: int, step: int) -> Tensor:
    """Cut (N,H,W,C) into windows (N, rows, columns, side, side, C) every `step` positions; zeros outside of the image.

    Args:
        x: Features; H and W are multiples of `step`.
        side: Side of a window, at most 2·step.
        step: Distance of the windows; they overlap by `side - step`.
    """
    if x.requires_grad:
        out: Tensor = _Overlapping.apply(x, side, step)
        return out
    return _cut(x, side, step)


def _cut(x: Tensor, side: int, step: int) -> Tensor:
    around = (side - step) // 2
    padded = F.pad(x, (0, 0, around, around, around, around))
    windows = padded.unfold(1, side, step).unfold(2, side, step)
    return windows.permute(0, 1, 2, 4, 5, 3).contiguous()


# --- heads -----------------------------------------------------------------------------------------------------------


class Heads(NamedTuple):
    """The layers around attention, with heads padded by zeros to `width` channels.

    Attributes:
        into: Layer that gives queries, keys and values, C to 3·heads·width.
        out: Layer after attention, heads·width to C.
        heads: Number of heads.
        width: Channels of a head, padded.
    """

    into: Affine
    out: Affine
    heads: int
    width: int


def padded_heads(into: Affine, out: Affine, heads: int) -> Heads:
    """Pad the heads in the layers around attention.

    Args:
        into: Layer that gives queries, keys and values, C to 3·heads·width; or a part of these.
        out: Layer after attention, heads·width to C.
        heads: Number of heads.
    """
    width = out.weight.shape[1] // heads
    padded = width + -width % HEAD_MULTIPLE
    if padded == width:
        return Heads(into, out, heads, width)

    def padding(dim: int, count: int) -> Padding:
        channel = torch.arange(count * width, device=into.weight.device)
        return Padding(dim, channel // width * padded + channel % width, count * padded)

    several = into.weight.shape[0] // width
    return Heads(into._replace(padding=padding(0, several)), out._replace(padding=padding(1, heads)), heads, padded)


def attended(
    qkv: Tensor,
    order: Order,
    bias: Callable[[int], Tensor | None],
    scale: float,
    *,
    prepared: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Return attention in windows, (rows, heads·width), in the order of windows.

    Args:
        qkv: Queries, keys and values (windows, L, 3, heads, width).
        order: Order of the windows.
        bias: Function from the index of a region to what is added to its logits, which broadcasts to
            (windows, heads, L, L); None for nothing.
        scale: Factor of the logits.
        prepared: Function of the queries and keys (windows, heads, L, width) before their product, e.g. a
            normalisation.
    """
    # `split`, not slices: the gradient of each slice would be a tensor as large as the whole.
    parts = torch.split(qkv, [*order.counts]) if len(order.counts) > 1 else (qkv,)
    outs = []
    for region, part in enumerate(parts):
        q, k, v = part.permute(2, 0, 3, 1, 4).unbind()
        if prepared is not None:
            q, k = prepared(q, k)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias(region), scale=scale)
        outs.append(out.transpose(1, 2).reshape(-1, qkv.shape[3] * qkv.shape[4]))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


# --- MLPs ------------------------------------------------------------------------------------------------------------

CHUNK = 1024
"""Tokens that an MLP takes at once without gradients, so that its wide features stay in the cache."""


def mlp(x: Tensor, norm: nn.Module | None, first: Affine, activation: nn.Module, last: Affine) -> Tensor:
    """Return last(activation(first(norm x))) of frozen layers.

    Args:
        x: Tokens (N, L, C).
        norm: Norm before the first layer; None for none.
        first: First layer.
        activation: Activation between the layers.
        last: Last layer.
    """

    def widened(given: Tensor, *tensors: Tensor) -> Tensor:
        return first.again(given if norm is None else norm(given), *tensors)

    if torch.is_grad_enabled() and x.requires_grad:
        wide = first.run(x if norm is None else norm(x))
        note(wide, widened, x, *first.tensors, level=Level.PRODUCTS)
        return last.run(activation(wide))
    if x.shape[0] * x.shape[1] <= CHUNK:
        return last.run(activation(widened(x, *first.tensors)))
    parts = torch.split(x.reshape(-1, x.shape[-1]), CHUNK)
    done = [last.again(activation(widened(part, *first.tensors)), *last.tensors) for part in parts]
    return torch.cat(done).view(*x.shape[:-1], -1)


def biased(tensors: Sequence[Tensor], make: Callable[..., Tensor]) -> Tensor:
    """Return a bias of the logits, made without gradients; in backward it is made again, not kept.

    Args:
        tensors: What it is made of.
        make: Function from these tensors to the bias.
    """

    def contiguous(*given: Tensor) -> Tensor:
        with torch.no_grad():
            return make(*given).contiguous()

    return note(contiguous(*tensors), contiguous, *tensors)
