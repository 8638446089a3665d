"""`lowpeft.optimize` on every tiny network: the same outputs and gradients, and everything as before when undone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft.core.attachment.record import record_of, unwrap
from states import randomise_adapters
from tiers import by_default
from zoo import Network, image_of

CLOSE = 1e-9
"""In float64, where the docs allow 1e-5 in float32."""
MODES = ("keep", "rebuild", "checkpoint")
FUSED = {"hat", "swinir", "swin2sr", "edt", "timm_swin", "timm_swin_v2"}
QUICK = {"swinir", "timm_swin", "nafnet"}
"""Networks in the default tier; what they have in common with the others is tested layer by layer elsewhere."""

Step = Callable[[nn.Module], tuple[Tensor, dict[str, Tensor]]]


def rows() -> list[object]:
    return [
        pytest.param(n, id=n.name, marks=[pytest.mark.slow] * (n.name not in QUICK or n.name in zoo.SLOW))
        for n in zoo.ALL
        if n not in zoo.TWO_VIEWS
    ]


def step_of(network: Network) -> Step:
    """A forward and backward in float64; the output and the gradients of the adapters."""
    x = network.value_max * torch.rand(2, network.channels, *network.input_px, dtype=torch.float64)

    def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        torch.manual_seed(0)
        output = image_of(model(x.clone()))
        (output / network.value_max).square().mean().backward()
        return output.detach(), {n: p.grad for n, p in lowpeft.adapter_parameters(model) if p.grad is not None}

    return step


def differences(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> list[float]:
    assert a[1].keys() == b[1].keys()
    pairs = [(a[0], b[0]), *((a[1][n], b[1][n]) for n in b[1])]
    return [float((x - y).norm() / y.norm().clamp_min(1e-30)) for x, y in pairs]


# Fused layers read the weights, which lora changes; adapters of features lie between them.
@pytest.mark.parametrize("recipe", by_default(["lora"], ["spatial", "lora"]))
@pytest.mark.parametrize("network", rows())
def test_outputs_and_gradients_stay(network: Network, recipe: str) -> None:
    torch.manual_seed(0)
    base = network.build()
    example = network.value_max * torch.rand(2, network.channels, *network.input_px)
    try:
        model = randomise_adapters(lowpeft.adapt(base, recipe, example=example), std=0.02).train().double()
    except lowpeft.PlanError as error:
        pytest.skip(f"{recipe} does not fit: {error.message[:60]}")
    step = step_of(network)
    try:
        plain = step(model)
    except RuntimeError as error:
        pytest.skip(f"the network does not run in float64, or not backwards: {error}")
    classes = {path: type(m) for path, m in model.named_modules()}
    for mode in MODES:
        try:
            lowpeft.optimize(model, memory=mode, example=example.double())
        except lowpeft.PlanError as error:
            if mode == "checkpoint" and "belongs to no known family" in str(error):
                continue  # its stages could not be told
            raise
        found = record_of(unwrap(model)).optimised
        assert found is not None
        assert bool(found.fused) == (network.family in FUSED), found
        assert found.notes == ()
        worst = max(differences(step(model), plain))
        assert worst < CLOSE, (mode, worst)
    lowpeft.optimize(model, None)
    assert {path: type(m) for path, m in model.named_modules()} == classes
    assert all(torch.equal(a, b) for a, b in zip(step(model)[1].values(), plain[1].values(), strict=True))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(n, id=n.name, marks=[pytest.mark.slow] * (n.name not in ("swinir", "nafnet")))
        for n in zoo.ALL
        if n.name in QUICK and n.name not in zoo.SLOW
    ],
)
def test_a_new_adapter_leaves_the_optimised_base(network: Network) -> None:
    torch.manual_seed(0)
    x = network.value_max * torch.rand(1, network.channels, *network.input_px)
    base = lowpeft.optimize(network.build().requires_grad_(False))
    with torch.no_grad():
        before = image_of(base(x.clone()))
    weights = {name: (t.clone(), t.stride()) for name, t in base.state_dict().items()}
    model = lowpeft.adapt(base, "spatial")
    with torch.no_grad():
        assert torch.equal(image_of(model(x.clone())), before)
        with lowpeft.disabled(randomise_adapters(model)):
            assert torch.equal(image_of(model(x.clone())), before)
    plain = lowpeft.restore(copy.deepcopy(model))
    lowpeft.optimize(model, channels_last=True)
    restored = lowpeft.restore(model)
    for network_ in (plain, restored):
        assert all(
            torch.equal(t, weights[n][0]) and t.stride() == weights[n][1] for n, t in network_.state_dict().items()
        )
        assert not any(hasattr(type(m), "_lowpeft_facets") for m in network_.modules())
