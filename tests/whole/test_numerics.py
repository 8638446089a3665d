"""Numbers: adapters and adapted blocks against the plain re-implementations in `reference/`."""

from __future__ import annotations

import copy
import importlib
import math
import re

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Layout, Plan, Recipe, Site, SpatialConfig, StereoConfig, StereoModel
from lowpeft.backbones.networks.edt_parts import shift_mask
from lowpeft.backbones.swin2sr import swin2sr_from_transformers
from lowpeft.core.attachment.settings import Setting
from lowpeft.core.attachment.slots import pieces_in, switches_of
from lowpeft.core.planning.plan import structure_of
from lowpeft.kinds import Attachment, SpatialAdapter, StereoAdapter
from lowpeft.ports.base import SLOT
from lowpeft.ports.facts import Facts
from lowpeft.ports.layouts import Features
from reference import adapters, blocks
from states import randomise_adapters
from tiers import by_default
from zoo import Network

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

ADDING = importlib.import_module("lowpeft.core.attachment.adding")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
HAT, SWINIR, SWIN2SR, SWIN2SR_HF, TIMM, TIMM_V2, EDT = (
    next(n for n in zoo.FAMILIES if n.name == name)
    for name in ("hat", "swinir", "swin2sr", "swin2sr_hf", "timm_swin", "timm_swin_v2", "edt")
)

every_layout = pytest.mark.parametrize("layout", [layout for layout in Layout if layout.counts_images], ids=str)


def from_rows(rows: Tensor, layout: Layout) -> Tensor:
    """(N,H,W,C) in another layout."""
    if layout is Layout.NCHW:
        return rows.permute(0, 3, 1, 2)
    if layout is Layout.NHWC:
        return rows
    tokens = rows.flatten(1, 2)
    return tokens.transpose(0, 1) if layout is Layout.LNC else tokens


def randomise(model: nn.Module, std: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model


def stereo_adapter(channels: int, *, logit_scale: float = 1.5, dtype: torch.dtype = torch.float32) -> StereoAdapter:
    return randomise(StereoAdapter(channels, StereoConfig(logit_scale=logit_scale)).to(dtype))


def expected_stereo(rows: Tensor, adapter: StereoAdapter, scale: float) -> Tensor:
    """N pairs, (2N,H,W,C) with left and right as neighbours, after the reference's adapter."""
    pairs = [
        adapters.stereo(rows[2 * i].permute(2, 0, 1), rows[2 * i + 1].permute(2, 0, 1), adapter.state_dict(), scale)
        for i in range(len(rows) // 2)
    ]
    images = [view for pair in pairs for view in pair]
    return torch.stack([image.permute(1, 2, 0) for image in images])


# --- The adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@every_layout
@torch.no_grad()
def test_the_stereo_adapter_is_its_formula(layout: Layout, dtype: torch.dtype) -> None:
    adapter = stereo_adapter(6, dtype=dtype)
    rows = torch.randn(4, 3, 5, 6, dtype=dtype)
    features = from_rows(rows, layout)
    found = features + adapter.delta(Features(features, layout, (3, 5), views=2))
    wanted = from_rows(expected_stereo(rows, adapter, 1.5), layout)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("logit_scale", [0.25, 1.5, 4.0])
@torch.no_grad()
def test_logit_scale_multiplies_the_logits(logit_scale: float) -> None:
    adapter = stereo_adapter(6, logit_scale=logit_scale, dtype=torch.float64)
    rows = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    found = rows + adapter.delta(Features(rows, Layout.NHWC, (3, 5), views=2))
    torch.testing.assert_close(found, expected_stereo(rows, adapter, logit_scale), rtol=0, atol=1e-10)
    assert not torch.allclose(found, expected_stereo(rows, adapter, 1 / logit_scale), rtol=0, atol=1e-4)


def test_the_default_logit_scale_is_1_5() -> None:
    assert StereoConfig().logit_scale == 1.5
    assert lowpeft.load_recipe("stereo").adapters[1] == StereoConfig(every=2, logit_scale=1.5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@every_layout
@torch.no_grad()
def test_the_spatial_adapter_is_its_formula(layout: Layout, dtype: torch.dtype) -> None:
    adapter = randomise(SpatialAdapter(8, SpatialConfig(reduction=4)).to(dtype))
    rows = torch.randn(2, 3, 5, 8, dtype=dtype)
    found = adapter.delta(Features(from_rows(rows, layout), layout, (3, 5)))
    wanted = from_rows(adapters.spatial_delta(rows, adapter.state_dict()), layout)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE[dtype])


def test_a_spatial_adapter_of_180_channels_has_16425_parameters() -> None:
    assert sum(p.numel() for p in SpatialAdapter(180, SpatialConfig()).parameters()) == 16_425


def test_a_stereo_adapter_of_180_channels_has_131400_parameters() -> None:
    assert sum(p.numel() for p in StereoAdapter(180, StereoConfig()).parameters()) == 131_400


def test_a_spatial_adapter_starts_truncated_normal_and_zero() -> None:
    adapter = SpatialAdapter(180, SpatialConfig())
    assert adapter.fc1.weight.shape == (45, 180)
    assert adapter.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert adapter.fc1.weight.mean().abs() < 1e-3
    assert not any(t.any() for t in (adapter.fc1.bias, adapter.fc2.weight, adapter.fc2.bias))


def test_a_stereo_adapter_starts_with_closed_gates_and_plain_norms() -> None:
    adapter = StereoAdapter(12, StereoConfig())
    assert not adapter.beta.any()
    assert not adapter.gamma.any()
    for norm in (adapter.norm_left, adapter.norm_right):
        assert norm.eps == 1e-6
        assert torch.equal(norm.weight, torch.ones(12))
        assert not norm.bias.any()
    weights = [adapter.query_left, adapter.query_right, adapter.value_left, adapter.value_right]
    assert all(layer.weight.any() and layer.bias is not None for layer in weights)
    assert len({tuple(layer.weight.flatten().tolist()) for layer in weights}) == 4


# --- Blocks ----------------------------------------------------------------------------------------------------------


def part_of(root: nn.Module, path: str) -> dict[str, Tensor]:
    """The tensors of one block without its adapters."""
    state = root.get_submodule(path).state_dict()
    return {key: value for key, value in state.items() if SLOT not in key.split(".")}


def adapter_of(root: nn.Module, path: str) -> dict[str, Tensor]:
    state = lowpeft.adapter_state_dict(root)
    return {re.split(r"\bspatial\w*\.", key)[-1]: value for key, value in state.items() if key.startswith(path + ".")}


def block_settings(block: nn.Module) -> dict[str, int]:
    def first(value: object) -> int:
        return value[0] if isinstance(value, (tuple, list)) else value

    heads = getattr(block, "num_heads", None) or block.attn.num_heads
    return {"window": first(block.window_size), "shift": first(block.shift_size), "heads": heads}


def spatial_network(network: Network, dtype: torch.dtype) -> nn.Module:
    root = lowpeft.adapt(network.build().to(dtype), SpatialConfig(placement="attention", reduction=2))
    return randomise_adapters(root, std=0.3).to(dtype)


BLOCKS = "layers.0.residual_group.blocks"
BLOCKS_HF = "swin2sr.encoder.stages.0.layers"
BLOCKS_EDT = f"body.{BLOCKS}"
TIMM_BLOCKS = "layers.0.blocks"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_an_adapted_hat_block_is_its_description(number: int, dtype: torch.dtype, tolerance: float) -> None:
    root = spatial_network(HAT, dtype)
    path = f"{BLOCKS}.{number}"
    block = root.get_submodule(path)
    assert (block.shift_size > 0) == (number == 1)
    tokens = torch.randn(1, 96, 12, dtype=dtype) / 4
    mask = root.calculate_mask((8, 12), dtype)
    found = block(tokens, (8, 12), root.relative_position_index_SA, mask)
    settings = {**block_settings(block), "conv_scale": 0.01}
    wanted = blocks.hybrid(tokens.view(8, 12, 12), part_of(root, path), adapter_of(root, path), **settings)
    torch.testing.assert_close(found.view(8, 12, 12), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("network", "reference"), [(SWINIR, blocks.pre_norm), (SWIN2SR, blocks.post_norm)], ids=["swinir", "swin2sr"]
)
@torch.no_grad()
def test_an_adapted_swinir_or_swin2sr_block_is_its_description(
    network: Network, reference: object, number: int
) -> None:
    root = spatial_network(network, torch.float32)
    path = f"{BLOCKS}.{number}"
    block = root.get_submodule(path)
    assert (block.shift_size > 0) == (number == 1)
    tokens = torch.randn(1, 96, 12)
    found = block(tokens, (8, 12)).view(8, 12, 12)
    wanted = reference(tokens.view(8, 12, 12), part_of(root, path), adapter_of(root, path), **block_settings(block))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_an_adapted_swin2sr_block_of_transformers_is_its_description(number: int) -> None:
    """In float32 only: its table of coordinates is computed in float32, whatever the network is."""
    root = spatial_network(SWIN2SR_HF, torch.float32)
    path = f"{BLOCKS_HF}.{number}"
    block = root.get_submodule(path)
    assert (block.shift_size > 0) == (number == 1)
    settings = {"window": block.window_size, "shift": block.shift_size, "heads": 2}
    weights = blocks.part(swin2sr_from_transformers(part_of(root, "")), f"{BLOCKS}.{number}")
    adapter = adapter_of(root, path)
    tokens = torch.randn(1, 96, 12)
    (found,) = block(tokens, (8, 12))
    wanted = blocks.post_norm(tokens.view(8, 12, 12), weights, adapter, **settings)
    torch.testing.assert_close(found.view(8, 12, 12), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("network", "reference"), [(TIMM, blocks.pre_norm), (TIMM_V2, blocks.post_norm)], ids=["v1", "v2"]
)
@torch.no_grad()
def test_an_adapted_timm_block_is_its_description(network: Network, reference: object, number: int) -> None:
    root = spatial_network(network, torch.float32)
    path = f"{TIMM_BLOCKS}.{number}"
    block = root.get_submodule(path)
    assert (block_settings(block)["shift"] > 0) == (number == 1)
    image = torch.randn(1, 16, 16, 8)  # the size that the first stage's masks were made for
    wanted = reference(image[0], part_of(root, path), adapter_of(root, path), **block_settings(block))
    torch.testing.assert_close(block(image)[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("strength", by_default([1.0], [0.0, 1.0]))
@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_an_edt_block_is_its_description(number: int, strength: float, dtype: torch.dtype) -> None:
    root = randomise(spatial_network(EDT, dtype))
    lowpeft.set_strength(root, strength)
    path = f"{BLOCKS_EDT}.{number}"
    block = root.get_submodule(path)
    assert block.shifted == (number == 1)
    size, channels, window = (24, 48), 16, (6, 24)
    tokens = torch.randn(1, 24 * 48, channels, dtype=dtype)
    masks = (shift_mask(size, window, like=tokens), shift_mask(size, window[::-1], like=tokens))
    adapter = {name: strength * value for name, value in adapter_of(root, path).items()}
    wanted = blocks.enhanced(
        tokens.view(*size, channels), part_of(root, path), adapter, window=window, shifted=block.shifted, heads=2
    )
    found = block(tokens, size, masks).view(*size, channels)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE[dtype])


@torch.no_grad()
def test_a_whole_hat_with_adapters_is_one_with_its_blocks_rewritten() -> None:
    adapted = spatial_network(HAT, torch.float64)
    rewritten = copy.deepcopy(adapted)
    lowpeft.restore(rewritten)
    paths = [site.path for site in lowpeft.plan(rewritten, "spatial").sites]
    assert len(paths) == 8
    for path in paths:
        block, weights, adapter = rewritten.get_submodule(path), part_of(adapted, path), adapter_of(adapted, path)
        settings = {**block_settings(block), "conv_scale": block.conv_scale}

        def forward(
            x: Tensor,
            x_size: tuple[int, int],
            rpi_sa: Tensor,
            attn_mask: Tensor,
            weights: dict[str, Tensor] = weights,
            adapter: dict[str, Tensor] = adapter,
            settings: dict[str, float] = settings,
        ) -> Tensor:
            maps = x.view(len(x), *x_size, -1)
            return torch.stack([blocks.hybrid(m, weights, adapter, **settings) for m in maps]).flatten(1, 2)

        block.forward = forward
    x = torch.rand(1, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(adapted(x.clone()), rewritten(x.clone()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("network", [HAT, SWINIR, SWIN2SR, SWIN2SR_HF], ids=lambda n: n.name)
@torch.no_grad()
def test_the_stereo_adapter_sits_on_the_groups_convolution_before_the_shortcut(network: Network) -> None:
    model = randomise_adapters(lowpeft.wrap_stereo(network.build().double()), std=0.3)
    root = model.backbone
    stages = "swin2sr.encoder.stages" if network is SWIN2SR_HF else "layers"
    conv = root.get_submodule(f"{stages}.1.conv")
    x = torch.randn(2, 12, 4, 8, dtype=torch.float64)
    piece = next(pieces_in(conv._modules[SLOT]))
    plain = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    wanted = expected_stereo(plain.permute(0, 2, 3, 1), piece, 1.5).permute(0, 3, 1, 2)
    torch.testing.assert_close(conv(x), wanted, rtol=0, atol=1e-10)
    groups = [path for path, m in root.named_modules() if SLOT in m._modules]
    assert groups == [f"{stages}.1.conv", f"{stages}.3.conv"]


@torch.no_grad()
def test_the_stereo_adapter_of_edt_sits_on_the_groups_tokens_before_the_shortcut() -> None:
    model = randomise_adapters(lowpeft.wrap_stereo(EDT.build().double()), std=0.3)
    layer = model.backbone.body.layers[1]
    tokens = torch.randn(2, 24 * 24, 16, dtype=torch.float64)
    with lowpeft.disabled(model):
        plain = layer.residual_group(tokens, (24, 24))
    piece = next(pieces_in(layer.residual_group._modules[SLOT]))
    wanted = tokens + expected_stereo(plain.unflatten(1, (24, 24)), piece, 1.5).flatten(1, 2)
    torch.testing.assert_close(layer(tokens, (24, 24)), wanted, rtol=0, atol=1e-10)


# --- Bounded memory --------------------------------------------------------------------------------------------------


class OwnInput(nn.Module):
    """Returns the tensor that it was given."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x


class View(nn.Module):
    """Returns another tensor object on the memory that it was given."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x.view(x.shape)


class NewTensor(nn.Module):
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x * 1.5


class OneOfAList(nn.Module):
    """Returns a tensor out of the list that it was given."""

    def forward(self, xs: list[Tensor], size: tuple[int, int]) -> Tensor:
        return xs[0]


class Host(nn.Module):
    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.site = site
        self.weight = nn.Parameter(torch.zeros(1))


CHANNELS, SIZE = 6, (7, 5)


def hosted(site: nn.Module, layout: Layout) -> nn.Module:
    """A module with a random stereo adapter on its output, which lies in `layout`."""
    config = StereoConfig(target="site", every=1)
    attachment = Attachment(form="output", layout=layout, views=2)
    planned = Site(
        path="site",
        config=config,
        key="stereo",
        module=type(site).__name__,
        shape=(CHANNELS,),
        attachment=attachment,
        parameters=0,
    )
    recipe = Recipe(name="test", adapters=(config,))
    host = Host(site).eval()
    facts = Facts(architecture="Host", scale=None, channels=None)
    plan = Plan(
        model="Host",
        family=None,
        name="default",
        recipe=recipe,
        sites=(planned,),
        structure=structure_of(host),
        base_parameters=1,
        facts=facts,
    )
    model = lowpeft.inject(host, plan)
    assert isinstance(model, StereoModel)
    return randomise_adapters(model, std=0.3).backbone.site


def in_chunks(monkeypatch: pytest.MonkeyPatch, features: Tensor) -> list[int]:
    """Let two image rows fill a chunk; the list that comes back counts the calls of the path that goes by rows."""
    calls: list[int] = []
    real = ADDING._add_by_rows

    def counted(*args: object) -> Tensor:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(ADDING, "_add_by_rows", counted)
    monkeypatch.setattr(ADDING, "ROW_CHUNK_BYTES", 2 * features.numel() * features.element_size() // SIZE[0])
    return calls


@pytest.mark.parametrize("site", [OwnInput, View, NewTensor], ids=lambda c: c.__name__)
@every_layout
@torch.no_grad()
def test_going_by_rows_gives_what_all_rows_at_once_give(
    layout: Layout, site: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = hosted(site(), layout)
    features = from_rows(torch.randn(4, *SIZE, CHANNELS), layout)
    at_once = module(features.clone(), SIZE)
    calls = in_chunks(monkeypatch, features)
    by_rows = module(features.clone(), SIZE)
    assert calls == [1]
    assert by_rows.shape == at_once.shape
    torch.testing.assert_close(by_rows, at_once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("site", [OwnInput, View, NewTensor], ids=lambda c: c.__name__)
@every_layout
@torch.no_grad()
def test_going_by_rows_leaves_the_modules_input_as_it_was(
    layout: Layout, site: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = hosted(site(), layout)
    features = from_rows(torch.randn(2, *SIZE, CHANNELS), layout)
    before = features.clone()
    calls = in_chunks(monkeypatch, features)
    assert not torch.equal(module(features, SIZE), NewTensor()(features, SIZE))
    assert calls == [1]
    assert torch.equal(features, before)


@torch.no_grad()
def test_going_by_rows_leaves_an_input_inside_a_list_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    module = hosted(OneOfAList(), Layout.NHWC)
    features = torch.randn(2, *SIZE, CHANNELS)
    before = features.clone()
    calls = in_chunks(monkeypatch, features)
    module([features], SIZE)
    assert calls == [1]
    assert torch.equal(features, before)


@torch.no_grad()
def test_an_identity_with_a_stereo_adapter_leaves_its_input_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    module = hosted(nn.Identity(), Layout.NCHW)
    features = torch.randn(2, CHANNELS, *SIZE)
    before = features.clone()
    calls = in_chunks(monkeypatch, features)
    assert not torch.equal(module(features), before)
    assert calls == [1]
    assert torch.equal(features, before)


def test_gradients_never_go_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = hosted(NewTensor(), Layout.NHWC)
    features = torch.randn(2, *SIZE, CHANNELS)
    calls = in_chunks(monkeypatch, features)
    module(features, SIZE).sum().backward()
    assert calls == []
    assert all(p.grad is not None for p in module._modules[SLOT].parameters())


@torch.no_grad()
def test_strength_counts_when_going_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = hosted(NewTensor(), Layout.NCHW)
    features = torch.randn(2, CHANNELS, *SIZE)
    switches_of(module._modules[SLOT]).default = Setting({"default": 0.25})
    at_once = module(features, SIZE)
    calls = in_chunks(monkeypatch, features)
    torch.testing.assert_close(module(features, SIZE), at_once, rtol=0, atol=1e-6)
    assert calls == [1]


def test_the_adapters_scale_is_logit_scale_over_the_root_of_the_channels() -> None:
    assert StereoAdapter(9, StereoConfig(logit_scale=1.5)).scale == pytest.approx(1.5 / math.sqrt(9), rel=1e-12)


def test_an_adapter_on_a_module_without_parameters_takes_the_dtype_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)).double()
    lowpeft.inject_spatial_adapters(model, "1", reduction=2)
    assert {p.dtype for _, p in lowpeft.adapter_parameters(model)} == {torch.float64}
