"""Largest weights of attention along image rows."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ENTRIES = 2**21
"""Number of logits that exist at once: 8 MiB in float32."""


def best_matches(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Find the key of the same row that gets the largest weight of softmax(scale · query · keyᵀ), for each query.

    The logits are computed for some rows at a time, and for parts of very long rows, so memory is linear in the width.

    Args:
        query: Queries (B,H,W,C).
        key: Keys (B,H,K,C).
        scale: Factor of the logits.

    Returns:
        Columns of the keys, whole numbers (B,H,W), and their weights, 0..1 (B,H,W).
    """
    width, count = query.shape[2], key.shape[2]
    rows, columns = (max(1, BLOCK_ENTRIES // each) for each in (width * count, count))
    matched, weights = [], []
    blocks = zip(torch.split(query.flatten(0, 1), rows), torch.split(key.flatten(0, 1), rows), strict=True)
    for queries, keys in blocks:
        for part in torch.split(queries, columns, dim=1):  # several parts only of a single row
            logits = part @ keys.transpose(-1, -2)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
            largest, column = logits.max(dim=-1)
            matched.append(column.flatten())
            weights.append((largest - logits.logsumexp(dim=-1)).exp().flatten())
    return torch.cat(matched).view(query.shape[:-1]), torch.cat(weights).view(query.shape[:-1])
