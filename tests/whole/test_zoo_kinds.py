"""Every kind on every network of the zoo, known family or not: the start, gradients, merging. Minutes: slow tier."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import PlanError, StereoModel
from lowpeft.kinds import AdapterConfig, get_kind, kinds
from states import randomise_adapters
from zoo import Network, image_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning"),
]

every_network = pytest.mark.parametrize("network", zoo.ALL, ids=lambda n: n.name)
WEIGHTS = [kind.name for kind in kinds() if kind.on_weights]
ONE_BY_ONE = ("seemore",)  # it takes one image at a time
DEAD = {
    "grl_local": "its squeeze to one channel is dead behind a ReLU for some values of the layers before it",
    "hvicidnet": "the MLP of its block I_LCA5 plays no part in the output",
}
FEATURES = [kind.name for kind in kinds() if not kind.on_weights]


def build(network: Network) -> nn.Module:
    torch.manual_seed(7)
    return network.build()


def batch(network: Network) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return network.value_max * torch.rand(2, network.channels, *network.input_px, generator=generator)


def run(model: nn.Module, network: Network) -> Tensor:
    """Both images; seeded, because some networks draw noise in every call."""
    x = batch(network)
    torch.manual_seed(0)
    if isinstance(model, StereoModel):
        return torch.cat([image_of(view) for view in model(x[:1].clone(), x[1:].clone())])
    if network.name in ONE_BY_ONE:
        return torch.cat([image_of(model(image.clone())) for image in x.split(1)])
    return image_of(model(x.clone()))


@functools.cache
def live_layers(network: Network) -> list[str]:
    """The modules of which some parameter has a part in the output."""
    root = build(network).requires_grad_(True)
    for module in root.modules():
        if type(module).__name__ in lowpeft.families.quirks.DIFFERENTIABLE_IN_TRAINING_ONLY:
            module.training = True
    run(root, network).square().sum().backward()
    alive = {name.rpartition(".")[0] for name, p in root.named_parameters() if p.grad is not None and p.grad.any()}
    return sorted(alive - {""})


def config(kind: str, network: Network) -> AdapterConfig:
    # A share of 1, because a single entry of a small tensor may be dead behind a ReLU.
    options = {name: value for name, value in {"rank": 1, "share": 1.0}.items() if name in get_kind(kind).fields}
    if not get_kind(kind).on_weights:
        return get_kind(kind).config(**({"every": 1} if kind == "stereo" else {}))
    paths = dict(build(network).named_modules())
    fits = [p for p in live_layers(network) if get_kind(kind).module.groups(paths[p])]
    if not fits:
        pytest.skip(f"{network.name} has no parameters that {kind} fits")
    return get_kind(kind).config(target=fits, **options)


@every_network
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_kind_starts_at_the_base_trains_and_merges(kind: str, network: Network) -> None:
    with torch.no_grad():
        expected = run(build(network).requires_grad_(False), network)  # torch's linear rounds by that flag
    model = lowpeft.adapt(build(network), config(kind, network))
    with torch.no_grad():
        assert torch.equal(run(model, network), expected)
    if network.name not in DEAD:
        lowpeft.check_trainable(model, batch(network)[: 1 if network.name in ONE_BY_ONE else 2])
    randomise_adapters(model, std=0.05)
    with torch.no_grad():
        adapted = run(model, network)
        change = (adapted - expected).norm()
        lowpeft.merge(model)
        assert (run(model, network) - adapted).norm() <= 1e-5 * change


@every_network
@pytest.mark.parametrize("kind", FEATURES)
def test_a_feature_kind_starts_at_the_base_and_trains_or_is_refused_before_anything_is_touched(
    kind: str, network: Network
) -> None:
    root = build(network)
    with torch.no_grad():
        expected = run(build(network).requires_grad_(False), network)  # torch's linear rounds by that flag
    try:
        model = lowpeft.adapt(root, config(kind, network))
    except PlanError as error:
        pytest.skip(str(error).splitlines()[0][:150])
    with torch.no_grad():
        assert torch.equal(run(model, network), expected)
    if network.name in DEAD:
        return
    views = batch(network).split(1)
    one_by_one = isinstance(model, StereoModel) or network.name in ONE_BY_ONE
    inputs = views[: 2 if isinstance(model, StereoModel) else 1] if one_by_one else (batch(network),)
    lowpeft.check_trainable(model, *inputs)
