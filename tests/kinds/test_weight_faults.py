"""Weight kinds where they were found wrong once: frozen A beside trained weights, odd data, odd layers, odd values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import (
    AdaLoRAConfig,
    CoLoRAConfig,
    DoRAConfig,
    FishConfig,
    FullConfig,
    LoRAConfig,
    OFTConfig,
    PlanError,
    VeRAConfig,
)
from lowpeft.cli import main
from states import randomise_adapters


def convolutions(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=bias), nn.Conv2d(8, 3, 1))


X = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def mse(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


# --- A frozen A ------------------------------------------------------------------------------------------------------


def test_a_frozen_a_takes_no_gradient_from_a_base_that_is_trained_too() -> None:
    gradients = []
    for frozen in (False, True):
        model = lowpeft.adapt(convolutions(bias=False), LoRAConfig(rank=1, freeze_a=frozen))
        model.requires_grad_(True)
        model(X).square().sum().backward()
        gradients.append([model.get_submodule(n)._parameters["weight"].grad for n in "023"])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_colora_sees_the_gradients_of_convolutions_with_a_frozen_a() -> None:
    ranks = []
    for frozen in (False, True):
        model = lowpeft.adapt(convolutions(), CoLoRAConfig(rank=2, freeze_a=frozen))
        lowpeft.calibrate(model, [(X, torch.zeros(2, 3, 8, 6))], loss=mse)
        state = lowpeft.adapter_state_dict(model)
        ranks.append({name: len(t) for name, t in state.items() if name.endswith(".a")})
    if len(set(ranks[0].values())) == 1:
        pytest.fail("the ranks of this network are all the same, so the test shows nothing")
    assert ranks[1].keys() == ranks[0].keys()
    assert max(ranks[1], key=ranks[1].__getitem__) == max(ranks[0], key=ranks[0].__getitem__)


def test_second_order_gradients_of_a_frozen_a_are_refused_with_what_to_do() -> None:
    model = lowpeft.adapt(convolutions(), LoRAConfig(rank=1, freeze_a=True))
    x = X.clone().requires_grad_(True)
    with pytest.raises(PlanError, match="train A too"):
        torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    plain = lowpeft.adapt(convolutions(), LoRAConfig(rank=1))
    (gradient,) = torch.autograd.grad(plain(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own, in jvp
def test_a_frozen_a_goes_through_the_transforms_of_torch_func() -> None:
    model = randomise_adapters(lowpeft.adapt(convolutions(), LoRAConfig(rank=1, freeze_a=True)))
    expected = model(X)
    torch.testing.assert_close(torch.func.vmap(lambda x: model(x[None])[0])(X), expected)
    torch.testing.assert_close(torch.func.jvp(model, (X,), (X,))[0], expected)


# --- Layers ----------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(x)[0])


def test_a_recurrent_layer_which_stores_its_weights_is_left_alone() -> None:
    x = torch.rand(2, 5, 4)
    model = lowpeft.adapt(Recurrent(), FishConfig(share=0.5), example=x)
    assert not any(name.startswith("read") for name, _ in lowpeft.adapter_parameters(model))
    with pytest.raises(PlanError, match="weight_hh_l0"):
        lowpeft.plan(Recurrent(), FullConfig(target="read.weight_hh_l0"), example=x)


def test_a_sparse_embedding_is_refused_when_planned() -> None:
    words = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4))
    with pytest.raises(PlanError, match=r"'0\.weight'"):
        lowpeft.plan(words, LoRAConfig(target="0.weight", rank=1), example=torch.tensor([[1, 2]]))


# --- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["eva", "corda"])
def test_a_layer_that_gets_only_zeros_keeps_its_start(start: str) -> None:
    model = convolutions()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    lowpeft.adapt(model, LoRAConfig(rank=1, start=start))
    expected = model(X)
    lowpeft.calibrate(model, [X])
    assert torch.equal(model(X), expected)
    assert "1 layers got no inputs and keep a random start, e.g. 2.lora_weight" in str(lowpeft.summary(model))


@pytest.mark.parametrize("start", ["eva", "corda"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_images_that_are_not_finite_cannot_start_anything(start: str, value: float) -> None:
    model = lowpeft.adapt(convolutions(), LoRAConfig(rank=1, start=start))
    with pytest.raises(PlanError, match="not finite, or too large"):
        lowpeft.calibrate(model, [torch.full_like(X, value)])


@pytest.mark.parametrize("config", [LoRAConfig(rank=1, start="pissa"), DoRAConfig(rank=1), OFTConfig(block=3)])
def test_weights_that_are_not_finite_are_named_as_the_reason(config: Any) -> None:
    model = convolutions()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(PlanError, match="not finite"):
        lowpeft.adapt(model, config)


def test_eva_finds_its_direction_in_inputs_far_from_zero() -> None:
    direction = nn.functional.normalize(torch.arange(1.0, 7.0), dim=0)
    generator = torch.Generator().manual_seed(0)
    x = 1000 + 0.5 * torch.randn(400, 1, generator=generator) * direction
    model = lowpeft.adapt(nn.Sequential(nn.Linear(6, 6)), LoRAConfig(rank=1, start="eva", target="**"), example=x)
    lowpeft.calibrate(model, list(x.split(100)))
    (a,) = (t for n, t in lowpeft.adapter_state_dict(model).items() if n.endswith(".a"))
    assert (a @ direction).abs().item() > 0.99


def test_pairs_without_a_loss_are_explained() -> None:
    model = lowpeft.adapt(convolutions(), LoRAConfig(rank=1, start="eva"))
    with pytest.raises(PlanError, match="give loss=, or pass the inputs alone"):
        lowpeft.calibrate(model, [(X, X)])


def test_what_is_trained_while_calibrating_is_not_lost() -> None:
    model = lowpeft.adapt(convolutions(), LoRAConfig(rank=1, start="eva"))

    def batches() -> Any:
        yield X
        randomise_adapters(model)

    with pytest.raises(PlanError, match="already trained"):
        lowpeft.calibrate(model, batches())
    assert all(p.any() for _, p in lowpeft.adapter_parameters(model))


def test_an_adapter_that_was_not_calibrated_says_so_in_its_card_and_in_info(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lowpeft.adapt(convolutions(), LoRAConfig(rank=1, start="eva"))
    for answer in ("no", "yes"):
        folder = lowpeft.save_adapter(model, tmp_path / answer)
        assert f"| calibrated | {answer}" in (folder / "README.md").read_text(encoding="utf-8")
        assert main(["info", str(folder)]) == 0
        assert re.search(rf"calibrated +{answer}", capsys.readouterr().out)
        if answer == "no":
            lowpeft.calibrate(model, [X])
    plain = lowpeft.save_adapter(lowpeft.adapt(convolutions(), LoRAConfig(rank=1)), tmp_path / "plain")
    assert "calibrated" not in (plain / "README.md").read_text(encoding="utf-8")


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (LoRAConfig, {"freeze_a": "no"}),
        (LoRAConfig, {"rank_stabilised": 1}),
        (DoRAConfig, {"detach_norm": "no"}),
        (OFTConfig, {"share": 1}),
        (LoRAConfig, {"alpha": 10**400}),
        (VeRAConfig, {"seed": 2**63}),
        (VeRAConfig, {"rank": 10**9}),
        (AdaLoRAConfig, {"orthogonal": 10**400}),
    ],
)
def test_values_of_another_type_or_size_are_refused(config: type, fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(fields))):
        config(**fields)


# --- A training loop of one's own ------------------------------------------------------------------------------------


def test_the_parts_of_training_serve_a_loop_of_ones_own() -> None:
    model = lowpeft.adapt(convolutions(), AdaLoRAConfig(rank=1, initial_rank=3, warmup=1, final=1))
    parts = lowpeft.training_parts(model, steps=6)
    optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-2)
    for step in range(1, 7):
        loss = mse(model(X), torch.zeros(2, 3, 8, 6))
        for part in parts.values():
            if (penalty := part.penalty()) is not None:
                loss = loss + penalty
        loss.backward()
        for part in parts.values():
            part.before_step(step)
        optimiser.step()
        for part in parts.values():
            part.after_step(step)
        optimiser.zero_grad()
    kept = sum(int(t.sum()) for n, t in lowpeft.adapter_state_dict(model).items() if n.endswith(".kept"))
    assert kept == 3  # one rank for each of three layers
    assert lowpeft.training_parts(convolutions(), 6) == {}
