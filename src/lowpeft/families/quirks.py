"""Facts about modules of public networks that hold whatever family the network is of, or none."""

from __future__ import annotations

CHECKPOINT_SWITCHES = ("use_checkpoint", "gradient_checkpointing", "grad_checkpointing")
"""Names of attributes that switch activation checkpointing, in SwinIR, transformers and timm."""

DIFFERENTIABLE_IN_TRAINING_ONLY = frozenset({"PLKConv2d", "RectSparsePLKConv2d"})
"""Class names of PLKSR layers whose eval forward writes in place, which autograd rejects. They follow `train()` even in
a frozen base: without statistics or randomness, their result in training mode is the same."""
