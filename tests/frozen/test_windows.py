"""Attention in windows whose tokens are ordered by region, against attention with a mask for every window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lowpeft.frozen import windows
from lowpeft.frozen.linear import Affine

GRIDS = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 4)]
CPU = torch.device("cpu")


def partition(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """(N,H,W,C) to (windows, L, C) as Swin's code does it."""
    n, h, w, c = x.shape
    x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    x = x.view(n, h // window[0], window[0], w // window[1], window[1], c)
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], c)


def region_masks(rows: int, columns: int, length: int) -> Tensor:
    """A random mask for each window, the same in each region."""
    masks = torch.randn(2, 2, length, length, dtype=torch.float64)
    return torch.stack([masks[int(r == rows - 1), int(c == columns - 1)] for r in range(rows) for c in range(columns)])


@pytest.mark.parametrize(("window", "shift"), [((4, 4), (0, 0)), ((4, 4), (2, 2)), ((2, 6), (1, 3))])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_order_is_that_of_windows_by_region(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], masked: bool
) -> None:
    size = (grid[0] * window[0], grid[1] * window[1])
    x = torch.randn(2, *size, 3)
    order = windows.order_of(2, size, window, shift, masked=masked, device=CPU)
    rows = order.taken(x.view(-1, 3))
    assert torch.equal(order.put_back(rows), x.view(-1, 3))
    plain = partition(x, window, shift).view(2, *grid, -1, 3)
    assert sum(order.counts) == 2 * grid[0] * grid[1]
    assert len(order.counts) == len(order.regions) <= (4 if masked else 1)
    for part, (row, column) in zip(
        rows.split([n * window[0] * window[1] for n in order.counts]), order.regions, strict=True
    ):
        assert torch.equal(part.view(-1, window[0] * window[1], 3)[0], plain[0, row, column])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("width", [5, 8])
def test_attention_is_that_with_a_mask_for_every_window(grid: tuple[int, int], width: int) -> None:
    heads, window, shift, channels = 2, (4, 4), (2, 2), 2 * width
    size, length = (grid[0] * 4, grid[1] * 4), 16
    x = torch.randn(2, *size, channels, dtype=torch.float64, requires_grad=True)
    into, out = (
        Affine(torch.randn(k * channels, channels).double(), torch.randn(k * channels).double()) for k in (3, 1)
    )
    bias, masks = torch.randn(1, heads, length, length).double(), region_masks(*grid, length)

    q, k, v = (
        F.linear(partition(x, window, shift), *into.tensors).view(-1, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    )
    scores = q @ k.transpose(-1, -2) / width**0.5 + bias + masks.repeat(2, 1, 1)[:, None]
    plain = F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, length, channels), *out.tensors)

    order = windows.order_of(2, size, window, shift, masked=True, device=CPU)
    padded = windows.padded_heads(into, out, heads)
    assert padded.width == 8
    qkv = padded.into.run(order.taken(x.view(-1, channels))).view(-1, length, 3, heads, padded.width)
    found = windows.attended(
        qkv, order, lambda i: bias + masks[order.regions[i][0] * grid[1] + order.regions[i][1]], width**-0.5
    )
    found = order.put_back(padded.out.run(found)).view(x.shape)

    torch.testing.assert_close(partition(found, window, shift), plain)
    seed = torch.randn_like(found)
    ours = torch.autograd.grad(found, x, seed, retain_graph=True)[0]
    theirs = torch.autograd.grad(plain, x, partition(seed, window, shift))[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("side", "step"), [(6, 4), (8, 4), (4, 4)])
@pytest.mark.parametrize("grid", GRIDS)
def test_overlapping_windows_are_those_of_unfold(grid: tuple[int, int], side: int, step: int) -> None:
    x = torch.randn(2, grid[0] * step, grid[1] * step, 3, dtype=torch.float64, requires_grad=True)
    found = windows.overlapping(x, side, step)
    plain = F.unfold(x.permute(0, 3, 1, 2), side, stride=step, padding=(side - step) // 2)
    plain = plain.view(2, 3, side, side, *grid).permute(0, 4, 5, 2, 3, 1)
    assert torch.equal(found, plain)
    seed = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(y, x, seed, retain_graph=True)[0] for y in (found, plain))
    torch.testing.assert_close(ours, theirs)


def test_low_rank_changes_are_added_to_padded_layers() -> None:
    factors = (torch.randn(2, 6, requires_grad=True), torch.randn(3 * 6, 2, requires_grad=True))
    into = Affine(torch.randn(18, 6), torch.randn(18), (factors,))
    out = Affine(torch.randn(6, 6), None, ((torch.randn(2, 6), torch.randn(6, 2)),))
    heads, x = windows.padded_heads(into, out, 2), torch.randn(5, 6)
    whole = F.linear(x, into.weight + factors[1] @ factors[0], into.bias).view(5, 6, 3)
    padded = heads.into.run(x).view(5, 6, 8)
    torch.testing.assert_close(padded[..., :3], whole)
    assert not padded[..., 3:].any()
    torch.testing.assert_close(heads.into.again(x, *heads.into.tensors), heads.into.run(x))
    attended = torch.randn(5, 2, 3)
    a, b = out.factors[0]
    found = heads.out.run(F.pad(attended, (0, 5)).flatten(1))
    torch.testing.assert_close(found, F.linear(attended.flatten(1), out.weight + b @ a))


@pytest.mark.parametrize("tokens", [10, 2500])
def test_an_mlp_in_chunks_is_the_mlp(tokens: int) -> None:
    first, last, norm = torch.nn.Linear(4, 9), torch.nn.Linear(9, 4), torch.nn.LayerNorm(4)
    x = torch.randn(2, tokens, 4)
    layers = (Affine(first.weight, first.bias), torch.nn.GELU(), Affine(last.weight, last.bias))
    with torch.no_grad():
        torch.testing.assert_close(windows.mlp(x, norm, *layers), last(F.gelu(first(norm(x)))))
