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
    columns, width, block = query.shape[2], high - low + 1, high - low
    blocks = _blocks(columns, block)
    queries = _split(F.pad(query, (0, 0, 0, blocks * block - columns)), block)
    logits = queries @ _windows(key, low, block, blocks).transpose(-1, -2)
    logits = logits + _windows(bias[..., None], low, block, blocks).transpose(-1, -2)
    diagonals = F.pad(logits.flatten(-2), (0, block)).reshape(*logits.shape[:-1], 2 * block + 1)[..., :width]
    return _joined(diagonals, columns)


def weighted_sum(weights: Tensor, value: Tensor, low: int, high: int) -> Tensor:
    """Return the sum over j of weights(x, j) · value(x + low + j), (B,H,W,C).

    Args:
        weights: (B,H,W,m); 0 where a column is outside the image.
        value: (B,H,W,C).
        low: See `products`.
        high: See `products`.
    """
    columns, width, block = weights.shape[2], high - low + 1, high - low
    blocks = _blocks(columns, block)
    rows = _split(F.pad(weights, (0, 2 * block + 1 - width, 0, blocks * block - columns)), block)
    matrix = F.pad(rows.flatten(-2), (0, -block)).reshape(*rows.shape[:-1], 2 * block)
    return _joined(matrix @ _windows(value, low, block, blocks), columns)


def _blocks(columns: int, block: int) -> int:
    """Return the number of blocks that hold a row; of positive numbers, as ONNX's division does not round down."""
    return (columns + block - 1) // block


def _windows(x: Tensor, low: int, block: int, blocks: int) -> Tensor:
    """Return the 2b columns from each block's first column + `low` on, (B,H,blocks,2b,C); 0 outside the image."""
    padded = F.pad(x, (0, 0, -low, (blocks + 1) * block + low - x.shape[2]))
    if torch.compiler.is_compiling():
        return padded.unfold(2, 2 * block, block).transpose(-1, -2)
    parts = _split(padded, block)
    return torch.cat((parts[:, :, :-1], parts[:, :, 1:]), dim=3)


def _split(x: Tensor, block: int) -> Tensor:
    """Return the columns, a multiple of b, in blocks: (B,H,blocks,b,C)."""
    if torch.compiler.is_compiling():  # an export for images of all widths refuses `reshape`, which is faster
        return x.unfold(2, block, block).transpose(-1, -2)
    return x.reshape(*x.shape[:2], -1, block, x.shape[-1])


def _joined(x: Tensor, columns: int) -> Tensor:
    """Return the first columns of blocks (B,H,blocks,b,C): (B,H,columns,C)."""
    if torch.compiler.is_compiling():
        column, block = torch.arange(columns, device=x.device), x.shape[3]
        return x[:, :, column // block, column % block]
    return x.flatten(2, 3)[:, :, :columns]
