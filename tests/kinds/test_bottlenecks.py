"""Houlsby's, Pfeiffer's and AdaptFormer's bottlenecks: formulas, places, counts, starts, training, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import AdaptFormerConfig, ConvpassConfig, Features, HoulsbyConfig, Layout, PfeifferConfig, PlanError
from lowpeft.kinds import (
    AdapterConfig,
    AdaptFormer,
    Convpass,
    FeatureAdapter,
    Houlsby,
    Pfeiffer,
    SpatialAdapter,
    SpatialConfig,
)
from reference import bottlenecks as reference
from zoo import build, image

CHANNELS, HIDDEN, SCALE = 6, 3, 0.7

FORMULAS: dict[str, tuple[type[FeatureAdapter], AdapterConfig, Callable[[Tensor, Any], Tensor]]] = {
    "houlsby": (Houlsby, HoulsbyConfig(hidden=HIDDEN), reference.houlsby),
    "pfeiffer": (Pfeiffer, PfeifferConfig(hidden=HIDDEN), reference.pfeiffer),
    "adaptformer": (
        AdaptFormer,
        AdaptFormerConfig(hidden=HIDDEN, scale=SCALE, learn_scale=False),
        lambda x, w: reference.adaptformer(x, w, SCALE),
    ),
    "adaptformer, trained scale": (
        AdaptFormer,
        AdaptFormerConfig(hidden=HIDDEN),
        lambda x, w: reference.adaptformer(x, w, float(w["scale"])),
    ),
}
CONFIGS = {"houlsby": HoulsbyConfig(), "pfeiffer": PfeifferConfig(), "adaptformer": AdaptFormerConfig()}
every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def laid_out(rows: Tensor, layout: Layout) -> Tensor:
    """(N,H,W,C) in a layout."""
    return {
        Layout.NCHW: rows.permute(0, 3, 1, 2),
        Layout.NHWC: rows,
        Layout.NLC: rows.flatten(1, 2),
        Layout.LNC: rows.flatten(1, 2).transpose(0, 1),
    }[layout]


def features(rows: Tensor, layout: Layout = Layout.NHWC) -> Features:
    return Features(laid_out(rows, layout), layout, (rows.shape[1], rows.shape[2]))


def random_rows(dtype: torch.dtype = torch.float64) -> Tensor:
    """A rectangle of random positions, always the same."""
    return torch.randn(2, 4, 5, CHANNELS, dtype=dtype, generator=torch.Generator().manual_seed(2))


# --- Formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC, Layout.NLC, Layout.LNC], ids=str)
@pytest.mark.parametrize("name", FORMULAS)
@torch.no_grad()
def test_a_bottleneck_is_its_formula(name: str, layout: Layout) -> None:
    torch.manual_seed(0)
    cls, config, formula = FORMULAS[name]
    adapter = cls(CHANNELS, config).double().eval()  # type: ignore[call-arg]
    for parameter in adapter.parameters():
        parameter.normal_(std=0.5)
    rows = random_rows()
    wanted = laid_out(formula(rows, adapter.state_dict()), layout)
    torch.testing.assert_close(adapter.delta(features(rows, layout)), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_adaptformer_drops_hidden_values_in_training_only() -> None:
    adapter = AdaptFormer(CHANNELS, AdaptFormerConfig(hidden=1000, dropout=0.4, scale=1.0)).double()
    adapter.down.weight.zero_()
    adapter.down.bias.fill_(1.0)
    adapter.up.weight.fill_(1.0)
    torch.manual_seed(0)
    kept = adapter.train().delta(features(random_rows())) * 0.6  # the others are raised by 1 / (1 - 0.4)
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-9)
    assert kept[..., 0].mean() == pytest.approx(600, abs=15)
    assert (adapter.eval().delta(features(random_rows())) == 1000).all()


@torch.no_grad()
def test_adaptformer_without_dropout_trains_as_it_evaluates() -> None:
    adapter = AdaptFormer(CHANNELS, AdaptFormerConfig(dropout=0))
    adapter.up.weight.normal_()
    x = features(random_rows(torch.float32))
    assert torch.equal(adapter.train().delta(x), adapter.eval().delta(x))


# --- Places and counts -----------------------------------------------------------------------------------------------


def ports(config: AdapterConfig, network: str = "swinir") -> dict[str, int]:
    """Number of sites by port."""
    found: dict[str, int] = {}
    for site in lowpeft.plan(build(network), config).sites:
        port = site.attachment.port or site.attachment.source
        found[port] = found.get(port, 0) + 1
    return found


def test_each_kind_goes_to_its_places_once_per_block() -> None:
    blocks = ports(PfeifferConfig())["mlp"]
    assert blocks > 1
    assert ports(HoulsbyConfig()) == {"attention": blocks, "mlp": blocks}
    assert ports(PfeifferConfig()) == {"mlp": blocks}
    assert ports(AdaptFormerConfig()) == {"parallel": blocks}
    assert ports(AdaptFormerConfig(input="raw")) == {"parallel_raw": blocks}


@pytest.mark.parametrize("config", [HoulsbyConfig(), PfeifferConfig()], ids=lambda c: c.kind)
def test_a_block_of_one_branch_gets_one_bottleneck(config: AdapterConfig) -> None:
    assert ports(config, "rcan") == ports(SpatialConfig(), "rcan")


@pytest.mark.parametrize("target", [None, "stage=1"])
@pytest.mark.parametrize("network", ["rcan", "span"])
def test_a_family_without_the_raw_place_says_what_to_set(network: str, target: str | None) -> None:
    with pytest.raises(PlanError, match=r"no place 'parallel_raw'; it has .* Set input=\"normed\""):
        lowpeft.plan(build(network), AdaptFormerConfig(input="raw", target=target))
    assert lowpeft.plan(build(network), AdaptFormerConfig()).sites


@torch.no_grad()
def test_the_raw_input_is_the_stream_before_the_norm_and_the_other_is_after_it() -> None:
    """The norm takes away the mean over the channels: an offset of all channels is seen by the raw input alone."""
    network = build("swinir")
    block = network.layers[0].residual_group.blocks[0]
    seen: dict[str, Tensor] = {}
    block.norm2.register_forward_hook(lambda module, args, out: seen.update(raw=args[0], normed=out))
    for choice in ("raw", "normed"):
        model = lowpeft.adapt(network, AdaptFormerConfig(input=choice), name=choice)
        read: list[Tensor] = []
        adapter = next(m for m in model.modules() if isinstance(m, AdaptFormer))
        handle = adapter.down.register_forward_hook(lambda module, args, out, read=read: read.append(args[0]))
        model(image("swinir"))
        handle.remove()
        lowpeft.restore(model, name=choice)
        torch.testing.assert_close(read[0], seen[choice])
    assert not torch.allclose(seen["raw"], seen["normed"])


def count(adapter: nn.Module) -> int:
    return sum(p.numel() for p in adapter.parameters())


@pytest.mark.parametrize(("channels", "hidden"), [(180, 16), (48, 16), (60, 5), (6, 8)])
def test_counts_are_those_of_the_formula(channels: int, hidden: int) -> None:
    wanted = 2 * channels * hidden + hidden + channels
    assert count(Houlsby(channels, HoulsbyConfig(hidden=hidden))) == wanted
    assert count(Pfeiffer(channels, PfeifferConfig(hidden=hidden))) == wanted
    assert count(AdaptFormer(channels, AdaptFormerConfig(hidden=hidden, learn_scale=False))) == wanted
    assert count(AdaptFormer(channels, AdaptFormerConfig(hidden=hidden))) == wanted + 1


@every_kind
def test_a_budget_chooses_the_hidden_channels(config: AdapterConfig) -> None:
    network = build("swinir")
    bound = lowpeft.plan(network, config.resized(3)).parameters  # type: ignore[attr-defined]
    plan = lowpeft.plan(network, config, budget=bound)
    assert plan.parameters == bound
    assert {site.config.hidden for site in plan.sites} == {3}  # type: ignore[attr-defined]


# --- Starts and training ---------------------------------------------------------------------------------------------


@every_kind
@torch.no_grad()
def test_a_new_adapter_changes_no_bit(config: AdapterConfig) -> None:
    x = image("swinir")
    base, model = build("swinir"), lowpeft.adapt(build("swinir"), config)
    assert torch.equal(model(x), base(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), base(x))


@every_kind
@torch.no_grad()
def test_a_delta_under_autocast_keeps_its_half_precision(config: AdapterConfig) -> None:
    adapter = FORMULAS[config.kind][0](CHANNELS, config)  # type: ignore[call-arg]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adapter.delta(features(random_rows(torch.float32))).dtype == torch.bfloat16


def test_first_weights_are_those_of_the_papers() -> None:
    torch.manual_seed(0)
    houlsby = Houlsby(200, HoulsbyConfig(hidden=200)).down.weight
    assert houlsby.abs().max() <= 0.02
    assert houlsby.std().item() == pytest.approx(0.0088, rel=0.02)  # 0.01 without the tails beyond two deviations
    pfeiffer = Pfeiffer(200, PfeifferConfig(hidden=200)).down.weight
    assert pfeiffer.std().item() == pytest.approx(0.02, rel=0.02)
    adaptformer = AdaptFormer(200, AdaptFormerConfig(hidden=200)).down.weight
    bound = 200**-0.5  # Kaiming-uniform with a = √5
    assert 0.99 * bound < adaptformer.abs().max() <= bound


@every_kind
def test_the_wide_end_is_trained_in_the_first_step_and_all_the_rest_in_the_second(config: AdapterConfig) -> None:
    model = lowpeft.adapt(build("swinir"), config)
    named = dict(lowpeft.adapter_parameters(model))
    new = {name: p.detach().clone() for name, p in named.items()}
    optimiser = torch.optim.AdamW(named.values(), lr=1e-2, weight_decay=0.0)
    for step in range(2):
        optimiser.zero_grad()
        out = model.train()(image("swinir"))
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(step))).mean().backward()
        optimiser.step()
        still = {name for name, p in named.items() if torch.equal(p, new[name])}
        assert still == ({name for name in named if ".up." not in name} if step == 0 else set())
    lowpeft.check_trainable(model)


def test_a_fixed_scale_is_no_parameter_and_a_trained_one_gets_no_first_gradient() -> None:
    fixed = AdaptFormer(CHANNELS, AdaptFormerConfig(learn_scale=False))
    assert "scale" not in dict(fixed.named_parameters())
    trained = AdaptFormer(CHANNELS, AdaptFormerConfig(scale=0.3)).eval()
    assert trained.scale.item() == pytest.approx(0.3)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1)
    x = features(random_rows(torch.float32))
    for step in range(2):
        optimiser.zero_grad()
        trained.delta(x).sum().backward()
        assert bool(trained.scale.grad) == (step > 0)
        optimiser.step()


# --- Refusals and files ----------------------------------------------------------------------------------------------

BAD = [
    (HoulsbyConfig, {"hidden": 0}),
    (PfeifferConfig, {"hidden": 2.0}),
    (AdaptFormerConfig, {"hidden": -1}),
    (AdaptFormerConfig, {"scale": 0}),
    (AdaptFormerConfig, {"scale": float("inf")}),
    (AdaptFormerConfig, {"learn_scale": 1}),
    (AdaptFormerConfig, {"dropout": 1}),
    (AdaptFormerConfig, {"dropout": -0.1}),
    (AdaptFormerConfig, {"dropout": True}),
    (AdaptFormerConfig, {"dropout": float("nan")}),
    (AdaptFormerConfig, {"input": "norm"}),
    (ConvpassConfig, {"dropout": False}),
]


@pytest.mark.parametrize(("config", "fields"), BAD)
def test_a_value_out_of_range_is_refused_by_name(config: type, fields: dict[str, object]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(PlanError, match=name) as caught:
        config(**fields)
    assert repr(value) in str(caught.value)


def test_all_bad_values_are_listed() -> None:
    with pytest.raises(PlanError) as caught:
        AdaptFormerConfig(scale=-1, dropout=2, input="x")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3


@torch.no_grad()
def test_a_trained_scale_is_in_the_file(tmp_path: Path) -> None:
    model = lowpeft.adapt(build("swinir"), AdaptFormerConfig())
    for _, parameter in lowpeft.adapter_parameters(model):
        parameter.normal_()
    loaded = lowpeft.load_adapter(build("swinir"), lowpeft.save_adapter(model, tmp_path))
    assert torch.equal(loaded(image("swinir")), model(image("swinir")))


def test_the_tensors_of_saved_adapters_keep_their_names() -> None:
    names = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert set(SpatialAdapter(CHANNELS, SpatialConfig()).state_dict()) == names
    layers = ("down", "up", "conv")
    names = {f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "bias")}
    assert set(Convpass(CHANNELS, ConvpassConfig()).state_dict()) == names
