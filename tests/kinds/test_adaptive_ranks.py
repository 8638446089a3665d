"""AdaLoRA and CoLoRA: their formulas, and how ranks move between layers in training or follow gradients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kinds import LAYERS, X, geometry, holder, tensors_of
from torch import Tensor, nn

import lowpeft
from lowpeft import AdaLoRAConfig, CoLoRAConfig, Layer, LoRAConfig, PlanError
from lowpeft.kinds import AdaLoRA, CoLoRA
from lowpeft.kinds.colora import Contributions
from lowpeft.kinds.rank_budget import RankBudget
from lowpeft.restoration.training import train
from lowpeft.restoration.training.checkpoint import read_newest
from lowpeft.restoration.training.schedule import learning_rate
from reference import adaptive_ranks as reference
from states import assert_same_tensors, randomise_adapters
from tiers import by_default
from training_runs import SETTINGS, Samples, edt
from zoo import Holder

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_curves")


# --- AdaLoRA: formula and config -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_adalora_is_its_formula(name: str) -> None:
    config = AdaLoRAConfig(target="layer", rank=2, initial_rank=3, alpha=5)
    model = randomise_adapters(lowpeft.adapt(holder(name), config), std=0.5)
    next(m for m in model.modules() if isinstance(m, AdaLoRA)).kept[1] = False
    layer, tensors = model.layer, tensors_of(model, "adalora_weight")
    wanted = reference.adalora(layer._parameters["weight"], tensors, 5 / 3, **geometry(layer))
    assert not torch.equal(layer.weight, layer._parameters["weight"])
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)


def test_adalora_has_the_parameters_of_its_initial_rank() -> None:
    layer = Layer(shapes=(("weight", (180, 60, 3, 3)),))
    for config, rank in ((AdaLoRAConfig(rank=8), 12), (AdaLoRAConfig(rank=3), 5), (AdaLoRAConfig(initial_rank=7), 7)):
        adapter = AdaLoRA(layer, config)
        assert sum(p.numel() for p in adapter.parameters()) == rank * (180 + 540 + 1)
        assert not adapter.e.any()
        assert 0.019 < adapter.a.std() < 0.021
        assert 0.018 < adapter.b.std() < 0.022


@pytest.mark.parametrize("config", [AdaLoRAConfig(), AdaLoRAConfig(rank=3, initial_rank=5), CoLoRAConfig()])
def test_the_sizes_are_in_order_of_parameters(config: Any) -> None:
    name, values = config.sizes
    build = {"adalora": AdaLoRA, "colora": CoLoRA}[config.kind]
    layer = Layer(shapes=(("weight", (64, 64)),))
    made = [build(layer, dataclasses.replace(config, **{name: n})) for n in values[:9]]
    counts = [sum(p.numel() for p in adapter.parameters()) for adapter in made]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("config", [AdaLoRAConfig(target="**"), CoLoRAConfig(target="**")], ids=lambda c: c.kind)
def test_a_budget_chooses_the_rank_with_the_nearest_number(config: Any) -> None:
    counts = [lowpeft.plan(three(), dataclasses.replace(config, rank=n)).parameters for n in (1, 2)]
    for count in counts:
        assert lowpeft.plan(three(), config, budget=count + 1).parameters == count


def test_part_of_a_fused_projection_gets_the_change_alone() -> None:
    model = Holder(nn.Sequential(nn.MultiheadAttention(6, 2))).double()
    randomise_adapters(lowpeft.adapt(model, AdaLoRAConfig(target="**.in_proj_weight", rows="q,v", rank=1)))
    attention = model.layer[0]
    changed = (attention.in_proj_weight != attention._parameters["in_proj_weight"]).any(1)
    assert changed.tolist() == [True] * 6 + [False] * 6 + [True] * 6


BAD = [
    (AdaLoRAConfig, {"rank": 0}),
    (AdaLoRAConfig, {"initial_rank": 3, "rank": 4}),
    (AdaLoRAConfig, {"alpha": 0}),
    (AdaLoRAConfig, {"warmup": 1.5}),
    (AdaLoRAConfig, {"warmup": -1}),
    (AdaLoRAConfig, {"warmup": 0.5, "final": 0.5}),
    (AdaLoRAConfig, {"final": float("nan")}),
    (AdaLoRAConfig, {"final": True}),
    (AdaLoRAConfig, {"interval": 0}),
    (AdaLoRAConfig, {"betas": (0.85, 1.0)}),
    (AdaLoRAConfig, {"betas": 0.85}),
    (AdaLoRAConfig, {"orthogonal": -0.1}),
    (CoLoRAConfig, {"beta": 0}),
    (CoLoRAConfig, {"beta": "1"}),
    (CoLoRAConfig, {"start": "eva"}),
    (CoLoRAConfig, {"b_rate": 0}),
]


@pytest.mark.parametrize(("config", "fields"), BAD)
def test_a_value_out_of_range_is_refused(config: type, fields: dict[str, object]) -> None:
    with pytest.raises(PlanError, match=rf"{config.kind} adapter: .*{next(iter(fields))}"):
        config(**fields)


def test_an_initial_rank_that_a_weight_cannot_have_is_refused() -> None:
    with pytest.raises(PlanError, match="rank 9"):
        lowpeft.plan(holder("conv"), AdaLoRAConfig(target="layer", rank=6))


# --- AdaLoRA: the budget ---------------------------------------------------------------------------------------------


def sites(config: AdaLoRAConfig, *sides: tuple[int, int]) -> dict[str, AdaLoRA]:
    torch.manual_seed(0)
    return {f"l{i}": AdaLoRA(Layer(shapes=(("weight", side),)), config).double() for i, side in enumerate(sides)}


def give_gradients(adapters: dict[str, AdaLoRA], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for i, adapter in enumerate(adapters.values()):
        for p in adapter.parameters():
            p.grad = (i + 1) * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.data += 0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def ranks_left(adapters: dict[str, AdaLoRA]) -> int:
    return sum(int((a.e != 0).sum()) for a in adapters.values())


@pytest.mark.parametrize(
    ("fields", "steps", "phases"),
    [
        ({"warmup": 3, "final": 5}, 20, (3, 5)),
        ({"warmup": 0.1, "final": 0.3}, 29, (2, 8)),
        ({"warmup": 0, "final": 0}, 9, (0, 0)),
        ({"warmup": 0, "final": 0.5, "interval": 4}, 21, (0, 10)),
    ],
)
def test_the_budget_falls_as_published(fields: Any, steps: int, phases: tuple[int, int]) -> None:
    adapters = sites(AdaLoRAConfig(rank=4, initial_rank=8, **fields), (9, 12), (16, 8), (8, 8))
    part, interval = RankBudget(adapters, steps), fields.get("interval", 1)
    for t in range(1, steps + 1):
        give_gradients(adapters, t)
        part.after_step(t)
        wanted = reference.budget(t, steps, *phases, 24, 12)
        assert part.budget(t) == wanted
        if t >= steps - phases[1] or (t > phases[0] and t % interval == 0):
            assert ranks_left(adapters) == wanted
        else:
            assert ranks_left(adapters) == 24
        assert sum(int(a.kept.sum()) for a in adapters.values()) == (12 if t >= steps - phases[1] else 24)
    assert len({tuple(a.kept.tolist()) for a in adapters.values()}) > 1


def test_the_ranks_that_stay_are_those_with_the_largest_scores() -> None:
    adapters = sites(AdaLoRAConfig(rank=2, initial_rank=4, warmup=2, final=3), (5, 7), (6, 4), (4, 9))
    twins = sites(AdaLoRAConfig(rank=2, initial_rank=4, warmup=2, final=3), (5, 7), (6, 4), (4, 9))
    part = RankBudget(adapters, 12)
    plain = reference.Allocation({s: dict(a.named_parameters()) for s, a in twins.items()}, 6, 12, 2, 3, 0.85)
    for t in range(1, 13):
        give_gradients(adapters, t)
        give_gradients(twins, t)
        adapters["l1"].b.grad = twins["l1"].b.grad = None if t % 2 else twins["l1"].b.grad
        part.after_step(t)
        plain.step(t)
        assert {s: a.e.tolist() for s, a in adapters.items()} == {s: a.e.tolist() for s, a in twins.items()}
    state = part.state()
    for (site, name), mean in plain.mean.items():
        torch.testing.assert_close(state[f"{site}.{name}.importance"], mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(state[f"{site}.{name}.uncertainty"], plain.spread[site, name], rtol=1e-12, atol=0)


def test_equal_scores_drop_no_rank_too_many() -> None:
    adapters = sites(AdaLoRAConfig(rank=2, initial_rank=3, warmup=0, final=1), (4, 4), (4, 4))
    part = RankBudget(adapters, 3)
    for t in (1, 2, 3):
        for adapter in adapters.values():
            adapter.e.data.fill_(1)  # and no gradient anywhere, so all scores are zero
        part.after_step(t)
        assert ranks_left(adapters) == part.budget(t)
    assert [a.kept.tolist() for a in adapters.values()] == [[True, True, True], [True, False, False]]


def test_without_ranks_to_drop_all_stay() -> None:
    adapters = sites(AdaLoRAConfig(rank=3, initial_rank=3, warmup=0, final=0), (4, 4))
    part = RankBudget(adapters, 4)
    for t in range(1, 5):
        give_gradients(adapters, t)
        part.after_step(t)
    assert ranks_left(adapters) == 3


def test_dropped_ranks_do_not_return_in_a_second_training_and_frozen_layers_do_not_move() -> None:
    adapters = sites(AdaLoRAConfig(rank=2, initial_rank=4, warmup=0, final=0), (5, 7), (6, 5))
    adapters["frozen"] = sites(AdaLoRAConfig(rank=2, initial_rank=4, warmup=0, final=0), (5, 5))["l0"]
    adapters["frozen"].e.requires_grad_(False).fill_(1)
    kept = []
    for seed in (0, 100):
        part = RankBudget(adapters, 5)
        for t in range(1, 6):
            give_gradients({s: a for s, a in adapters.items() if s != "frozen"}, seed + t)
            part.after_step(t)
        kept.append([a.kept.tolist() for s, a in adapters.items() if s != "frozen"])
    assert sum(map(sum, kept[0])) == 4
    assert kept[0] == kept[1]
    alone = RankBudget({"frozen": adapters["frozen"]}, 5)
    for t in range(1, 6):
        alone.after_step(t)
    assert adapters["frozen"].e.tolist() == [1] * 4


def test_sites_trained_together_share_their_schedule_and_steps_must_be_left() -> None:
    several = sites(AdaLoRAConfig(interval=2), (9, 9)) | {"other": sites(AdaLoRAConfig(interval=3), (9, 9))["l0"]}
    with pytest.raises(PlanError, match="interval"):
        RankBudget(several, 10)
    with pytest.raises(PlanError, match="warmup=4 and final=6"):
        RankBudget(sites(AdaLoRAConfig(warmup=4, final=6), (9, 9)), 10)


def test_the_regulariser_is_its_formula() -> None:
    adapters = sites(AdaLoRAConfig(rank=2, initial_rank=3, orthogonal=0.7), (4, 6), (9, 5))
    for adapter in adapters.values():
        nn.init.normal_(adapter.a)
        nn.init.normal_(adapter.b)
    found = RankBudget(adapters, 9).penalty()
    wanted = reference.regulariser([(a.a, a.b) for a in adapters.values()], 0.7)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    parameters = [p for a in adapters.values() for p in (a.a, a.b)]
    pairs = (torch.autograd.grad(value, parameters) for value in (found, wanted))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert RankBudget(sites(AdaLoRAConfig(orthogonal=0), (8, 8)), 9).penalty() is None


# --- AdaLoRA in training ---------------------------------------------------------------------------------------------

MOVING = AdaLoRAConfig(target="**.qkv", rank=2, initial_rank=4, warmup=1, final=2)


def adalora_model() -> nn.Module:
    base = edt()
    torch.manual_seed(1)
    return lowpeft.adapt(base, MOVING)


class Constant(Samples):
    """The same crop for every index."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(0)


def test_train_has_the_published_order_and_counts_the_clipped_gradients(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, batch=1, ema_decay=0.0, clip_norm=0.005)
    model, plain = adalora_model(), adalora_model()
    train(model, Constant(views=1), settings, out=tmp_path)

    lr, hr = Constant(views=1)[0]
    adapters = {s.removesuffix(".a"): None for s, _ in lowpeft.adapter_parameters(plain) if s.endswith(".a")}
    named = dict(lowpeft.adapter_parameters(plain))
    layers = {site: {n: named[f"{site}.{n}"] for n in ("a", "e", "b")} for site in adapters}
    optimiser = torch.optim.AdamW(named.values(), betas=settings.betas, weight_decay=settings.weight_decay)
    allocation = reference.Allocation(layers, 2 * len(layers), settings.steps, 1, 2, 0.85)
    norms = []
    for t in range(1, settings.steps + 1):
        optimiser.param_groups[0]["lr"] = learning_rate(settings, t - 1)
        penalty = reference.regulariser([(layer["a"], layer["b"]) for layer in layers.values()], 0.1)
        (nn.functional.l1_loss(plain(lr), hr) + penalty).backward()
        norms.append(nn.utils.clip_grad_norm_(named.values(), settings.clip_norm))
        optimiser.step()
        allocation.step(t)
        optimiser.zero_grad()
    assert min(norms) > settings.clip_norm
    for name, parameter in lowpeft.adapter_parameters(model):
        torch.testing.assert_close(parameter, named[name], rtol=1e-4, atol=1e-6, msg=name)
    assert allocation.dropped
    saved = read_newest(tmp_path).tensors
    for (site, name), mean in allocation.mean.items():
        key = f"kinds.default.adalora.{site.replace('.lowpeft.default', '')}.{name}.importance"
        torch.testing.assert_close(saved[key], mean, rtol=1e-3, atol=1e-9, msg=key)


@pytest.mark.parametrize("killed_at", by_default([3], [3, 5]))
def test_a_run_that_stops_and_goes_on_is_bit_equal(killed_at: int, tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.step == killed_at:
            raise KeyboardInterrupt

    whole, halves = adalora_model(), adalora_model()
    train(whole, Samples(views=1), SETTINGS, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(halves, Samples(views=1), SETTINGS, out=tmp_path / "halves", report=stop)
    halves = adalora_model()
    done = train(halves, Samples(views=1), SETTINGS, out=tmp_path / "halves", resume=True)
    assert done.resumed_at == killed_at - 1
    assert_same_tensors(halves.state_dict(), whole.state_dict())
    ends = [read_newest(tmp_path / run).tensors for run in ("whole", "halves")]
    assert_same_tensors(*ends)


def test_dropped_ranks_add_nothing_even_where_their_average_is_not_zero(tmp_path: Path) -> None:
    model = adalora_model()
    train(model, Samples(views=1), SETTINGS, out=tmp_path)
    loaded = lowpeft.load_adapter(edt(), tmp_path)
    found = [m for m in loaded.modules() if isinstance(m, AdaLoRA)]
    assert sum(int(m.kept.sum()) for m in found) == 2 * len(found)
    assert any(m.e[~m.kept].any() for m in found)
    lr, _ = Samples(views=1)[0]
    with torch.no_grad():
        before = loaded(lr)
        for adapter in found:
            adapter.e.mul_(adapter.kept)
        assert torch.equal(loaded(lr), before)
        assert torch.equal(model(lr), before)


# --- CoLoRA ----------------------------------------------------------------------------------------------------------


class Three(nn.Module):
    """Layers of several shapes, whose gradients differ by orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 3, padding=1)
        self.tail = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(0.1 * self.up(self.body(self.head(x).relu()).relu()))


def three() -> nn.Module:
    torch.manual_seed(3)
    return Three().double()


BATCHES = [(X, X.flip(-1)), (X.flip(0) ** 2, X)]


def contributions(names: list[str]) -> list[float]:
    model, sums = three(), dict.fromkeys(names, 0.0)
    for inputs, targets in BATCHES:
        for x, y in zip(inputs, targets, strict=True):
            model.zero_grad()
            nn.functional.mse_loss(model(x[None]), y[None]).backward()
            for name in names:
                sums[name] += sum(g.item() ** 2 for g in model.get_submodule(name).weight.grad.flatten())
    return list(sums.values())


# Columns and rows; LoRA flattens a transposed weight (in, out, …) by its first dimension.
SIDES = {"head": (27, 8), "body": (36, 12), "up": (54, 12), "tail": (54, 3)}


def calibrated(config: CoLoRAConfig) -> tuple[nn.Module, dict[str, CoLoRA]]:
    model = lowpeft.adapt(three(), config)
    assert lowpeft.calibrate(model, BATCHES, loss=nn.functional.mse_loss) == {config.kind: len(SIDES)}
    return model, dict(zip(SIDES, (m for m in model.modules() if isinstance(m, CoLoRA)), strict=True))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_colora_has_the_ranks_of_its_rule(rank: int) -> None:
    model, adapters = calibrated(CoLoRAConfig(target="**", rank=rank, alpha=2))
    uniform = lowpeft.adapt(three(), LoRAConfig(target="**", rank=rank, alpha=2))
    found = [adapter.rank for adapter in adapters.values()]
    assert found == reference.ranks(contributions(list(SIDES)), list(SIDES.values()), rank)
    assert len(set(found)) > 1 or rank == 1
    numbers = [sum(p.numel() for _, p in lowpeft.adapter_parameters(m)) for m in (model, uniform)]
    assert abs(numbers[0] - numbers[1]) <= max(map(sum, SIDES.values()))
    assert torch.equal(model(X), three()(X))
    assert [adapter.scale for adapter in adapters.values()] == pytest.approx([2 / rank] * len(SIDES))
    assert "ranks from" in str(lowpeft.summary(model))


def test_with_a_beta_of_ones_own_the_budget_is_free() -> None:
    _, adapters = calibrated(CoLoRAConfig(target="**", rank=1, beta=0.7))
    largest = max(values := contributions(list(SIDES)))
    wanted = [reference.rank_of(c / largest, 0.7, *sides) for c, sides in zip(values, SIDES.values(), strict=True)]
    assert [adapter.rank for adapter in adapters.values()] == wanted


@pytest.mark.parametrize(
    "fields", [{"freeze_a": True}, {"start": "pissa"}, {"b_rate": 4, "rank_stabilised": True}], ids=str
)
def test_the_settings_of_lora_apply_to_colora(fields: Any) -> None:
    model, adapters = calibrated(CoLoRAConfig(target="**", rank=2, alpha=3, **fields))
    uniform = lowpeft.adapt(three(), LoRAConfig(target="**", rank=2, alpha=3, **fields))
    assert torch.equal(model(X), three()(X))
    scale = 3 / 2**0.5 if "rank_stabilised" in fields else 1.5
    assert [adapter.scale for adapter in adapters.values()] == pytest.approx([scale] * len(SIDES))
    numbers = [sum(p.numel() for _, p in lowpeft.adapter_parameters(m)) for m in (model, uniform)]
    assert abs(numbers[0] - numbers[1]) <= max(map(sum, SIDES.values()))
    for adapter in adapters.values():
        assert adapter.is_offset == ("start" in fields)
        if adapter.is_offset:
            assert adapter.a0.any()


def test_only_the_chosen_rows_count_as_a_contribution() -> None:
    model = Holder(nn.Sequential(nn.MultiheadAttention(6, 2))).double()
    lowpeft.adapt(model, CoLoRAConfig(target="**.in_proj_weight", rows="v", rank=1))
    at, adapter = next((n, m) for n, m in model.named_modules() if isinstance(m, CoLoRA))
    part = Contributions({at: adapter}, {at: CoLoRAConfig(rows="v", rank=1)})
    gradient = torch.arange(108.0).view(18, 6)
    part.see_gradients(at, {"in_proj_weight": gradient})
    assert part.fisher[at] == gradient[12:].square().sum()


def test_ranks_cannot_follow_gradients_that_are_zero() -> None:
    model = lowpeft.adapt(three(), CoLoRAConfig(target="**", rank=1))
    with pytest.raises(PlanError, match="gradients"):
        lowpeft.calibrate(model, BATCHES, loss=lambda output, target: 0 * output.sum())
    with pytest.raises(PlanError, match="loss="):
        lowpeft.calibrate(model, BATCHES)


@pytest.mark.slow
def test_train_calibrates_colora_and_a_run_goes_on_bit_equal(tmp_path: Path) -> None:
    def model() -> nn.Module:
        base = edt()
        torch.manual_seed(1)
        return lowpeft.adapt(base, CoLoRAConfig(target=["**.qkv", "**.fc1", "**.proj"], rank=2))

    def stop(step: Any) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    settings = dataclasses.replace(SETTINGS, calibration=4)
    whole, halves = model(), model()
    train(whole, Samples(views=1), settings)
    assert len({m.rank for m in whole.modules() if isinstance(m, CoLoRA)}) > 1
    with pytest.raises(KeyboardInterrupt):
        train(halves, Samples(views=1), settings, out=tmp_path, report=stop)
    halves = model()
    train(halves, Samples(views=1), settings, out=tmp_path, resume=True)
    assert_same_tensors(halves.state_dict(), whole.state_dict())
    loaded = lowpeft.load_adapter(edt(), tmp_path)
    assert_same_tensors(lowpeft.adapter_state_dict(loaded), lowpeft.adapter_state_dict(whole))
