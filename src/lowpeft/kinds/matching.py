"""Largest weights of attention along image rows."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ENTRIES = 2**21
"""Number of logits that exist at once (8 MiB in float32), unless a single column of queries has more."""


def best_matches(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Find the key of the same row that gets the largest weight of softmax(scale · query · keyᵀ), for each query.

    The logits are computed for some columns of queries at a time, so memory is linear in the width.

    Args:
        query: Queries (B,H,W,C).
        key: Keys (B,H,K,C).
        scale: Factor of the logits.

    Returns:
        Columns of the keys, whole numbers (B,H,W), and their weights, 0..1 (B,H,W).
    """
    batch, height, columns, _ = key.shape
    keys = key.transpose(-1, -2)
    found = []
    step = max(1, BLOCK_ENTRIES // (batch * height * columns))
    for start in range(0, query.shape[2], step):
        logits = query[:, :, start : start + step] @ keys
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
        largest, column = logits.max(dim=-1)
        found.append((column, (largest - logits.logsumexp(dim=-1)).exp()))
    matched, weights = zip(*found, strict=True)
    return torch.cat(matched, dim=2), torch.cat(weights, dim=2)
