"""FacT: its formula on every sort of layer, its counts, factors shared by width, what does not fit, and its cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_kinds import X, geometry, tensors_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lowpeft
from lowpeft import FacTConfig, Layer, PlanError
from lowpeft.core.planning.choosing import layer_of
from lowpeft.kinds import FacT
from lowpeft.kinds.fact import FacTFactors
from lowpeft.kinds.slices import slices_of
from reference import fact as reference
from states import assert_same_tensors, randomise_adapters, tensors
from zoo import Holder

FITTING: dict[str, Callable[[], nn.Module]] = {
    "square": lambda: nn.Conv2d(6, 6, 1),
    "below": lambda: nn.Conv2d(6, 18, 1),
    "beside": lambda: nn.Conv2d(6, 2, 1),
    "conv": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "conv below": lambda: nn.Conv2d(6, 12, 3, padding=1, padding_mode="reflect"),
    "conv beside": lambda: nn.Conv2d(6, 3, (1, 3), bias=False),
    "groups": lambda: nn.Conv2d(6, 6, 3, groups=3),
    "groups of 1x1": lambda: nn.Conv2d(6, 6, 1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 12, 3, stride=2),
    "transposed beside": lambda: nn.ConvTranspose2d(6, 3, 2, stride=2),
    "transposed groups": lambda: nn.ConvTranspose2d(6, 12, 3, groups=3),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(18, 6),
    "Conv1d": lambda: nn.Conv1d(4, 8, 3),
    "Conv3d": lambda: nn.Conv3d(4, 2, (2, 3, 1)),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 8, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(8, 4, (1, 2, 2), groups=2),
}
every_layer = pytest.mark.parametrize("name", FITTING)
every_form = pytest.mark.parametrize("form", ["tt", "tk"])


def holder(name: str) -> nn.Module:
    torch.manual_seed(4)
    return Holder(FITTING[name]()).double().eval()


def config(form: str, **fields: object) -> FacTConfig:
    return FacTConfig(**{"target": "layer", "form": form, "rank": 2, "scale": 1.5, **fields})


def adapted(form: str, name: str = "conv below", **fields: object) -> nn.Module:
    return lowpeft.adapt(holder(name), config(form, **fields))


def shared(state: dict[str, Tensor], width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    return state[f"fact_root.u_{width}"], state[f"fact_root.v_{width}"], state.get(f"fact_root.g_{width}")


class Block(nn.Module):
    """The layers of a block of a plain transformer, with the query, key and value apart or in one."""

    def __init__(self, dim: int, ratio: int, *, fused: bool) -> None:
        super().__init__()
        names = ("qkv",) if fused else ("q", "k", "v")
        for name in names:
            self.add_module(name, nn.Linear(dim, 3 * dim // len(names)))
        self.names = names
        self.proj = nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.cat([getattr(self, name)(x) for name in self.names], dim=-1).chunk(3, dim=-1)
        x = x + self.proj((parts[0] * parts[1]).tanh() + parts[2])
        return x + self.fc2(self.fc1(x).relu())


def transformer(dim: int = 8, blocks: int = 2, ratio: int = 4, *, fused: bool = False) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(*(Block(dim, ratio, fused=fused) for _ in range(blocks))).eval()


TOKENS = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(1))

# --- Formulas --------------------------------------------------------------------------------------------------------


@every_form
@every_layer
@torch.no_grad()
def test_each_square_slice_is_its_formula(name: str, form: str) -> None:
    model = randomise_adapters(adapted(form, name), std=0.5)
    weight, state = model.layer._parameters["weight"], lowpeft.adapter_state_dict(model)
    width = slices_of(layer_of(model.layer, ("weight",)), "fact", 2).width
    factors = shared(state, width)
    wanted = reference.fact(weight, tensors_of(model, "fact_weight"), 1.5, *factors, **geometry(model.layer))
    torch.testing.assert_close(model.layer.weight, wanted, rtol=0, atol=1e-12)
    assert (wanted != weight).all()


@every_form
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_sorts_of_layers_are_changed_by_the_same_formula(name: str, form: str) -> None:
    torch.manual_seed(2)
    module = OTHERS[name]().double()
    layer = layer_of(module, ("weight",))
    adapter, part = build(layer, config(form))
    found = module.weight + adapter.change({"weight": module.weight.detach()})["weight"]
    sort = {"transposed": getattr(module, "transposed", False), "groups": getattr(module, "groups", 1)}
    weight = module.weight[..., None] if module.weight.dim() == 2 else module.weight
    width = adapter.slices.width
    factors = shared({f"fact_root.{n}": t for n, t in part.state_dict().items()}, width)
    wanted = reference.fact(weight, adapter.state_dict(), 1.5, *factors, **sort).view_as(found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def build(layer: Layer, settings: FacTConfig) -> tuple[FacT, FacTFactors]:
    """An adapter with random values and its shared part, in float64."""
    part = FacTFactors(FacTFactors.shape_for(settings, [layer]), settings).double()
    adapter = FacT(layer, settings).double()
    with torch.no_grad():
        for parameter in (*adapter.parameters(), *part.parameters()):
            parameter.normal_(std=0.5)
    adapter.join(part)
    return adapter, part


@every_form
@pytest.mark.parametrize(("shape", "axis"), [((12, 4), 0), ((4, 12), 1)])
@torch.no_grad()
def test_a_slice_is_a_block_of_rows_or_columns_and_not_every_third_of_them(
    shape: tuple[int, int], axis: int, form: str
) -> None:
    """The code of the paper's authors reshapes (rank, rank, 4) without turning it, which mixes the slices up."""
    adapter, _ = build(Layer(shapes=(("weight", shape),)), config(form))
    own = adapter.sigma if form == "tt" else adapter.p
    own[0] = own[2] = 0
    change = adapter.change({"weight": torch.zeros(shape)})["weight"]
    assert change.any(1 - axis).tolist() == [False] * 4 + [True] * 4 + [False] * 4


# --- Counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dim", "blocks", "rank"), [(8, 2, 3), (12, 3, 4)])
def test_counts_on_a_plain_transformer_are_the_papers(dim: int, blocks: int, rank: int, fused: bool) -> None:
    def trained(form: str, ratio: int = 4) -> int:
        network = transformer(dim, blocks, ratio, fused=fused)
        return lowpeft.plan(network, FacTConfig(form=form, rank=rank), example=torch.rand(2, 5, dim)).parameters

    assert trained("tt") == 2 * dim * rank + 12 * blocks * rank**2
    assert trained("tk") == 2 * dim * rank + 12 * blocks * rank + rank**3
    assert trained("tt", ratio=2) == 2 * dim * rank + 8 * blocks * rank**2


def test_a_kernel_of_nine_positions_has_nine_times_the_slices() -> None:
    def trained(kernel: int, form: str) -> int:
        plan = lowpeft.plan(Holder(nn.Conv2d(6, 12, kernel)), config(form))
        return sum(site.parameters for site in plan.sites if site.attachment.form == "weight")

    assert [trained(1, "tt"), trained(3, "tt"), trained(1, "tk"), trained(3, "tk")] == [2 * 4, 18 * 4, 2 * 2, 18 * 2]


@every_form
def test_a_budget_chooses_the_rank(form: str) -> None:
    plan = lowpeft.plan(transformer(48), FacTConfig(form=form), example=torch.rand(2, 5, 48), budget="3%")
    assert plan.parameters == pytest.approx(0.03 * plan.base_parameters, rel=0.15)
    field, values = FacTConfig(form=form).sizes
    at = [lowpeft.plan(transformer(), FacTConfig(form=form, **{field: n}), example=TOKENS) for n in values[:8]]
    counts = [each.parameters for each in at]
    assert counts == sorted(counts)


# --- Shared factors --------------------------------------------------------------------------------------------------


class Widths(nn.Module):
    """A small U: layers of the widths 4 and 8, and one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.narrow = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
        self.down = nn.Conv2d(4, 8, 2, stride=2)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.wide(self.down(self.narrow(self.first(x)))))


def widths() -> nn.Module:
    torch.manual_seed(3)
    return Widths().eval()


IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@every_form
@torch.no_grad()
def test_each_layer_uses_the_factors_of_its_own_width(form: str) -> None:
    model = randomise_adapters(lowpeft.adapt(widths(), FacTConfig(form=form, rank=2)))
    layers = {"narrow.0": 4, "narrow.1": 4, "down": 4, "wide": 8, "up": 4}
    parameters = dict(lowpeft.adapter_parameters(model))
    names = "uvg" if form == "tk" else "uv"
    roots = {name.rpartition(".")[2] for name in parameters if ".fact_root." in f".{name}"}
    assert roots == {f"{name}_{width}" for name in names for width in (4, 8)}
    for width in (4, 8):
        before = {path: model.get_submodule(path).weight.clone() for path in layers}
        for name, parameter in parameters.items():
            if name.endswith(f"_{width}"):
                parameter.add_(0.3)
        moved = {path for path in layers if not torch.equal(model.get_submodule(path).weight, before[path])}
        assert moved == {path for path, own in layers.items() if own == width}


@every_form
@torch.no_grad()
def test_files_copies_strengths_and_removal_take_the_shared_part_along(form: str, tmp_path: Path) -> None:
    plain, settings = widths(), FacTConfig(form=form, rank=2)
    model = randomise_adapters(lowpeft.adapt(widths(), settings))
    expected, base = model(IMAGE), plain(IMAGE)
    lowpeft.save_adapter(model, tmp_path)
    loaded = lowpeft.load_adapter(widths(), tmp_path)
    assert torch.equal(loaded(IMAGE), expected)
    twin = copy.deepcopy(model)
    parts = {id(m.root_part) for m in twin.modules() if isinstance(m, FacT)}
    assert parts == {id(m) for m in twin.modules() if isinstance(m, FacTFactors)}
    randomise_adapters(twin, seed=6)
    assert torch.equal(model(IMAGE), expected)
    with lowpeft.using(model, {"default": 0.5}):
        weight = model.wide.weight
    full, frozen = model.wide.weight, plain.wide.weight
    torch.testing.assert_close(weight, (full + frozen) / 2)
    lowpeft.restore(model)
    assert torch.equal(model(IMAGE), base)
    assert_same_tensors(tensors(model), tensors(plain))


@torch.no_grad()
def test_two_adapters_have_factors_of_their_own_and_add_up() -> None:
    model = randomise_adapters(lowpeft.adapt(widths(), FacTConfig(rank=2), name="rain"))
    with lowpeft.using(model, {"rain": 1.0}):
        rain = model.wide.weight.clone()
    lowpeft.adapt(model, FacTConfig(form="tk", rank=3), name="blur")
    randomise_adapters(model, seed=7)
    weights = {}
    for name in ("rain", "blur"):
        with lowpeft.using(model, {name: 1.0}):
            weights[name] = model.wide.weight.clone()
    frozen = widths().wide.weight
    assert not torch.equal(weights["rain"], rain)
    with lowpeft.using(model, {"rain": 1.0, "blur": 0.5}):
        wanted = weights["rain"] + 0.5 * (weights["blur"] - frozen)
        torch.testing.assert_close(model.wide.weight, wanted)


# --- Starts, gradients, merges ---------------------------------------------------------------------------------------


@every_form
@every_layer
@torch.no_grad()
def test_a_new_adapter_changes_no_bit_a_merged_one_hardly_any(name: str, form: str) -> None:
    base, x = holder(name).float(), X.float()
    expected = base(x)
    model = lowpeft.adapt(holder(name).float(), config(form))
    assert torch.equal(model(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), base(x))
    output = randomise_adapters(model, std=0.5)(x)
    change = (output - expected).norm()
    assert change > 0.05 * expected.norm()
    assert lowpeft.merge(model).kept == ()
    assert (model(x) - output).norm() <= 1e-5 * change
    assert model.state_dict().keys() == base.state_dict().keys()


@torch.no_grad()
def test_new_values_are_those_of_the_docstring() -> None:
    torch.manual_seed(0)
    tt, tk = (randomless(form) for form in ("tt", "tk"))
    assert not tt["fact_root.v_6"].any()
    assert not tk["fact_root.v_6"].any()
    bounds = {"u_6": 6**-0.5, "g_6": 3**0.5 / 5, "sigma": 5**-0.5, "p": (6 / 23) ** 0.5}
    for state, names in ((tt, ("u_6", "sigma")), (tk, ("u_6", "g_6", "p"))):
        for name in names:
            largest = next(t for key, t in state.items() if key.endswith(f".{name}")).abs().max()
            assert 0.85 * bounds[name] < largest <= bounds[name]


def randomless(form: str) -> dict[str, Tensor]:
    return lowpeft.adapter_state_dict(lowpeft.adapt(holder("conv below"), config(form, rank=5)))


@every_form
def test_the_first_step_moves_v_alone_and_the_second_every_tensor(form: str) -> None:
    model = lowpeft.adapt(transformer(), FacTConfig(form=form, rank=2), example=TOKENS).train()
    optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-2, weight_decay=0.0)

    def moved() -> Iterator[str]:
        before = {name: p.detach().clone() for name, p in lowpeft.adapter_parameters(model)}
        optimiser.zero_grad()
        model(TOKENS).square().mean().backward()
        optimiser.step()
        return (name for name, p in lowpeft.adapter_parameters(model) if not torch.equal(p, before[name]))

    assert [name.rpartition(".")[2] for name in moved()] == ["v_8"]
    assert list(moved()) == [name for name, _ in lowpeft.adapter_parameters(model)]
    lowpeft.check_trainable(model, TOKENS)


@every_form
@every_layer
def test_two_products_have_the_gradients_of_the_changed_weight(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for products in (True, False):
        model = randomise_adapters(adapted(form, name), std=0.3)
        adapter = next(m for m in model.modules() if isinstance(m, FacT))
        given = adapter.factors()
        assert (given is None) == (name.startswith("transposed") or name in ("conv below", "groups"))
        if given is not None:
            change = adapter.change({"weight": model.layer._parameters["weight"]})["weight"]
            torch.testing.assert_close(given[1] @ given[0], change.flatten(1), rtol=0, atol=1e-12)
        if not products:
            monkeypatch.setattr(FacT, "factors", lambda self: None)
        x = X.clone().requires_grad_(True)
        out = model(x)
        out.square().sum().backward()
        outcomes.append([out, x.grad, *(p.grad for _, p in lowpeft.adapter_parameters(model))])
        monkeypatch.undo()
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=0, atol=1e-9)


def test_factors_stay_in_float32_under_autocast() -> None:
    """In bfloat16 they would not have the weight's type, and training would use the whole changed weight."""
    model = lowpeft.adapt(transformer(), FacTConfig(rank=2), example=TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = [m.factors() for m in model.modules() if isinstance(m, FacT)]
    assert {t.dtype for pair in pairs for t in pair} == {torch.float32}


# --- Rows, layers that do not fit, values ----------------------------------------------------------------------------


@every_form
@torch.no_grad()
def test_the_rows_that_are_not_chosen_stay_as_they_are(form: str) -> None:
    network = transformer(fused=True, blocks=1)
    model = randomise_adapters(lowpeft.adapt(network, FacTConfig(form=form, rank=2, rows="q,v"), example=TOKENS))
    layer = model[0].qkv
    changed = (layer.weight != layer._parameters["weight"]).any(1)
    assert changed.tolist() == [True] * 8 + [False] * 8 + [True] * 8
    own = [p for name, p in lowpeft.adapter_parameters(model) if "fact_weight" in name]
    assert [len(p) for p in own] == [2]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(6, 8, 3), "8 outputs x 6 inputs, cannot be cut into square slices"),
        (nn.ConvTranspose2d(6, 8, 3, groups=2), "8 outputs x 3 inputs"),
        (nn.Conv2d(6, 6, 3, groups=6), "6 outputs x 1 inputs, .* of 2 or more"),
        (nn.Conv2d(6, 1, 3), "1 outputs x 6 inputs"),
        (nn.Conv2d(6, 3, 3), "rank 4 is above 3, the width of the slices"),
    ],
)
def test_a_layer_without_square_slices_is_refused_if_named_and_else_left_out(module: nn.Module, reason: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), module)
    with pytest.raises(PlanError, match=reason):
        lowpeft.plan(network, FacTConfig(rank=4, target="2"))
    plan = lowpeft.plan(network, FacTConfig(rank=4))
    assert [site.path for site in plan.sites] == ["", "1"]
    assert any("fact: left out 2 layers that it does not fit" in note for note in plan.notes)


def test_tables_are_not_named() -> None:
    network = Holder(nn.Conv2d(6, 6, 1))
    network.position = nn.Parameter(torch.zeros(6, 6))
    with pytest.raises(PlanError, match="position"):
        lowpeft.plan(network, FacTConfig(rank=2, target="position"))


@pytest.mark.parametrize(
    "fields",
    [{"form": "cp"}, {"form": None}, {"rank": 0}, {"rank": 2.0}, {"scale": 0}, {"scale": "1"}, {"rows": "q,o"}],
    ids=str,
)
def test_a_value_out_of_range_is_refused(fields: dict[str, object]) -> None:
    (name, value), *_ = fields.items()
    with pytest.raises(PlanError, match=name) as caught:
        FacTConfig(**fields)
    assert repr(value) in str(caught.value)


# --- Cost ------------------------------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Counts the calls of PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@every_form
@torch.no_grad()
def test_a_change_is_a_few_products_however_many_slices_it_has(form: str) -> None:
    calls = []
    for shape in ((8, 8), (8 * 16, 8), (8, 8 * 16), (8 * 16, 8, 3, 3), (8, 8 * 16, 3, 3)):
        adapter, _ = build(Layer(shapes=(("weight", shape),)), config(form))
        with Calls() as counted:
            adapter.change({})
        calls.append(counted.names)
    products = [sum(name in ("mm", "bmm") for name in names) for names in calls]
    assert max(products) == (2 if form == "tt" else 3)
    assert max(map(len, calls)) < 25


@pytest.mark.parametrize(("name", "form"), [("conv below", "tt"), ("groups of 1x1", "tk")])
def test_one_graph_of_a_compiled_network_computes_the_same(name: str, form: str) -> None:
    model = randomise_adapters(lowpeft.adapt(holder(name).float(), config(form)))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X.float()), model(X.float()), rtol=1e-5, atol=1e-6)
