"""LoRA's variants: rsLoRA, LoRA-FA, LoRA+, starts from weights and from data, rows of fused projections, tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from test_kinds import LAYERS, X, holder, tensors_of
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Layer, LoRAConfig, PlanError, SSFConfig
from lowpeft.core.operations.methods import kept_bytes
from lowpeft.core.planning.choosing import layer_of
from lowpeft.kinds import LoRA
from reference import lora as reference
from states import randomise_adapters
from tiers import by_default
from zoo import Holder

STARTS = ("pissa", "olora", "corda", "eva")
every_layer = pytest.mark.parametrize("name", LAYERS)


def images() -> list[Tensor]:
    return [X, 2 * X.flip(0)]


# --- Scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 1.0),
        ({"alpha": 8.0}, 2.0),
        ({"alpha": 8.0, "rank_stabilised": True}, 4.0),
        ({"rank_stabilised": True}, 1.0),
    ],
)
def test_the_scale_is_alpha_over_the_rank_or_its_root(fields: dict[str, float], scale: float) -> None:
    assert LoRAConfig(rank=4, **fields).scale == scale


def test_lora_plus_trains_b_faster_than_a() -> None:
    from lowpeft import training_parts
    from lowpeft.restoration.training.optimizers import parameter_groups

    model = lowpeft.adapt(holder("conv"), LoRAConfig(target="layer", rank=2, b_rate=16))
    parameters = dict(lowpeft.adapter_parameters(model))
    groups = parameter_groups(model, parameters, training_parts(model, 10), ())
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    assert {name.rpartition(".")[2]: rates[id(p)] for name, p in parameters.items()} == {"a": 1.0, "b": 16}
    assert not training_parts(lowpeft.adapt(holder("conv"), LoRAConfig(target="layer")), 10)


# --- LoRA-FA ---------------------------------------------------------------------------------------------------------


@every_layer
def test_two_products_have_the_gradients_of_the_changed_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for frozen in (False, True):
        outcomes = []
        for products in (True, False):
            model = lowpeft.adapt(holder(name), LoRAConfig(target="layer", rank=1, alpha=3, freeze_a=frozen))
            randomise_adapters(model, std=0.3)
            if not products:
                monkeypatch.setattr(LoRA, "factors", lambda self: None)
            x = X.clone().requires_grad_(True)
            out = model(x)
            out.square().sum().backward()
            outcomes.append([out, x.grad, *(p.grad for _, p in lowpeft.adapter_parameters(model))])
            monkeypatch.undo()
        torch.testing.assert_close(outcomes[0], outcomes[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("layer", [lambda: nn.Linear(64, 64), lambda: nn.Conv2d(64, 64, 3, padding=1)])
def test_a_frozen_a_keeps_few_channels_of_the_input(layer: Callable[[], nn.Module]) -> None:
    size = (1, 64, 64) if isinstance(layer(), nn.Linear) else (1, 64, 64, 64)
    x = torch.randn(size)
    kept = {}
    for frozen in (False, True):
        model = lowpeft.adapt(
            nn.Sequential(layer(), layer()), LoRAConfig(target="**", rank=2, freeze_a=frozen), example=x
        )
        kept[frozen] = kept_bytes(model.train(), partial(model, x.clone().requires_grad_(True)))
    assert kept[True] < 0.1 * kept[False]


# --- Starts ----------------------------------------------------------------------------------------------------------


# Every layer with the start that all can have; the others on the plainest layer and on one that two of them refuse.
@pytest.mark.parametrize(
    ("start", "name"),
    by_default(
        [(s, n) for s in STARTS for n in LAYERS if s == "pissa" or n in ("conv", "transposed groups")],
        [(s, n) for s in STARTS for n in LAYERS],
    ),
)
@torch.no_grad()
def test_a_start_changes_no_bit_and_is_its_formula_once_trained(start: str, name: str) -> None:
    base = holder(name)
    model = lowpeft.adapt(holder(name), LoRAConfig(target="layer", rank=1, alpha=3, start=start))
    if name.startswith("transposed") and start in ("corda", "eva"):
        with pytest.raises(PlanError, match="1 transposed convolutions or tables"):
            lowpeft.calibrate(model, images())
        return
    lowpeft.calibrate(model, images())
    assert torch.equal(model(X), base(X))
    randomise_adapters(model, std=0.3)
    found = model.layer.weight
    tensors = tensors_of(model, "lora_weight")
    torch.testing.assert_close(found, reference.lora(base.layer.weight, tensors, 3.0), rtol=0, atol=1e-12)
    adapted = model(X)
    assert lowpeft.merge(model).kept == ()
    torch.testing.assert_close(model(X), adapted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_pissa_takes_the_largest_singular_part_of_the_weight_and_olora_its_first_rows() -> None:
    weight = holder("conv").layer.weight.flatten(1)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    for start, part in (("pissa", u[:, :2] * s[:2] @ v[:2]), ("olora", None)):
        state = tensors_of(
            lowpeft.adapt(holder("conv"), LoRAConfig(target="layer", rank=2, alpha=6, start=start)), "lora_weight"
        )
        product = 3 * state["b0"] @ state["a0"]
        if part is None:
            q, r = torch.linalg.qr(weight)
            part = q[:, :2] @ r[:2]
        torch.testing.assert_close(product, part, rtol=0, atol=1e-10)


@torch.no_grad()
def test_eva_takes_the_principal_directions_of_the_inputs_and_shares_the_ranks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)).double()
    x = torch.randn(40, 6, dtype=torch.float64) @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=torch.float64))
    first = model[0](x)
    lowpeft.adapt(model, LoRAConfig(target="**", rank=3, start="eva"), example=x)
    assert "not calibrated" in str(lowpeft.summary(model))
    assert lowpeft.calibrate(model, [x[:20], x[20:]]) == {"lora": 2}
    state = lowpeft.adapter_state_dict(model)
    ranks = [len(state[f"{i}.lora_weight.a"]) for i in range(2)]
    assert sum(ranks) == 6
    assert max(ranks) <= 6
    for i, inputs in enumerate((x, first)):
        centred = inputs - inputs.mean(0)
        _, _, v = torch.linalg.svd(centred, full_matrices=False)
        overlap = (v[: ranks[i]] @ state[f"{i}.lora_weight.a"].T).abs()
        torch.testing.assert_close(overlap, torch.eye(ranks[i], dtype=torch.float64), rtol=0, atol=1e-6)


@torch.no_grad()
def test_corda_starts_from_the_weight_in_the_metric_of_the_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([5.0, 1, 1, 2, 1, 1], dtype=torch.float64)
    layer = nn.Linear(6, 8).double()
    moment = x.T @ x / 50
    moment += 0.01 * moment.diagonal().mean() * torch.eye(6)
    u, s, v = torch.linalg.svd(layer.weight @ moment, full_matrices=False)
    wanted = u[:, :2] * s[:2] @ v[:2] @ moment.inverse()
    model = lowpeft.adapt(nn.Sequential(layer), LoRAConfig(target="**", rank=2, start="corda"), example=x)
    lowpeft.calibrate(model, [x])
    state = lowpeft.adapter_state_dict(model)
    torch.testing.assert_close(state["0.lora_weight.b0"] @ state["0.lora_weight.a0"], wanted, rtol=0, atol=1e-8)


def test_a_layer_that_is_never_called_keeps_a_random_start_and_the_summary_says_so() -> None:
    model = Holder(nn.Sequential(nn.Conv2d(6, 8, 1), nn.ConvTranspose2d(8, 6, 1)))
    lowpeft.adapt(model, LoRAConfig(target="layer.**", rank=2, start="eva"))
    lowpeft.calibrate(model, [X.float()])
    assert "1 transposed convolutions or tables keep a random start, e.g. layer.1.lora_weight" in str(
        lowpeft.summary(model)
    )


# --- Rows of fused projections, tables -------------------------------------------------------------------------------


@torch.no_grad()
def test_rows_change_the_named_parts_of_fused_projections_alone() -> None:
    model = next(n for n in zoo.ALL if n.name == "swinir").build()
    plan = lowpeft.plan(model, LoRAConfig(rank=2, rows="q,v"))
    assert {site.path.rpartition(".")[2] for site in plan.sites} == {"qkv"}
    lowpeft.adapt(model, LoRAConfig(rank=2, rows="v,q"))
    randomise_adapters(model)
    layer = model.get_submodule(plan.sites[0].path)
    q, k, v = (layer.weight - layer._parameters["weight"]).chunk(3)
    assert q.any()
    assert v.any()
    assert not k.any()


def test_rows_take_separate_projections_too() -> None:
    attention = nn.MultiheadAttention(6, 2, kdim=4, vdim=5)
    sites = lowpeft.plan(Holder(nn.Sequential(attention)), LoRAConfig(rank=2, rows="q,v")).sites
    assert [site.attachment.tensors for site in sites] == [("q_proj_weight",), ("v_proj_weight",)]
    named = {"to_q": nn.Linear(6, 6), "to_kv": nn.Linear(6, 12), "quality": nn.Linear(6, 6)}
    counts = {
        site.path: site.parameters for site in lowpeft.plan(nn.ModuleDict(named), LoRAConfig(rank=1, rows="q,v")).sites
    }
    assert counts == {"to_q": 6 + 6, "to_kv": 6 + 6}


def test_rows_of_an_attention_of_torch_and_of_a_layer_that_has_none() -> None:
    model = Holder(nn.Sequential(nn.MultiheadAttention(6, 2)))
    (site,) = lowpeft.plan(model, LoRAConfig(rank=2, rows="k")).sites
    assert site.parameters == 2 * (6 + 6)
    with pytest.raises(PlanError, match="no projection to queries"):
        lowpeft.plan(model, LoRAConfig(target="first", rank=2, rows="k"))
    with pytest.raises(PlanError, match="rows"):
        LoRAConfig(rows="q,x")
    assert lowpeft.plan(model, SSFConfig(rows="q,k")).parameters == 2 * 12


@torch.no_grad()
def test_tables_are_adapted_if_a_pattern_names_them_and_not_otherwise() -> None:
    model = next(n for n in zoo.ALL if n.name == "swinir").build()
    everything = lowpeft.plan(model, LoRAConfig(target="**", rank=1))
    assert not any("table" in name for site in everything.sites for name in site.attachment.tensors)
    lowpeft.adapt(model, LoRAConfig(target="**.relative_position_bias_table", rank=1))
    attention = next(m for m in model.modules() if hasattr(m, "relative_position_bias_table"))
    table = attention._parameters["relative_position_bias_table"]
    a = next(p for n, p in lowpeft.adapter_parameters(model) if n.endswith(".a"))
    assert a.shape == (1, table.shape[1])
    randomise_adapters(model)
    assert not torch.equal(attention.relative_position_bias_table, table)
    lowpeft.merge(model)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.position = nn.Parameter(torch.randn(1, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x) + self.position


@pytest.mark.parametrize("target", [["words"], ["words.weight"], ["position"], ["**.position", "words"]])
def test_an_embedding_and_a_position_table_are_tables(target: list[str]) -> None:
    x = torch.tensor([[0, 1, 4]])
    model = Words()
    expected = model(x)
    lowpeft.adapt(model, LoRAConfig(target=target, rank=2), example=x)
    assert torch.equal(model(x), expected)
    lowpeft.check_trainable(model, x)
    randomise_adapters(model)
    adapted = model(x)
    lowpeft.merge(model, example=x)
    torch.testing.assert_close(model(x), adapted)


def test_the_matrix_of_a_table_has_the_last_axis_as_columns() -> None:
    layer = layer_of(Words(), ("position",))
    assert layer == Layer(shapes=(("position", (1, 3, 4)),), table=True)
    assert layer.matrix_shape == (3, 4)
    table = torch.randn(1, 3, 4)
    assert torch.equal(layer.from_rows(layer.rows(table), "position"), table)


def test_what_cannot_be_meant_is_refused() -> None:
    for fields in (
        {"start": "svd"},
        {"b_rate": 0},
        {"freeze_a": True, "start": "pissa"},
        {"freeze_a": True, "b_rate": 2},
    ):
        with pytest.raises(PlanError, match=next(iter(fields))):
            LoRAConfig(**fields)


# --- Budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_picks_the_nearest_rank_and_says_what_it_came_to() -> None:
    model = next(n for n in zoo.ALL if n.name == "swinir").build()
    counts = {rank: lowpeft.plan(model, "lora", rank=rank).parameters for rank in range(1, 12)}
    base = sum(p.numel() for p in model.parameters())
    for share in (0.03, 0.05, 0.11):
        nearest = min(counts, key=lambda rank: abs(counts[rank] - share * base))
        for budget in (share, f"{100 * share:g}%", round(share * base)):
            plan = lowpeft.plan(model, "lora", budget=budget)
            assert plan.recipe.adapters[0].rank == nearest
            assert f"lora has rank={nearest}, {counts[nearest]:,} trained" in str(plan)
    assert "the size of ssf is fixed" in str(lowpeft.plan(model, SSFConfig(), budget="1%"))


def test_a_budget_keeps_the_scale_and_says_when_it_is_missed() -> None:
    model = next(n for n in zoo.ALL if n.name == "swinir").build()
    for fields, scale in (({"alpha": 8.0}, 2.0), ({"alpha": 8.0, "rank_stabilised": True}, 8.0)):
        plan = lowpeft.plan(model, LoRAConfig(**fields), budget="2%")
        assert plan.recipe.adapters[0].rank == 1
        assert plan.recipe.adapters[0].scale == scale
        assert f"scale {scale:.3g}" in str(plan)
    assert "NOT MET" not in str(lowpeft.plan(model, "lora", budget="2%"))
    missed = str(lowpeft.plan(model, "lora", budget="0.1%"))
    assert "NOT MET: lora has rank=1" in missed
    assert "name fewer places" in missed
    with pytest.raises(PlanError, match="give one of the two"):
        lowpeft.plan(model, "lora", budget="2%", rank=3)


def test_a_budget_keeps_the_layers() -> None:
    """A higher rank that fits only a few of the layers is no answer to a budget."""
    narrow = [layer for _ in range(10) for layer in (nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1))]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), *narrow, nn.Conv2d(32, 3, 3))
    few, many = (lowpeft.plan(model, "lora", budget=n) for n in (3000, 7000))
    counts = {rank: lowpeft.plan(model, "lora", rank=rank).parameters for rank in range(1, 9)}
    assert few.recipe.adapters[0].rank == min(counts, key=lambda rank: abs(counts[rank] - 3000)) == 4  # one layer less
    assert many.recipe.adapters[0].rank == 8
    assert len(many.sites) == 21


@pytest.mark.parametrize("budget", ["x", "2", "0%", "101%", 0, -1, 1.5, math.nan, True, [1], 10**400, "٣%"])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(PlanError, match="budget must be a share"):
        lowpeft.plan(holder("conv"), "lora", budget=budget)


def test_a_budget_of_two_sizes_is_refused() -> None:
    with pytest.raises(PlanError, match="2 adapters with a size"):
        lowpeft.plan(holder("conv"), [LoRAConfig(target="layer"), LoRAConfig(target="first")], budget="1%")
