"""The tensors of a network's base, and their comparison, for tests that say what must not change; random adapters."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import Backbone
from lowpeft.ports.base import SLOT
from zoo import Network

BESIDE = Path(__file__).resolve().parents[2] / "shared"
"""What lies beside the repository, where it does."""
ACCEPTANCE = BESIDE / "acceptance"

Model = TypeVar("Model", bound=nn.Module)


def tensors(root: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, persistent or not, of a network or of the base of an adapted one; copies."""
    named = [*root.named_parameters(), *root.named_buffers()]
    return {name: t.detach().clone() for name, t in named if SLOT not in name.split(".")}


def assert_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def randomise_adapters(model: Model, *, std: float = 0.1, seed: int = 5) -> Model:
    """Fill the adapters with normal values, so that they do something; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in lowpeft.adapter_parameters(model):
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
            if path.endswith("no_match"):  # random features do not match, and a parallax adapter would add nothing
                parameter.fill_(-1e3)
            elif path.endswith("descriptor.weight"):  # its trained numbers are a tenth of what they stand for
                parameter.mul_(0.1)
    return model


def facts(module: nn.Module, **changes: object) -> Backbone:
    """A x2 backbone for values 0..1 and any size, or what `changes` says; nothing is measured."""
    plain: dict[str, object] = {"scale": 2, "value_range": (0.0, 1.0), "size_multiple": 1, "channels": 3}
    return lowpeft.describe(module, **(plain | changes))


def backbone_of(row: Network, **changes: object) -> Backbone:
    """A tiny network of the zoo with its facts."""
    torch.manual_seed(0)
    known = {"architecture": row.name, "scale": row.scale, "value_range": (0.0, row.value_max)}
    return facts(row.build(), **(known | changes))


def authors_outputs(name: str) -> Path:
    """A folder of what the authors' code gave, which lies beside the repository; the test is skipped without it."""
    folder = BESIDE / "fixtures" / name
    if not folder.is_dir():
        pytest.skip(f"the authors' outputs, shared/fixtures/{name}, are not beside the repository")
    return folder


def run_acceptance_script(name: str) -> None:
    """Run a script that lies beside the repository; the test is skipped where it does not."""
    if not (ACCEPTANCE / name).exists():
        pytest.skip("it lies beside the repository, and not here")
    with mock.patch.object(sys, "path", [str(ACCEPTANCE), *sys.path]):
        runpy.run_path(str(ACCEPTANCE / name))
