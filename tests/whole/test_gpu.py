"""Every kind on every family on a CUDA device: the start, a step, switching, merging, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_conformance import CASES as ALL_CASES
from test_conformance import Case
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import StereoModel
from states import assert_same_tensors, randomise_adapters, tensors
from zoo import image_of

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning")]

CASES = [case for case in ALL_CASES if case.network.name not in zoo.LATER or case.label == "combination"]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def on_gpu(case: Case) -> nn.Module:
    torch.manual_seed(7)
    return case.network.build().cuda()


def batch(case: Case) -> Tensor:
    row = case.network
    generator = torch.Generator().manual_seed(3)
    return (row.value_max * torch.rand(2, row.channels, *row.input_px, generator=generator)).cuda()


def run(model: nn.Module, x: Tensor) -> Tensor:
    if isinstance(model, StereoModel):
        return torch.cat([image_of(view) for view in model(x[:1].clone(), x[1:].clone())])
    return image_of(model(x.clone()))


@every_case
@torch.no_grad()
def test_a_new_adapter_changes_no_bit(case: Case) -> None:
    x, base = batch(case), on_gpu(case)
    plain = run(base, x)
    with torch.autocast("cuda", torch.bfloat16):
        mixed = run(base, x)
    model = case.adapt(base)
    assert {p.device.type for _, p in lowpeft.adapter_parameters(model)} == {"cuda"}
    assert torch.equal(run(model, x), plain)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(run(model, x), mixed)


@every_case
def test_every_tensor_is_trained_and_the_base_is_not(case: Case, tmp_path: Path) -> None:
    model, x = case.adapt(on_gpu(case)), batch(case)
    lowpeft.check_trainable(model, *(x.split(1) if isinstance(model, StereoModel) else (x,)))
    root = model.backbone if isinstance(model, StereoModel) else model
    before = tensors(root)
    optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-2, weight_decay=0.0)
    # The autograd function of KBNet-s's own layers does not take autocast's mixture of dtypes.
    with torch.autocast("cuda", torch.bfloat16, enabled=case.network.family != "kbnet"):
        loss = run(model.train(), x).float().square().mean()
    loss.backward()
    optimiser.step()
    assert all(p.isfinite().all() for _, p in lowpeft.adapter_parameters(model))
    assert_same_tensors(tensors(root), before)
    lowpeft.save_adapter(randomise_on_gpu(model.eval()), tmp_path)
    with torch.no_grad():
        assert torch.equal(run(lowpeft.load_adapter(on_gpu(case), tmp_path), x), run(model, x))


def randomise_on_gpu(model: nn.Module) -> nn.Module:
    return randomise_adapters(model.cpu(), std=0.05).cuda()


MERGES = ("lora", "full", "dora", "ssf", "vera", "loha", "lokr", "oft", "fact")
MERGEABLE = [case for case in CASES if case.label in MERGES]


@pytest.mark.parametrize("case", MERGEABLE, ids=str)
@torch.no_grad()
def test_a_merged_network_is_the_adapted_one(case: Case) -> None:
    x = batch(case)
    expected = run(on_gpu(case), x)
    model = randomise_on_gpu(case.adapt(on_gpu(case)))
    adapted = run(model, x)
    lowpeft.merge(model)
    assert (run(model, x) - adapted).norm() <= 1e-4 * (adapted - expected).norm()


def test_every_row_is_tried() -> None:
    assert {case.network.name for case in CASES} == {network.name for network in zoo.FAMILIES}
