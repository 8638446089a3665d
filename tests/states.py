"""The tensors of a network's base, and their comparison, for tests that say what must not change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowpeft.families import SLOT


def tensors(root: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, persistent or not, of a network or of the base of an adapted one; copies."""
    named = [*root.named_parameters(), *root.named_buffers()]
    return {name: t.detach().clone() for name, t in named if SLOT not in name.split(".")}


def assert_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
