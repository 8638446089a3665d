"""`adapt(model, "stereo")` on every super-resolution architecture of spandrel works, or is refused with a reason."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import PlanError, StereoModel
from lowpeft.ports.base import SLOT
from states import randomise_adapters
from zoo import Network, image_of

# spandrel's copy of OmniSR uses an old name in its own autograd function.
pytestmark = pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning")

REFUSED: dict[str, str] = {"seemore": "two"}
"""Rows that cannot become stereo networks by themselves, and a word of the message."""

SR = [network for network in zoo.SPANDREL if network.task == "sr"]
TAKEN = [n for n in SR if n.name not in REFUSED]
VARIANTS = re.compile("realcugan_x[34]|realcugan_.*_fast|esrgan_.*|grl_.*|moesr_.*|dat_.*|mmrealsr")
"""Rows whose network another row has with other settings."""

every_network = pytest.mark.parametrize("network", TAKEN, ids=lambda n: n.name)
every_new_network = pytest.mark.parametrize(
    "network",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in zoo.FAMILIES or bool(VARIANTS.fullmatch(n.name))))
        for n in TAKEN
    ],
    ids=lambda n: n.name,
)
"""Families are tried elsewhere too, and variants in the slow tier."""


def build(network: Network) -> nn.Module:
    torch.manual_seed(7)
    return network.build()


def views_for(network: Network) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    batch = network.value_max * torch.rand(2, network.channels, *network.input_px, generator=generator)
    return batch[:1], batch[1:]


def tensors(root: nn.Module) -> dict[str, Tensor]:
    named = [*root.named_parameters(), *root.named_buffers()]
    return {name: t.detach().clone() for name, t in named if SLOT not in name.split(".")}


@torch.no_grad()
def look(model: StereoModel, network: Network) -> Tensor:
    torch.manual_seed(3)  # AuraSR draws noise in every forward
    return torch.cat([image_of(view) for view in model(*views_for(network))])


@functools.cache
def adapted(network: Network) -> StereoModel:
    """The network with random adapters: read it, never write it."""
    return randomise_adapters(lowpeft.adapt(build(network), "stereo"))


def test_the_refused_are_rows_of_the_table() -> None:
    assert set(REFUSED) <= {network.name for network in SR}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_take_the_recipe_is_refused_with_a_reason_and_untouched(name: str) -> None:
    root = build(next(n for n in SR if n.name == name))
    classes, before = {p: type(m) for p, m in root.named_modules()}, tensors(root)
    with pytest.raises(PlanError) as refusal:
        lowpeft.adapt(root, "stereo")
    assert REFUSED[name] in str(refusal.value)
    assert {p: type(m) for p, m in root.named_modules()} == classes
    assert all(torch.equal(t, before[key]) for key, t in tensors(root).items())


@every_new_network
@torch.no_grad()
@pytest.mark.slow
def test_a_new_stereo_network_is_the_base_bit_for_bit(network: Network) -> None:
    bare = build(network)
    torch.manual_seed(3)
    expected = image_of(bare(torch.cat(views_for(network))))
    assert torch.equal(look(lowpeft.adapt(build(network), "stereo"), network), expected)


@pytest.mark.slow
@every_network
def test_every_adapter_parameter_gets_a_gradient(network: Network) -> None:
    model = randomise_adapters(lowpeft.adapt(build(network), "stereo")).train()
    left, right = model(*views_for(network))
    generator = torch.Generator().manual_seed(0)
    out = torch.cat((image_of(left), image_of(right)))
    (out * torch.randn(out.shape, generator=generator)).mean().backward()
    dead = [n for n, p in lowpeft.adapter_parameters(model) if p.grad is None or not p.grad.any()]
    assert dead == []
    assert all(p.grad.isfinite().all() for _, p in lowpeft.adapter_parameters(model))


@pytest.mark.slow
@every_network
def test_each_view_depends_on_the_other(network: Network) -> None:
    left, right = views_for(network)
    with torch.no_grad():
        one = image_of(adapted(network)(left.clone(), right.clone())[0])
        other = image_of(adapted(network)(left.clone(), right.flip(-1).clone())[0])
    assert not torch.equal(one, other)


@pytest.mark.slow
@every_network
def test_a_saved_adapter_on_a_fresh_base_gives_bit_equal_outputs(network: Network, tmp_path: Path) -> None:
    lowpeft.save_adapter(adapted(network), tmp_path)
    loaded = lowpeft.load_adapter(build(network), tmp_path)
    assert torch.equal(look(loaded, network), look(adapted(network), network))


@pytest.mark.slow
@every_network
def test_restore_gives_back_the_network(network: Network) -> None:
    root = build(network)
    classes, before = {p: type(m) for p, m in root.named_modules()}, tensors(root)
    model = randomise_adapters(lowpeft.adapt(root, "stereo"))
    look(model, network)
    assert lowpeft.restore(model) is root
    assert {p: type(m) for p, m in root.named_modules()} == classes
    after = tensors(root)
    assert after.keys() == before.keys()
    assert [key for key in before if not torch.equal(after[key], before[key])] == []
