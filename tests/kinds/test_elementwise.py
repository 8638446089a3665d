"""IA3, BitFit, norm tuning and FISH: formulas, counts, which parameters they take; SSF on attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_kinds import LAYERS, X, every_layer, geometry, holder
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import AdapterError, BitFitConfig, FishConfig, IA3Config, LoRAConfig, NormConfig, PlanError, SSFConfig
from lowpeft.core.planning.choosing import layer_of
from lowpeft.kinds import IA3, BitFit, Norm
from lowpeft.kinds.roles import is_norm
from reference import elementwise
from states import assert_same_tensors, randomise_adapters, tensors
from zoo import FAMILIES


def only(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the one adapter, by their last name."""
    return {name.rpartition(".")[2]: t for name, t in lowpeft.adapter_state_dict(model).items()}


# --- IA3 -------------------------------------------------------------------------------------------------------------


@every_layer
@torch.no_grad()
def test_ia3_on_outputs_is_its_formula(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(holder(name), IA3Config(target="layer")), std=0.3)
    layer, scale = model.layer, only(model)["scale"]
    wanted = elementwise.ia3_on_outputs(layer._parameters["weight"], scale, **geometry(layer))
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)
    scaled = holder(name)(X) * (1 + scale[:, None, None])
    torch.testing.assert_close(model(X), scaled, rtol=0, atol=1e-12)


@every_layer
@torch.no_grad()
def test_ia3_on_inputs_is_its_formula_and_leaves_the_bias(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(holder(name), IA3Config(target="layer", side="input")), std=0.3)
    layer, scale = model.layer, only(model)["scale"]
    wanted = elementwise.ia3_on_inputs(layer._parameters["weight"], scale, **geometry(layer))
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)
    plain = holder(name)
    scaled = plain.layer(plain.first(X) * (1 + scale[:, None, None]))
    torch.testing.assert_close(model(X), scaled, rtol=0, atol=1e-12)
    if plain.layer.bias is not None:
        assert torch.equal(layer.bias, plain.layer.bias)


@every_layer
def test_ia3_has_a_parameter_for_each_output_or_input(name: str) -> None:
    layer = LAYERS[name]()
    for side, channels in (("output", layer.out_channels), ("input", layer.in_channels)):
        plan = lowpeft.plan(holder(name), IA3Config(target="layer", side=side))
        assert plan.parameters == channels


class Fused(nn.Module):
    """Attention's fused projection of 5 channels, as a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(5, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x)


@pytest.mark.parametrize("side", ["output", "input"])
@torch.no_grad()
def test_ia3_on_keys_and_values_leaves_the_queries(side: str) -> None:
    torch.manual_seed(0)
    layer = Fused().double().qkv
    adapter = IA3(layer_of(layer, ("weight", "bias"), "qkv"), IA3Config(rows="k,v", side=side)).double()
    adapter.scale.normal_()
    assert len(adapter.scale) == (8 if side == "output" else 5)
    change = adapter.change({"weight": layer.weight, "bias": layer.bias})
    assert not change["weight"][:4].any()
    assert not change["bias"][:4].any()
    scale = adapter.scale[:, None] if side == "output" else adapter.scale
    torch.testing.assert_close(change["weight"][4:], layer.weight[4:] * scale, rtol=0, atol=1e-12)
    assert bool(change["bias"].any()) == (side == "output")


def test_ia3_without_a_target_adapts_every_matrix_and_no_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 3, 3, bias=False)).eval()
    plan = lowpeft.plan(network, IA3Config())
    assert [(s.path, s.attachment.tensors) for s in plan.sites] == [("0", ("weight", "bias")), ("2", ("weight",))]


# --- separate projections of nn.MultiheadAttention -------------------------------------------------------------------


class Attention(nn.Module):
    """Attention whose keys and values have their own widths, on the columns of an image."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(6, 1, kdim=3, vdim=4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.attn(*inputs_of(image), need_weights=False)[0] for image in x])


def inputs_of(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (L,6), keys (L,3) and values (L,4) from an image (3,H,W)."""
    positions = image.flatten(1).T
    return torch.cat([positions, positions * positions], dim=1), positions, torch.cat([positions, positions[:, :1]], 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["ssf", "ia3"])
@torch.no_grad()
def test_separate_projections_are_scaled_and_shifted_as_one(kind: str, bias: bool) -> None:
    torch.manual_seed(3)
    plain = Attention(bias=bias).double().eval()
    if bias:
        plain.attn.in_proj_bias.normal_()
    expected = [elementwise.attention(plain.attn, inputs_of(x), torch.zeros(18), None) for x in X]
    torch.testing.assert_close(plain(X), torch.stack(expected), rtol=0, atol=1e-12)  # the reference is torch's

    config = (SSFConfig if kind == "ssf" else IA3Config)(target="attn.q_proj_weight")
    model = lowpeft.adapt(lowpeft.describe(plain, scale=1, channels=3), config)
    before, state = plain(X), only(model)
    assert {name: len(t) for name, t in state.items()} == {"scale": 18} | (
        {"shift": 18} if kind == "ssf" and bias else {}
    )
    torch.testing.assert_close(before, torch.stack(expected), rtol=0, atol=1e-12)
    randomise_adapters(model, std=0.5)
    adapted = model(X)
    state = only(model)
    module = lowpeft.restore(model).attn
    wanted = [elementwise.attention(module, inputs_of(x), state["scale"], state.get("shift")) for x in X]
    torch.testing.assert_close(adapted, torch.stack(wanted), rtol=0, atol=1e-12)


@torch.no_grad()
def test_ia3_scales_the_inputs_of_separate_projections() -> None:
    torch.manual_seed(3)
    network = lowpeft.describe(Attention(bias=True).double().eval(), scale=1, channels=3)
    model = randomise_adapters(lowpeft.adapt(network, IA3Config(target="attn.q_proj_weight", side="input")), std=0.5)
    adapted, scale = model(X), only(model)["scale"]
    module = lowpeft.restore(model).attn
    parts = scale.split([6, 3, 4])
    for image, found in zip(X, adapted, strict=True):
        q, k, v = (x * (1 + part) for x, part in zip(inputs_of(image), parts, strict=True))
        torch.testing.assert_close(
            found, elementwise.attention(module, (q, k, v), torch.zeros(18), None), rtol=0, atol=1e-12
        )


def test_ssf_takes_no_table() -> None:
    class Tabled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.embedding = nn.Embedding(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.relative_position_bias_table.sum() + self.embedding.weight.sum()

    plan = lowpeft.plan(Tabled().eval(), SSFConfig(target="**"))
    assert [s.path for s in plan.sites] == ["conv"]
    for table in ("relative_position_bias_table", "embedding.weight"):
        with pytest.raises(PlanError):
            lowpeft.plan(Tabled().eval(), SSFConfig(target=table))


# --- which parameters are biases and norms ---------------------------------------------------------------------------


class LayerNorm2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.bias = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.zeros(1, 4, 1, 1))


class BiasFreeNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))


class SpectralNormConv(nn.Conv2d):
    pass


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))


class WindowAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.gamma = nn.Parameter(torch.zeros(4))


ROLES: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    # what is made, its biases, and its parameters as a norm
    "linear": (lambda: nn.Linear(4, 4), {"bias"}, set()),
    "linear without a bias": (lambda: nn.Linear(4, 4, bias=False), set(), set()),
    "convolution": (lambda: nn.Conv2d(4, 1, 1), {"bias"}, set()),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 4, 1), {"bias"}, set()),
    "attention": (lambda: nn.MultiheadAttention(4, 1, add_bias_kv=True), {"in_proj_bias"}, set()),
    "batch norm": (lambda: nn.BatchNorm2d(4), {"bias"}, {"weight", "bias"}),
    "norm without affine": (lambda: nn.InstanceNorm2d(4), set(), set()),
    "layer norm": (lambda: nn.LayerNorm(4), {"bias"}, {"weight", "bias"}),
    "layer norm of images": (lambda: nn.LayerNorm((2, 2)), {"bias"}, set()),
    "group norm": (lambda: nn.GroupNorm(2, 4), {"bias"}, {"weight", "bias"}),
    "RMS norm": (lambda: nn.RMSNorm(4), set(), {"weight"}),
    "own norm": (LayerNorm2d, {"bias"}, {"gamma", "bias"}),
    "own norm without a bias": (BiasFreeNorm, set(), {"weight"}),
    "convolution with spectral norm": (lambda: SpectralNormConv(4, 4, 1), {"bias"}, set()),
    "block with a norm": (PreNorm, set(), set()),
    "window attention": (WindowAttention, {"q_bias", "v_bias"}, set()),
    "embedding": (lambda: nn.Embedding(4, 4), set(), set()),
}


@pytest.mark.parametrize("what", ROLES)
def test_biases_and_norms_are_told_by_their_role(what: str) -> None:
    make, biases, norms = ROLES[what]
    module = make()
    assert BitFit.groups(module) == tuple((name,) for name in module._parameters if name in biases)
    assert Norm.groups(module) == tuple((name,) for name in module._parameters if name in norms)
    assert is_norm(module) == ("norm" in what and "with" not in what.replace("without", ""))


@pytest.mark.parametrize("name", ["hat", "swin2sr", "nafnet", "ipt", "restormer", "dat"])
def test_without_a_target_all_biases_and_norms_of_a_network_are_trained(name: str) -> None:
    network = next(n for n in FAMILIES if n.name == name)
    root = network.build()
    norms = [p for p, m in root.named_modules() if type(m).__name__.endswith(("Norm", "Norm2d"))]
    parameters = {path: p for path, p in root.named_parameters() if p.dim() == 1}
    biases = [path for path in parameters if path.endswith("bias")]
    plan = lowpeft.plan(root, BitFitConfig())
    assert sorted(t for site in plan.sites for t in site.tensors) == sorted(biases)
    plan = lowpeft.plan(root, NormConfig())
    of_norms = [path for path in parameters if path.rpartition(".")[0] in norms]
    assert sorted(t for site in plan.sites for t in site.tensors) == sorted(of_norms)
    assert plan.parameters == sum(parameters[path].numel() for path in of_norms)


class Normed(nn.Module):
    """A network with norms of several sorts, whose biases are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch, self.group = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.last = nn.ConvTranspose2d(6, 3, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.group(torch.tanh(self.batch(self.conv(x))))))


def normed() -> nn.Module:
    torch.manual_seed(8)
    return Normed().eval()


SIMPLE = {"bitfit": BitFitConfig(), "norm": NormConfig(), "fish": FishConfig(share=0.1)}


@pytest.mark.parametrize("kind", SIMPLE)
def test_a_new_one_changes_no_bit_trains_every_tensor_and_merges(kind: str) -> None:
    x = X.float()
    with torch.no_grad():
        expected = normed()(x)
        model = lowpeft.adapt(normed(), SIMPLE[kind])
        assert torch.equal(model(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(x), normed()(x))
    lowpeft.check_trainable(model, x)
    with torch.no_grad():
        adapted = randomise_adapters(model, std=0.5)(x)
        change = (adapted - expected).norm()
        assert change > 0.01 * expected.norm()
        assert lowpeft.merge(model).kept == ()
        assert (model(x) - adapted).norm() <= 1e-5 * change


@torch.no_grad()
def test_bitfit_and_norm_add_to_their_parameters_alone() -> None:
    for config, names in ((BitFitConfig(), {"bias"}), (NormConfig(), {"weight", "bias"})):
        model = randomise_adapters(lowpeft.adapt(normed(), config))
        state, plain = lowpeft.adapter_state_dict(model), normed()
        for path, module in plain.named_children():
            for name, parameter in module.named_parameters():
                added = state.get(f"{path}.{config.kind}_{name}.difference")
                chosen = name in names and (config.kind == "bitfit" or path in ("batch", "group"))
                assert (added is not None) == chosen
                wanted = parameter if added is None else parameter + added
                assert torch.equal(getattr(model.get_submodule(path), name), wanted)


def test_statistics_stay_while_norms_are_trained() -> None:
    model = lowpeft.adapt(normed(), NormConfig()).train()
    before = tensors(model)
    model(X.float()).square().mean().backward()
    assert all(p.grad.any() for _, p in lowpeft.adapter_parameters(model))
    assert_same_tensors(tensors(model), before)


# --- FISH ------------------------------------------------------------------------------------------------------------


@every_layer
@torch.no_grad()
def test_fish_is_its_formula(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(holder(name), FishConfig(target="layer.weight", share=0.2)), std=0.3)
    weight, state = model.layer._parameters["weight"], only(model)
    assert len(state["values"]) == max(1, round(0.2 * weight.numel()))
    wanted = elementwise.sparse(weight, state["index"], state["values"])
    torch.testing.assert_close(model.layer.weight, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_new_fish_adapter_has_the_largest_entries_and_at_least_one() -> None:
    model = lowpeft.adapt(normed(), FishConfig(share=0.03))
    state = lowpeft.adapter_state_dict(model)
    for path, parameter in normed().named_parameters():
        module, _, name = path.rpartition(".")
        index = state[f"{module}.fish_{name}.index"]
        largest = sorted(range(parameter.numel()), key=lambda i: -parameter.flatten()[i].abs())
        assert set(index.tolist()) == set(largest[: max(1, round(0.03 * parameter.numel()))])


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [tuple(torch.rand(2, 3, 9, 8, generator=generator) for _ in range(2)) for _ in range(count)]


def fisher(network: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Σ g² over single images, plainly."""
    sums = {path: torch.zeros_like(p) for path, p in network.named_parameters()}
    for inputs, target in data:
        for i in range(len(inputs)):
            network.zero_grad()
            F.l1_loss(network(inputs[i : i + 1]), target[i : i + 1]).backward()
            for path, parameter in network.named_parameters():
                sums[path] += parameter.grad.square()
    return sums


def chosen_of(model: nn.Module) -> dict[str, set[int]]:
    """The trained entries of each parameter."""
    state = lowpeft.adapter_state_dict(model)
    found = {}
    for key, index in state.items():
        if key.endswith(".index"):
            path, name = key.removesuffix(".index").split(".fish_")
            found[f"{path}.{name}"] = set(index.tolist())
            assert index.tolist() == sorted(found[f"{path}.{name}"])
    return found


@pytest.mark.parametrize(("share", "cap"), [(0.1, 1.0), (0.1, 0.15), (0.3, 0.3), (0.005, 1.0), (1.0, 1.0)])
def test_calibration_takes_the_entries_with_the_largest_fisher_information_of_all(share: float, cap: float) -> None:
    model = lowpeft.adapt(normed(), FishConfig(share=share, cap=cap))
    assert lowpeft.calibrate(model, batches(), loss=F.l1_loss) == {"fish": 8}
    squares = fisher(normed(), batches())
    total = round(share * sum(s.numel() for s in squares.values()))
    most = {path: max(1, int(cap * s.numel())) for path, s in squares.items()}
    wanted = elementwise.most_sensitive(squares, total, least=1, most=most)
    assert chosen_of(model) == wanted
    assert lowpeft.summary(model).by_kind == {"fish": sum(map(len, wanted.values()))}
    with torch.no_grad():
        assert torch.equal(model(X.float()), normed()(X.float()))


def test_calibrating_again_shares_the_same_number_of_entries() -> None:
    model = lowpeft.adapt(normed(), FishConfig(share=0.1))
    lowpeft.calibrate(model, batches(), loss=F.l1_loss)
    first = chosen_of(model)
    lowpeft.calibrate(model, batches(1), loss=F.mse_loss, name="default")
    again = chosen_of(model)
    assert again != first
    assert sum(map(len, again.values())) == sum(map(len, first.values()))
    lowpeft.calibrate(model, batches(), loss=F.l1_loss, name="default")
    assert chosen_of(model) == first


def test_set_entries_are_shared_among_the_sites() -> None:
    model = lowpeft.adapt(normed(), FishConfig(target="**.weight", entries=6))
    assert {len(places) for places in chosen_of(model).values()} == {6}
    lowpeft.calibrate(model, batches(), loss=F.l1_loss)
    counts = [len(places) for places in chosen_of(model).values()]
    assert sum(counts) == 24
    assert set(counts) != {6}


def test_entries_above_the_size_of_a_parameter_are_refused() -> None:
    with pytest.raises(PlanError, match="entries 7 is above 6"):
        lowpeft.plan(normed(), FishConfig(target="batch.bias", entries=7))


def test_data_that_do_not_tell_what_matters_are_refused() -> None:
    model = lowpeft.adapt(normed(), FishConfig())
    before = chosen_of(model)
    for loss, word in ((lambda out, _: 0 * out.sum(), "zero"), (lambda out, _: 1e30 * out.sum(), "not finite")):
        with pytest.raises(PlanError, match=word):
            lowpeft.calibrate(model, batches(1), loss=loss)
    assert chosen_of(model) == before


def test_a_calibrated_adapter_is_saved_with_its_entries_and_nothing_else(tmp_path: Path) -> None:
    model = lowpeft.adapt(normed(), FishConfig(share=0.1))
    lowpeft.calibrate(model, batches(), loss=F.l1_loss)
    randomise_adapters(model)
    stored = load_file(lowpeft.save_adapter(model, tmp_path) / "adapter_model.safetensors")
    entries = sum(map(len, chosen_of(model).values()))
    assert sum(t.numel() for t in stored.values()) == 2 * entries
    loaded = lowpeft.load_adapter(normed(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(X.float()), model(X.float()))


@pytest.mark.parametrize(
    ("index", "word"), [([0, 1, 162], "outside 0…161"), ([-1, 2, 3], "outside"), ([5, 3, 5], "repeated")]
)
def test_indices_that_do_not_fit_are_refused(index: list[int], word: str, tmp_path: Path) -> None:
    model = lowpeft.adapt(normed(), FishConfig(target="conv.weight", entries=3))
    before = {name: t.clone() for name, t in lowpeft.adapter_state_dict(model).items()}
    (key,) = (name for name in before if name.endswith("index"))
    wrong = torch.tensor(index, dtype=before[key].dtype)
    with pytest.raises(AdapterError, match=word):
        lowpeft.load_adapter_state_dict(model, before | {key: wrong})
    assert_same_tensors(lowpeft.adapter_state_dict(model), before)
    lowpeft.adapter_state_dict(model)[key].copy_(wrong)
    lowpeft.save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match=word):
        lowpeft.load_adapter(normed(), tmp_path)


def test_the_sizes_for_a_budget_rise_to_the_cap() -> None:
    field, values = FishConfig(cap=0.1).sizes
    assert field == "share"
    assert list(values) == sorted(values)
    assert values[0] == pytest.approx(1e-5)
    assert 0.09 < values[-1] <= 0.1
    assert FishConfig().sizes[1][-1] == 1
    assert FishConfig(entries=3).sizes is None
    plan = lowpeft.plan(normed(), FishConfig(), budget=100)
    assert abs(plan.parameters - 100) <= 6


# --- sensitive places ------------------------------------------------------------------------------------------------


def by_the_rule(rank: int, share: float) -> tuple[dict[str, set[int]], dict[str, int], dict[str, int], dict[str, int]]:
    """The chosen entries, and SPT's three sorts of places, plainly."""
    squares = fisher(normed(), batches())
    sizes = {path: s.numel() for path, s in squares.items()}
    chosen = elementwise.most_sensitive(squares, round(share * sum(sizes.values())), least=0, most=sizes)
    matrices, vectors, rest = {}, {}, {}
    low_rank = {"conv.weight": rank * (6 + 27), "last.weight": rank * (6 + 27)}
    for path, places in chosen.items():
        if path in low_rank and len(places) >= low_rank[path] / 5:
            matrices[path] = len(places)
        elif path not in low_rank and len(places) >= sizes[path] / 5:
            vectors[path] = len(places)
        elif places:
            rest[path] = len(places)
    return chosen, matrices, vectors, rest


@pytest.mark.parametrize(("rank", "share"), [(1, 0.05), (1, 0.2), (2, 0.1), (3, 0.1), (3, 0.01), (5, 0.4)])
def test_places_are_sorted_by_their_sensitive_entries(rank: int, share: float) -> None:
    places = lowpeft.sensitive_places(
        normed(), batches(), loss=F.l1_loss, share=share, low_rank=LoRAConfig(rank=rank, alpha=2)
    )
    chosen, *wanted = by_the_rule(rank, share)
    assert [places.matrices, places.vectors, places.rest] == wanted

    model = lowpeft.adapt(normed(), places.configs())
    lowpeft.calibrate(model, batches(), loss=F.l1_loss)
    assert sum(p.numel() for _, p in lowpeft.adapter_parameters(model)) == places.parameters
    assert chosen_of(model) == {path: chosen[path] for path in places.rest}
    sites = {t: site.config for site in sites_of(model) for t in site.tensors}
    assert {path for path, config in sites.items() if config.kind == "lora"} == places.matrices.keys()
    assert {path for path, config in sites.items() if config.kind == "full"} == places.vectors.keys()
    assert all((c.rank, c.alpha) == (rank, 2) for c in sites.values() if c.kind == "lora")
    assert f"{len(places.matrices)} matrices" in str(places)


def sites_of(model: nn.Module) -> tuple[Any, ...]:
    return lowpeft.core.attachment.record.record_of(model).plans["default"].sites


def test_every_sort_of_place_is_found_in_the_cases_above() -> None:
    found = [by_the_rule(rank, share)[1:] for rank, share in ((1, 0.05), (1, 0.2), (2, 0.1), (3, 0.1), (3, 0.01))]
    assert all(any(sorts[number] for sorts in found) for number in range(3))


def test_looking_for_places_changes_nothing() -> None:
    root = normed().train()
    root.conv.weight.requires_grad_(False)
    before, flags = tensors(root), {n: p.requires_grad for n, p in root.named_parameters()}
    classes, random = [type(m) for m in root.modules()], torch.get_rng_state()
    lowpeft.sensitive_places(root, batches(), loss=F.l1_loss)
    assert_same_tensors(tensors(root), before)
    assert {n: p.requires_grad for n, p in root.named_parameters()} == flags
    assert [type(m) for m in root.modules()] == classes
    assert all(m.training for m in root.modules())
    assert all(p.grad is None for p in root.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_places_of_a_backbone_and_of_an_adapted_network() -> None:
    plain = lowpeft.sensitive_places(normed(), batches(), loss=F.l1_loss, share=0.1)
    described = lowpeft.describe(normed(), scale=1, channels=3)
    assert lowpeft.sensitive_places(described, batches(), loss=F.l1_loss, share=0.1) == plain
    adapted = lowpeft.adapt(normed(), LoRAConfig(rank=1))
    assert lowpeft.sensitive_places(adapted, batches(), loss=F.l1_loss, share=0.1) == plain
    assert list(lowpeft.list_adapters(adapted)) == ["default"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"share": 0}, "share"),
        ({"share": 2.0}, "share"),
        ({"alpha": 0}, "alpha"),
        ({"beta": -1}, "beta"),
        ({"low_rank": lowpeft.SpatialConfig()}, "low_rank"),
        ({"low_rank": "lora"}, "low_rank"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(PlanError, match=word):
        lowpeft.sensitive_places(normed(), batches(1), loss=F.l1_loss, **fields)
