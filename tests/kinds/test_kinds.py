"""DoRA, SSF, VeRA and Convpass: their formulas, counts, starts, and merges, on every sort of layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import (
    AdaLoRAConfig,
    CoLoRAConfig,
    ConvpassConfig,
    DoRAConfig,
    Features,
    FishConfig,
    IA3Config,
    Layer,
    Layout,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    OFTConfig,
    PlanError,
    SSFConfig,
    VeRAConfig,
)
from lowpeft.core.planning.choosing import layer_of
from lowpeft.kinds import Convpass, DoRA, VeRA
from lowpeft.kinds.vera import VeRAMatrices
from reference import kinds as reference
from states import randomise_adapters
from tiers import by_default
from zoo import Holder

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Conv2d(6, 8, 1),
    "conv": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "reflect": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
    "dilation": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "stride": lambda: nn.Conv2d(6, 8, 3, stride=2),
    "groups": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "no bias": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1),
    "transposed groups": lambda: nn.ConvTranspose2d(6, 8, 3, groups=2),
    "transposed depthwise": lambda: nn.ConvTranspose2d(6, 6, 3, groups=6),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.GroupNorm(2, 6),
    "batch norm": lambda: nn.BatchNorm2d(6),
    "instance norm": lambda: nn.InstanceNorm2d(6, affine=True),
}
CONFIGS = {"dora": DoRAConfig(target="layer", rank=1), "vera": VeRAConfig(target="layer", rank=5)}
SSF = SSFConfig(target="layer")

every_layer = pytest.mark.parametrize("name", LAYERS)


def holder(name: str) -> nn.Module:
    torch.manual_seed(4)
    return Holder({**LAYERS, **NORMS}[name]()).double().eval()


def geometry(layer: nn.Module) -> dict[str, int]:
    return {"transposed": isinstance(layer, nn.ConvTranspose2d), "groups": getattr(layer, "groups", 1)}


X = torch.rand(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tensors_of(model: nn.Module, key: str) -> dict[str, Tensor]:
    state = lowpeft.adapter_state_dict(model)
    return {k.removeprefix(f"layer.{key}."): v for k, v in state.items() if k.startswith(f"layer.{key}.")}


# --- Formulas --------------------------------------------------------------------------------------------------------


@every_layer
@torch.no_grad()
def test_rows_are_output_channels_and_go_back(name: str) -> None:
    layer = LAYERS[name]()
    described = layer_of(layer, ("weight",))
    plain = torch.stack(reference.rows(layer.weight, **geometry(layer)))
    assert described.matrix_shape == plain.shape
    assert torch.equal(described.rows(layer.weight), plain)
    assert torch.equal(described.from_rows(plain, "weight"), layer.weight)


@every_layer
@torch.no_grad()
def test_dora_is_its_formula(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(holder(name), DoRAConfig(target="layer", rank=1, alpha=3)), std=0.3)
    layer = model.layer
    wanted = reference.dora(layer._parameters["weight"], tensors_of(model, "dora_weight"), 3.0, **geometry(layer))
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)


@every_layer
@torch.no_grad()
def test_vera_is_its_formula(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(holder(name), VeRAConfig(target=["first", "layer"], rank=5)), std=0.3)
    layer, state = model.layer, lowpeft.adapter_state_dict(model)
    shared = (state["vera_root.a"], state["vera_root.b"])
    wanted = reference.vera(layer._parameters["weight"], tensors_of(model, "vera_weight"), *shared, **geometry(layer))
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*LAYERS, *NORMS])
@torch.no_grad()
def test_ssf_scales_and_shifts_the_output_of_a_layer_whatever_its_padding(name: str) -> None:
    plain, model = holder(name), randomise_adapters(lowpeft.adapt(holder(name), SSF), std=0.3)
    bias = plain.layer.bias is not None
    weights = tensors_of(model, "ssf_weight_bias" if bias else "ssf_weight")
    assert weights.keys() == ({"scale", "shift"} if bias else {"scale"})
    torch.testing.assert_close(model(X), reference.ssf(plain(X), weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC, Layout.NLC, Layout.LNC], ids=str)
@torch.no_grad()
def test_convpass_is_its_formula(layout: Layout) -> None:
    adapter = Convpass(6, ConvpassConfig(hidden=3, scale=0.7)).double().eval()
    for parameter in adapter.parameters():
        parameter.normal_(std=0.5)
    rows = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    values = {
        Layout.NCHW: rows.permute(0, 3, 1, 2),
        Layout.NHWC: rows,
        Layout.NLC: rows.flatten(1, 2),
        Layout.LNC: rows.flatten(1, 2).transpose(0, 1),
    }[layout]
    features = Features(values, layout, (4, 5))
    found = adapter.delta(features)
    wanted = features.from_rows(reference.convpass(rows, adapter.state_dict(), 0.7))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# --- Counts ----------------------------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts_are_those_of_the_formulas() -> None:
    layer = Layer(shapes=(("weight", (180, 60, 3, 3)),))
    assert count(DoRA(layer, DoRAConfig(rank=8))) == 8 * (180 + 540) + 180
    assert count(VeRA(layer, VeRAConfig(rank=256))) == 180 + 256
    assert count(Convpass(180, ConvpassConfig())) == 17 * 180 + 592
    plan = lowpeft.plan(holder("conv"), SSFConfig(target="**"))
    assert plan.parameters == 2 * 6 + 2 * 8


def test_the_shared_matrices_of_vera_are_as_large_as_the_largest_layer_and_follow_the_seed() -> None:
    model = lowpeft.adapt(holder("conv"), VeRAConfig(target="**", rank=5, seed=3))
    state = lowpeft.adapter_state_dict(model)
    assert state["vera_root.a"].shape == (5, 54)
    assert state["vera_root.b"].shape == (8, 5)
    assert state["vera_root.a"].abs().max() <= (6 / 54) ** 0.5
    again = VeRAMatrices((8, 54), VeRAConfig(rank=5, seed=3))
    other = VeRAMatrices((8, 54), VeRAConfig(rank=5, seed=4))
    assert torch.equal(again.a.double(), state["vera_root.a"])
    assert not torch.equal(other.a, again.a)


# --- Starts, gradients, merges ---------------------------------------------------------------------------------------

EVERY_KIND = {
    "lora": LoRAConfig(target="layer", rank=1),
    "dora": DoRAConfig(target="layer", rank=1),
    "ssf": SSF,
    "vera": VeRAConfig(target="layer", rank=5),
    "loha": LoHaConfig(target="layer", rank=2),
    "lokr": LoKrConfig(target="layer", rank=1),
    "lokr whole": LoKrConfig(target="layer", rank=6),
    "oft": OFTConfig(target="layer", block=9),
    "oft shared": OFTConfig(target="layer", block=4, share=True),
    "adalora": AdaLoRAConfig(target="layer", rank=1),
    "colora": CoLoRAConfig(target="layer", rank=1),
    "ia3": IA3Config(target="layer"),
    "ia3 on inputs": IA3Config(target="layer", side="input"),
    "fish": FishConfig(target="layer", share=0.3),
}
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)


# How a layer's weight is seen as a matrix is the code of all kinds: each kind takes the plainest layer and the most
# involved one by default, and one kind takes every layer.
@pytest.mark.parametrize(
    ("kind", "name"),
    by_default(
        [(k, n) for k in EVERY_KIND for n in LAYERS if k == "lora" or n in ("conv", "transposed groups")],
        [(k, n) for k in EVERY_KIND for n in LAYERS],
    ),
)
@torch.no_grad()
def test_a_new_adapter_changes_no_bit_a_merged_one_hardly_any(kind: str, name: str) -> None:
    base = holder(name).float()
    x = X.float()
    expected = base(x)
    model = lowpeft.adapt(holder(name).float(), EVERY_KIND[kind])
    assert torch.equal(model(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), base(x))
    adapted = randomise_adapters(model, std=0.5)(x)
    change = (adapted - expected).norm()
    assert change > 0.05 * expected.norm()
    report = lowpeft.merge(model)
    assert report.kept == ()
    assert (model(x) - adapted).norm() <= 1e-5 * change


@every_kind
def test_every_tensor_is_trained(kind: str) -> None:
    for name in LAYERS:
        lowpeft.check_trainable(lowpeft.adapt(holder(name).float(), EVERY_KIND[kind]), X.float())


@pytest.mark.parametrize("detach", [True, False])
def test_doras_gradients_are_those_of_its_formula(detach: bool) -> None:
    """With G = dL/dW': dm = G·v̂; through the direction (m/n) G, less its part along v̂ where the norm is not held."""
    layer = Layer(shapes=(("weight", (4, 7)),))
    adapter = DoRA(layer, DoRAConfig(rank=2, detach_norm=detach)).double()
    generator = torch.Generator().manual_seed(0)
    weight, g = (torch.randn(4, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    (adapter.change({"weight": weight})["weight"] * g).sum().backward()
    with torch.no_grad():
        v = weight + adapter.b @ adapter.a
        n, length = v.norm(dim=1), weight.norm(dim=1)
        unit = v / n[:, None]
        along = (g * unit).sum(1)
        dv = ((1 + adapter.magnitude) * length / n)[:, None] * (g if detach else g - along[:, None] * unit)
    torch.testing.assert_close(adapter.b.grad, dv @ adapter.a.detach().T)
    torch.testing.assert_close(adapter.a.grad, adapter.b.detach().T @ dv)
    torch.testing.assert_close(adapter.magnitude.grad, along * length)


def test_an_output_of_zero_weights_is_trained_by_dora_like_by_lora_without_nan() -> None:
    model = holder("conv").float()
    with torch.no_grad():
        model.layer.weight[3].zero_()
        expected = model(X.float())
    lowpeft.adapt(model, DoRAConfig(target="layer", rank=1))
    with torch.no_grad():
        assert torch.equal(model(X.float()), expected)
    model.train()(X.float()).square().mean().backward()
    gradients = {n: p.grad for n, p in lowpeft.adapter_parameters(model)}
    assert all(g.isfinite().all() for g in gradients.values())
    assert next(g for n, g in gradients.items() if n.endswith(".b"))[3].any()
    randomise_adapters(model)
    with torch.no_grad():
        assert model.layer.weight[3].any()
        assert model.layer.weight.isfinite().all()


@torch.no_grad()
def test_ssf_on_a_layer_without_a_bias_adds_no_key_when_merged() -> None:
    model = randomise_adapters(lowpeft.adapt(holder("no bias"), SSF))
    lowpeft.merge(model)
    assert model.state_dict().keys() == holder("no bias").state_dict().keys()


def test_ssf_and_dora_take_the_fused_projection_of_an_attention() -> None:
    model = nn.Sequential(nn.MultiheadAttention(6, 2)).eval()
    plan = lowpeft.plan(Holder(model), SSFConfig(target="**"))
    assert ("in_proj_weight", "in_proj_bias") in [s.attachment.tensors for s in plan.sites]
    assert lowpeft.plan(Holder(model), DoRAConfig(target="**.in_proj_weight", rank=2)).sites[0].layer.matrix_shape == (
        18,
        6,
    )


def test_a_parameter_of_a_group_is_named_by_its_own_path_too() -> None:
    plan = lowpeft.plan(holder("conv"), SSFConfig(target="layer.bias"))
    assert [s.attachment.tensors for s in plan.sites] == [("weight", "bias")]


BAD = [
    (DoRAConfig, {"rank": 0}),
    (DoRAConfig, {"alpha": -1}),
    (VeRAConfig, {"rank": 0}),
    (VeRAConfig, {"start": 0}),
    (VeRAConfig, {"seed": -1}),
    (IA3Config, {"side": "both"}),
    (IA3Config, {"rows": "q,x"}),
    (FishConfig, {"share": 0}),
    (FishConfig, {"share": 1.5}),
    (FishConfig, {"share": 0.5, "cap": 0.1}),
    (FishConfig, {"cap": 0}),
    (FishConfig, {"cap": 2.0}),
    (FishConfig, {"entries": 0}),
    (FishConfig, {"entries": 1.5}),
    (ConvpassConfig, {"hidden": 0}),
    (ConvpassConfig, {"scale": float("nan")}),
    (ConvpassConfig, {"dropout": 1.0}),
    (ConvpassConfig, {"dropout": -0.1}),
    (ConvpassConfig, {"kernel_init": "eye"}),
    (ConvpassConfig, {"beside": "norm"}),
]


@pytest.mark.parametrize(("config", "fields"), BAD)
def test_a_value_out_of_range_is_refused(config: type, fields: dict[str, object]) -> None:
    with pytest.raises(PlanError, match=next(iter(fields))):
        config(**fields)


def test_dora_refuses_a_rank_that_a_weight_cannot_have() -> None:
    with pytest.raises(PlanError, match="rank 9"):
        lowpeft.plan(holder("conv"), DoRAConfig(target="layer", rank=9))


def test_convpass_starts_from_an_identity_kernel_if_asked() -> None:
    adapter = Convpass(6, ConvpassConfig(hidden=3, kernel_init="identity"))
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(adapter.conv(x), x)
    assert not adapter.up.weight.any()
