"""The tiny networks are what `zoo.py` says they are; the conformance tests rely on it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
import torch
from spandrel import MAIN_REGISTRY
from torch import Tensor, nn

import zoo
from zoo import Network, image_of

TOLERANCE = 1e-4


def run(module: nn.Module, x: Tensor) -> Tensor:
    """What the network makes of N,C,H,W. A copy goes in, because RCAN writes into its input."""
    torch.manual_seed(0)
    with torch.no_grad():
        return image_of(module(x.clone()))


def random_input(network: Network) -> Tensor:
    """Two different images: 2,C,H,W in 0..value_max."""
    return network.value_max * torch.rand(2, network.channels, *network.input_px)


LATER = {n.name for n in zoo.ALL if n not in (*zoo.FAMILIES, *zoo.TWO_VIEWS)} | zoo.LATER | zoo.VARIANTS
"""Rows that only slow tests run on."""


def rows(networks: Iterable[Network], later: Collection[str] = ()) -> list[object]:
    slow = {*zoo.SLOW, *later}
    return [pytest.param(n, id=n.name, marks=[pytest.mark.slow] * (n.name in slow)) for n in networks]


def one_by_one(module: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([run(module, image) for image in x.split(1)])


@pytest.mark.parametrize("network", rows(zoo.ALL, LATER))
def test_a_row_is_what_it_says(network: Network) -> None:
    torch.manual_seed(1)
    module = network.build()
    torch.manual_seed(1)
    twin = network.build()
    assert not any(m.training for m in module.modules())
    assert all(p.any() for name, p in module.named_parameters() if not name.endswith("bias"))
    pairs = zip(module.state_dict().items(), twin.state_dict().items(), strict=True)
    assert all(key == twin_key and torch.equal(value, twin_value) for (key, value), (twin_key, twin_value) in pairs)

    x = random_input(network)
    singles = one_by_one(module, x)
    assert singles.isfinite().all()
    assert not torch.equal(singles[0], singles[1])
    assert run(module, torch.zeros_like(x[:1])).isfinite().all()
    if network.task != "features":  # a fourth channel is a noise map or a mask, and goes in only
        height, width = network.input_px
        channels = network.channels if network in zoo.TWO_VIEWS else min(network.channels, 3)
        assert singles.shape == (2, channels, network.scale * height, network.scale * width)
    if network.name not in zoo.COUPLED:
        torch.testing.assert_close(run(module, x), singles, rtol=TOLERANCE, atol=TOLERANCE * network.value_max)


@pytest.mark.parametrize("network", rows(n for n in zoo.ALL if n.name in zoo.COUPLED))
def test_a_coupled_row_refuses_a_batch_or_mixes_it(network: Network) -> None:
    torch.manual_seed(1)
    module = network.build()
    x = random_input(network)
    singles = one_by_one(module, x)
    try:
        together = run(module, x)
    except RuntimeError:
        return
    assert not torch.allclose(together, singles, rtol=TOLERANCE, atol=TOLERANCE)


# spandrel's copies of NAFNet and OmniSR use an old name in their own autograd function.
@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("network", rows(zoo.ALL, LATER))
def test_gradients_pass_through_the_frozen_network(network: Network) -> None:
    torch.manual_seed(1)
    module = network.build().requires_grad_(False)
    x = random_input(network)[:1].requires_grad_()
    out = image_of(module(x.clone()))
    if network.name in zoo.NO_BACKWARD:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    else:
        out.square().mean().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.any()


def test_names_are_unique_and_known() -> None:
    names = [network.name for network in zoo.ALL]
    assert len(names) == len(set(names))
    assert set(zoo.COUPLED) | set(zoo.NO_BACKWARD) | zoo.SLOW <= set(names)
    assert all(network.family for network in zoo.FAMILIES)


def test_every_architecture_of_spandrel_has_a_row_or_a_reason() -> None:
    modules = [type(network.build()).__module__.split(".") for network in zoo.SPANDREL]
    seen = {parts[2] for parts in modules if parts[:2] == ["spandrel", "architectures"]}
    known = {entry.architecture.id for entry in MAIN_REGISTRY.architectures()}
    assert seen | set(zoo.UNUSUAL) == known
    assert not seen & set(zoo.UNUSUAL)
