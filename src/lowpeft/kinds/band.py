"""Attention along image rows within a band of columns, in memory and time linear in the width.

A position at column x attends to columns x + low … x + high, m = high - low + 1 of them. The row is cut into blocks of
b = m - 1 columns. A block of queries needs a window of n = b + m - 1 = 2b keys, so one small matrix product per block
computes n logits per query, of which m are used:

    block i, b = 3, m = 4, low = -3:   queries 3i … 3i+2,   keys 3i-3 … 3i+2

Query r of a block uses the logits r … r + m - 1 of its row. These diagonals become columns when the block is flattened,
padded by b numbers and read as rows of n + 1; `weighted_sum` does the reverse.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def inside(width: int, low: int, high: int, device: torch.device) -> Tensor:
    """Return whether column x + low + j is inside the image, for each column x and each j: bool (W, m)."""
    columns = torch.arange(width, device=device)[:, None] + torch.arange(low, high + 1, device=device)
    return (columns >= 0) & (columns < width)


def products(query: Tensor, key: Tensor, bias: Tensor, low: int, high: int) -> Tensor:
    """Return query(x) · key(x + low + j) + bias(x + low + j) for each position x and each j of its band.

    Args:
        query: (B,H,W,K).
        key: (B,H,W,K).
        bias: (B,H,W), added to the products with each key.
        low: First column of the band relative to x, at most 0.
        high: Last column, at least 0 and above `low`.

    Returns:
        (B,H,W,m); 0 where a column is outside the image.
    """
    (images, height, columns, _), width, block = query.shape, high - low + 1, high - low
    blocks = -(-columns // block)
    queries = _blocks(query, 0, block, blocks)
    logits = queries @ _windows(key, low, block, blocks).mT + _windows(bias[..., None], low, block, blocks).mT
    flat = F.pad(logits.flatten(-2), (0, block)).reshape(images, height, blocks * block, 2 * block + 1)
    return flat[:, :, :columns, :width]


def weighted_sum(weights: Tensor, value: Tensor, low: int, high: int) -> Tensor:
    """Return the sum over j of weights(x, j) · value(x + low + j), (B,H,W,C).

    Args:
        weights: (B,H,W,m); 0 where a column is outside the image.
        value: (B,H,W,C).
        low: See `products`.
        high: See `products`.
    """
    (images, height, columns, width), block = weights.shape, high - low
    blocks = -(-columns // block)
    rows = _blocks(F.pad(weights, (0, 2 * block + 1 - width)), 0, block, blocks).flatten(-2)
    matrix = rows[..., : 2 * block * block].reshape(images, height, blocks, block, 2 * block)
    return (matrix @ _windows(value, low, block, blocks)).flatten(2, 3)[:, :, :columns]


def _windows(x: Tensor, low: int, block: int, blocks: int) -> Tensor:
    """Return the 2b columns from each block's first column + `low` on, (B,H,blocks,2b,C); 0 outside the image."""
    padded = _blocks(x, -low, block, blocks + 1)
    return torch.cat((padded[:, :, :-1], padded[:, :, 1:]), dim=3)


def _blocks(x: Tensor, before: int, block: int, blocks: int) -> Tensor:
    """Return the columns in blocks, (B,H,blocks,b,C); `before` columns of zeros come first, others fill the rest."""
    images, height, columns, channels = x.shape
    padded = F.pad(x, (0, 0, before, blocks * block - before - columns))
    return padded.reshape(images, height, blocks, block, channels)
