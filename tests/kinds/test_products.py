"""LoHa, LoKr and OFT: their formulas, counts, splits and blocks, and the traps that other implementations fell into."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from test_kinds import LAYERS, X, count, every_layer, geometry, holder, tensors_of
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import LoHaConfig, LoKrConfig, OFTConfig, PlanError
from lowpeft.core.planning.choosing import layer_of
from lowpeft.kinds import OFT, AdapterConfig, Layer, LoHa, LoKr, WeightAdapter
from lowpeft.kinds.lokr import parts
from reference import products as reference
from states import randomise_adapters
from tiers import by_default
from zoo import Holder

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(12, 18),
    "Conv1d": lambda: nn.Conv1d(6, 8, 3, groups=2),
    "Conv3d": lambda: nn.Conv3d(4, 8, (2, 3, 1)),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(8, 6, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(8, 12, (1, 2, 2), groups=2),
}
MODULES: dict[type[AdapterConfig], type[WeightAdapter]] = {LoHaConfig: LoHa, LoKrConfig: LoKr, OFTConfig: OFT}
CASES: dict[str, tuple[AdapterConfig, Callable[..., Tensor], float]] = {
    "loha": (LoHaConfig(target="layer", rank=2, alpha=3), reference.loha, 1.5),
    "lokr": (LoKrConfig(target="layer", rank=1, alpha=3), reference.lokr, 3.0),
    "lokr whole": (LoKrConfig(target="layer", rank=6, alpha=3), reference.lokr, 0.5),
    "lokr factor": (LoKrConfig(target="layer", factor=2, rank=1), reference.lokr, 1.0),
}
BLOCKS = {"oft": OFTConfig(target="layer", block=9), "oft shared": OFTConfig(target="layer", block=4, share=True)}
EVERY = {**{name: case[0] for name, case in CASES.items()}, **BLOCKS}


def is_transposed(layer: nn.Module) -> bool:
    return type(layer).__name__.startswith("ConvTranspose")


def largest_block(columns: int, block: int) -> int:
    return max(b for b in range(1, block + 1) if columns % b == 0)


def cases_on_layers(cases: Iterable[str]) -> pytest.MarkDecorator:
    """Every case on every layer; by default the first on all, the others on the plainest and the most involved one."""
    rows = [(case, name) for case in cases for name in LAYERS]
    plain = {"conv", "transposed groups"}
    return pytest.mark.parametrize(
        ("case", "name"), by_default([(c, n) for c, n in rows if c == rows[0][0] or n in plain], rows)
    )


# --- Formulas --------------------------------------------------------------------------------------------------------


@cases_on_layers(CASES)
@torch.no_grad()
def test_loha_and_lokr_are_their_formulas(case: str, name: str) -> None:
    config, formula, scale = CASES[case]
    layer = randomise_adapters(model := lowpeft.adapt(holder(name), config), std=0.5).layer
    wanted = formula(layer._parameters["weight"], tensors_of(model, f"{config.kind}_weight"), scale, **geometry(layer))
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)


@cases_on_layers(BLOCKS)
@torch.no_grad()
def test_oft_is_its_formula(case: str, name: str) -> None:
    layer = randomise_adapters(model := lowpeft.adapt(holder(name), BLOCKS[case]), std=0.5).layer
    weight = layer._parameters["weight"]
    block = largest_block(layer_of(layer, ("weight",)).matrix_shape[1], BLOCKS[case].block)
    wanted = reference.oft(weight, tensors_of(model, "oft_weight"), block, **geometry(layer))
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", EVERY)
@torch.no_grad()
def test_other_sorts_of_layers_are_changed_by_the_same_formulas(case: str, name: str) -> None:
    torch.manual_seed(2)
    module, config = OTHERS[name]().double(), EVERY[case]
    described = layer_of(module, ("weight",))
    adapter = MODULES[type(config)](described, config).double()
    for parameter in adapter.parameters():
        parameter.normal_(std=0.5)
    found = module.weight + adapter.change({"weight": module.weight.detach()})["weight"]
    layer = {"transposed": is_transposed(module), "groups": getattr(module, "groups", 1)}
    if case in BLOCKS:
        setting = largest_block(described.matrix_shape[1], BLOCKS[case].block)
        wanted = reference.oft(module.weight, adapter.state_dict(), setting, **layer)
    else:
        wanted = CASES[case][1](module.weight, adapter.state_dict(), CASES[case][2], **layer)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


class Tables(nn.Module):
    """A table that is added, one that is looked up, and a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 16, 6))
        self.embed = nn.Embedding(10, 6)
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x + self.position + self.embed.weight.sum(0))


@pytest.mark.parametrize(
    "config", [LoHaConfig(target=["*position", "*embed"]), LoKrConfig(target=["*position", "*embed"])]
)
@torch.no_grad()
def test_tables_are_matrices_whose_last_axis_gives_the_columns(config: AdapterConfig) -> None:
    model = randomise_adapters(lowpeft.adapt(Tables().double(), config), std=0.5)
    kind = config.kind
    for change, w in (
        (model.position - model._parameters["position"], tensor_group(model, f"{kind}_position")),
        (model.embed.weight - model.embed._parameters["weight"], tensor_group(model, f"embed.{kind}_weight")),
    ):
        table = change.flatten(0, -2)
        formula = reference.loha if kind == "loha" else reference.lokr
        torch.testing.assert_close(table, formula(torch.zeros_like(table), w, 1.0), rtol=0, atol=1e-12)
        assert change.any()


def tensor_group(model: nn.Module, key: str) -> dict[str, Tensor]:
    state = lowpeft.adapter_state_dict(model)
    return {k.removeprefix(f"{key}."): v for k, v in state.items() if k.startswith(f"{key}.")}


def test_oft_does_not_fit_tables() -> None:
    with pytest.raises(PlanError, match="position"):
        lowpeft.plan(Tables(), OFTConfig(target="position"))


@pytest.mark.parametrize("config", [LoHaConfig(rows="q,v"), LoKrConfig(rows="q,v"), OFTConfig(rows="q,v")])
@torch.no_grad()
def test_the_rows_that_are_not_chosen_stay_as_they_are(config: AdapterConfig) -> None:
    layer = randomise_adapters(lowpeft.adapt(Tables(), config), std=0.5).qkv
    changed = (layer.weight != layer._parameters["weight"]).any(1)
    assert changed.tolist() == [True] * 6 + [False] * 6 + [True] * 6


# --- Counts, splits, blocks ------------------------------------------------------------------------------------------

CONV = Layer(shapes=(("weight", (180, 60, 3, 3)),))


def test_counts_are_those_of_the_formulas() -> None:
    assert count(LoHa(CONV, LoHaConfig(rank=8))) == 2 * 8 * (180 + 540)
    assert count(LoKr(CONV, LoKrConfig(rank=2))) == 12 * 6 + 2 * (15 + 10 * 9)
    assert count(LoKr(CONV, LoKrConfig(rank=8))) == 12 * 6 + 15 * 10 * 9
    assert count(OFT(CONV, OFTConfig())) == 540 * (30 - 1) // 2
    assert count(OFT(CONV, OFTConfig(share=True))) == 30 * (30 - 1) // 2


@pytest.mark.parametrize(
    ("size", "factor", "pair"),
    [
        (180, -1, (12, 15)),
        (64, -1, (8, 8)),
        (37, -1, (1, 37)),
        (1, -1, (1, 1)),
        (64, 16, (4, 16)),
        (8, 8, (1, 8)),
        (180, 4, (4, 45)),
        (180, 8, (6, 30)),
        (180, 1000, (12, 15)),
    ],
)
def test_a_side_is_split_by_the_factor_the_smaller_part_first(size: int, factor: int, pair: tuple[int, int]) -> None:
    assert parts(size, factor) == pair


def test_the_second_factor_is_whole_by_the_published_rule_and_where_a_product_would_save_nothing() -> None:
    def whole(shape: tuple[int, ...], rank: int) -> bool:
        return "w2" in LoKr(Layer(shapes=(("weight", shape),)), LoKrConfig(rank=rank)).state_dict()

    assert [whole((180, 180, 3, 3), r) for r in (7, 8)] == [False, True]  # p = q = 15
    assert [whole((9, 101), r) for r in (2, 3, 51)] == [False, True, True]  # p = 3, q = 101: 3·101 < 3·(3 + 101)


@pytest.mark.parametrize("shape", [(180, 60, 3, 3), (64, 64), (9, 101), (101, 9), (7, 1, 5, 5), (24, 16, 1, 1)])
@pytest.mark.parametrize("config", [LoHaConfig(), LoKrConfig(), OFTConfig()])
def test_sizes_are_in_the_order_of_the_number_of_parameters(config: AdapterConfig, shape: tuple[int, ...]) -> None:
    assert config.sizes is not None
    field, values = config.sizes
    layer, counts = Layer(shapes=(("weight", shape),)), []
    for value in list(values)[:120]:
        try:
            counts.append(count(MODULES[type(config)](layer, type(config)(**{field: value}))))
        except PlanError:
            continue  # a rank that the weight cannot have, a block without a divisor
    assert len(counts) > 1
    assert counts == sorted(counts)


@pytest.mark.parametrize(("columns", "block", "used"), [(64, 32, 32), (540, 32, 30), (9, 32, 9), (35, 6, 5), (2, 2, 2)])
def test_the_largest_block_that_divides_the_columns_is_used(columns: int, block: int, used: int) -> None:
    adapter = OFT(Layer(shapes=(("weight", (5, columns)),)), OFTConfig(block=block))
    assert adapter.turn().shape == (columns // used, used, used)


def test_oft_refuses_columns_that_it_cannot_rotate_and_leaves_them_out_without_a_target() -> None:
    model = Holder(nn.Conv2d(6, 6, 1, groups=6))
    with pytest.raises(PlanError, match=r"block 32 .* 1 columns"):
        lowpeft.plan(model, OFTConfig(target="layer"))
    with pytest.raises(PlanError, match=r"block 4 .* 37 columns"):
        OFT(Layer(shapes=(("weight", (5, 37)),)), OFTConfig(block=4))
    plan = lowpeft.plan(model, OFTConfig())
    assert [site.path for site in plan.sites] == ["first"]
    assert any("1 layers that it does not fit" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (LoHaConfig, {"rank": 0}),
        (LoHaConfig, {"alpha": 0}),
        (LoHaConfig, {"rows": "x"}),
        (LoKrConfig, {"rank": 0}),
        (LoKrConfig, {"alpha": -1}),
        (LoKrConfig, {"factor": 0}),
        (LoKrConfig, {"factor": -2}),
        (LoKrConfig, {"factor": True}),
        (LoKrConfig, {"factor": 1.5}),
        (OFTConfig, {"block": 1}),
        (OFTConfig, {"block": 2.0}),
        (OFTConfig, {"share": 1}),
        (OFTConfig, {"rows": "q;v"}),
    ],
)
def test_a_value_out_of_range_is_refused(config: type, fields: dict[str, object]) -> None:
    with pytest.raises(PlanError, match=next(iter(fields))):
        config(**fields)


def test_a_rank_that_a_weight_cannot_have_is_refused_by_loha_alone() -> None:
    with pytest.raises(PlanError, match="rank 9"):
        lowpeft.plan(holder("conv"), LoHaConfig(target="layer", rank=9))
    whole, larger = (lowpeft.plan(holder("conv"), LoKrConfig(target="layer", rank=r)) for r in (9, 4000))
    assert whole.parameters == larger.parameters


# --- What other implementations got wrong ----------------------------------------------------------------------------


@torch.no_grad()
def test_oft_turns_each_row_by_twice_the_angle_whose_tangent_is_q() -> None:
    """R = (I − Q)(I + Q)⁻¹ with Q = [[0, q], [−q, 0]] is the turn by +2 atan q, counter-clockwise."""
    adapter = OFT(Layer(shapes=(("weight", (3, 2)),)), OFTConfig()).double()
    adapter.q.fill_(0.3)
    angle = 2 * torch.atan(torch.tensor(0.3, dtype=torch.float64))
    weight = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = weight.T
    turned = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=1)
    torch.testing.assert_close(weight + adapter.change({"weight": weight})["weight"], turned, rtol=0, atol=1e-14)


@torch.no_grad()
def test_the_neumann_series_of_another_library_turns_the_other_way() -> None:
    """Its five terms I + 2Q + 2Q² + 2Q³ + Q⁴ are about Rᵀ, so a file of one form is Q → −Q in the other."""
    adapter = OFT(Layer(shapes=(("weight", (5, 6)),)), OFTConfig(block=6)).double()
    weight, entries = torch.randn(5, 6, dtype=torch.float64), 0.02 * torch.randn(1, 15, dtype=torch.float64)
    q, identity = reference.skew(entries[0], 6), torch.eye(6, dtype=torch.float64)
    series = identity + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    distances = []
    for sign in (1, -1):
        adapter.q.copy_(sign * entries)
        distances.append((weight + adapter.change({"weight": weight})["weight"] - weight @ series.T).norm())
    same, opposite = distances
    assert opposite < 1e-3 * same


@every_layer
@torch.no_grad()
def test_oft_keeps_lengths_of_rows_and_angles_between_them_however_large_q_is(name: str) -> None:
    layer = randomise_adapters(lowpeft.adapt(holder(name), BLOCKS["oft"]), std=3.0).layer
    described = layer_of(layer, ("weight",))
    old, new = (described.rows(w) for w in (layer._parameters["weight"], layer.weight))
    torch.testing.assert_close(new @ new.T, old @ old.T, rtol=0, atol=1e-12)
    assert (new - old).norm() > 0.5 * old.norm()


@torch.no_grad()
def test_oft_on_a_convolution_rotates_each_patch_and_never_folds_patches_back() -> None:
    """Folding adds up the overlapping patches, so that a network of another library starts far from its base."""
    plain = holder("conv")
    x = plain.first(X)
    patches = F.unfold(x, 3, padding=1)
    folded = F.fold(patches, x.shape[2:], 3, padding=1)
    assert (folded - x).norm() > x.norm()
    model = lowpeft.adapt(holder("conv"), OFTConfig(target="layer", block=9))
    assert torch.equal(model(X), plain(X))
    randomise_adapters(model, std=0.5)
    blocks = [reference.rotation(entries, 9) for entries in tensors_of(model, "oft_weight")["q"]]
    rows = plain.layer.weight.flatten(1)
    wanted = rows @ (torch.block_diag(*blocks).T @ patches) + plain.layer.bias[:, None]
    torch.testing.assert_close(model(X), wanted.unflatten(2, x.shape[2:]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_lokr_on_a_conv1d_is_a_kronecker_product_of_channels() -> None:
    """A product of a matrix and a tensor of three axes pairs channels with kernel entries, and is not this change."""
    adapter = LoKr(layer_of(nn.Conv1d(6, 8, 3), ("weight",)), LoKrConfig(rank=8)).double()
    adapter.w1.normal_()
    adapter.w2.normal_()
    w2 = adapter.w2.view(4, 3, 3)
    change = adapter.change({"weight": torch.zeros(8, 6, 3, dtype=torch.float64)})["weight"]
    for y in range(3):
        assert torch.equal(change[:, :, y], torch.kron(adapter.w1, w2[:, :, y].contiguous()))
    assert not torch.allclose(change, torch.kron(adapter.w1, w2).reshape(8, 6, 3))


# --- Precision -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_oft_computes_in_float32_after_a_move_to_bfloat16() -> None:
    adapter = OFT(Layer(shapes=(("weight", (8, 64)),)), OFTConfig()).bfloat16()
    adapter.q.normal_(std=0.1)
    weight = torch.randn(8, 64).bfloat16()
    change = adapter.change({"weight": weight})["weight"]
    assert change.dtype is torch.float32
    wanted = reference.oft(weight.double(), {"q": adapter.q.double()}, 32) - weight.double()
    torch.testing.assert_close(change.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", by_default(["loha", "oft"], EVERY))
def test_one_graph_of_a_compiled_network_computes_the_same(case: str) -> None:
    model = randomise_adapters(lowpeft.adapt(Holder(LAYERS["groups"]()).eval(), EVERY[case]))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X.float()), model(X.float()), rtol=1e-5, atol=1e-6)
