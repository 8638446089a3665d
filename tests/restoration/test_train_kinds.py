"""The parts that kinds have in training: steps of their own, a start from data, frozen adapters beside trained ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import AdapterConfig, Calibrator, Layer, PlanError, TrainingPart, WeightAdapter
from lowpeft.errors import DataError, TrainingError
from lowpeft.restoration.training import train
from states import assert_same_tensors, randomise_adapters
from tiers import by_default
from training_runs import SETTINGS, Samples, edt

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_curves")

LAYERS = "**.qkv"


@pytest.fixture(autouse=True)
def _tables(registries: None) -> None:
    lowpeft.register_adapter(BudgetConfig, Budget)
    lowpeft.register_adapter(LearntConfig, Learnt)


# --- A kind that moves its budget after every step -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(AdapterConfig):
    kind: ClassVar[str] = "budget"


class BudgetPart(TrainingPart):
    """Keeps a running mean of the gradients' size for all layers, and silences the layer with the smallest."""

    calls: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, adapters: Mapping[str, Any], steps: int) -> None:
        super().__init__(adapters, steps)
        self.importance = torch.zeros(len(adapters))

    def rates(self) -> Mapping[str, float]:
        return {f"{site}.b": 4.0 for site in self.adapters}

    def penalty(self) -> Tensor:
        return 0.01 * torch.stack([a.a.square().mean() for a in self.adapters.values()]).sum()

    def before_step(self, step: int) -> None:
        self.calls.append(("before", step))
        assert all(a.b.grad is not None for a in self.adapters.values())

    def after_step(self, step: int) -> None:
        self.calls.append(("after", step))
        sizes = torch.stack([a.b.grad.abs().mean() for a in self.adapters.values()])
        self.importance.mul_(0.9).add_(sizes, alpha=0.1)
        with torch.no_grad():
            list(self.adapters.values())[int(self.importance.argmin())].b.zero_()

    def state(self) -> dict[str, Tensor]:
        return {"importance": self.importance}


class Budget(WeightAdapter):
    kind = "budget"
    training_part_class = BudgetPart

    def __init__(self, layer: Layer, config: BudgetConfig) -> None:
        super().__init__()
        rows, columns = layer.matrix_shape
        self.a, self.b = nn.Parameter(torch.randn(1, columns)), nn.Parameter(torch.zeros(rows, 1))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        return (("weight",),) if isinstance(module, nn.Linear) else ()

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return dict.fromkeys(base, self.b @ self.a)


def budget_model() -> nn.Module:
    base = edt()
    torch.manual_seed(1)
    return lowpeft.adapt(base, BudgetConfig(target=LAYERS))


def test_a_kind_owns_a_share_of_every_step() -> None:
    BudgetPart.calls.clear()
    settings = dataclasses.replace(SETTINGS, steps=2, ema_decay=0.0, accumulate=3)
    model = budget_model()
    train(model, Samples(views=1), settings)
    assert BudgetPart.calls == [("before", 1), ("after", 1), ("before", 2), ("after", 2)]
    silent = [n for n, p in lowpeft.adapter_parameters(model) if n.endswith(".b") and not p.any()]
    assert len(silent) == 1


def test_the_penalty_and_the_rates_count_as_in_a_loop_written_by_hand() -> None:
    settings = dataclasses.replace(SETTINGS, steps=1, batch=2, ema_decay=0.0, clip_norm=0.0, warmup_steps=0)
    model, plain = budget_model(), budget_model()
    assert_same_tensors(model.state_dict(), plain.state_dict())
    train(model, Samples(views=1), settings)

    samples = [Samples(views=1)[i] for i in range(2)]
    lr, hr = (torch.cat(images) for images in zip(*samples, strict=True))
    named = dict(lowpeft.adapter_parameters(plain))
    groups = [
        {"params": [p for n, p in named.items() if n.endswith(".a")], "lr": settings.learning_rate},
        {"params": [p for n, p in named.items() if n.endswith(".b")], "lr": 4 * settings.learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay)
    penalty = 0.01 * sum(p.square().mean() for n, p in named.items() if n.endswith(".a"))
    (torch.nn.functional.l1_loss(plain(lr), hr) + penalty).backward()
    sizes = torch.stack([p.grad.abs().mean() for n, p in named.items() if n.endswith(".b")])
    optimiser.step()
    with torch.no_grad():
        [p for n, p in named.items() if n.endswith(".b")][int(sizes.argmin())].zero_()
    for name, parameter in lowpeft.adapter_parameters(model):
        torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_run_of_such_a_kind_that_stops_and_goes_on_is_bit_equal(tmp_path: Path) -> None:
    whole, halves = budget_model(), budget_model()
    train(whole, Samples(views=1), SETTINGS, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(halves, Samples(views=1), SETTINGS, out=tmp_path / "halves", report=stop_after(3))
    halves = budget_model()
    done = train(halves, Samples(views=1), SETTINGS, out=tmp_path / "halves", resume=True)
    assert done.resumed_at == 2
    assert_same_tensors(halves.state_dict(), whole.state_dict())


def stop_after(number: int) -> Any:
    def report(step: Any) -> None:
        if step.step == number:
            raise KeyboardInterrupt

    return report


# --- A start from data -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LearntConfig(AdapterConfig):
    kind: ClassVar[str] = "learnt"
    rank: int = 1


class Directions(Calibrator):
    """The first principal directions of each layer's inputs, more of them where the gradients are larger than usual."""

    wants = frozenset({"inputs", "gradients"})

    def __init__(self, adapters: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        self.moments: dict[str, Any] = {}
        self.fisher: dict[str, Any] = {}

    def see(self, site: str, inputs: Tensor, outputs: Tensor) -> None:
        x = inputs.detach().flatten(0, -2)
        self.moments[site] = self.moments.get(site, 0) + x.T @ x

    def see_gradients(self, site: str, gradients: Mapping[str, Tensor]) -> None:
        self.fisher[site] = self.fisher.get(site, 0) + gradients["weight"].square().sum().item()

    def settle(self) -> Mapping[str, LearntConfig]:
        usual = sorted(self.fisher.values())[len(self.fisher) // 2]
        ranks = {site: 3 if fisher >= usual else 1 for site, fisher in self.fisher.items()}
        return {site: dataclasses.replace(c, rank=ranks[site]) for site, c in self.configs.items()}

    def fill(self, site: str, adapter: Any) -> None:
        _, vectors = torch.linalg.eigh(self.moments[site])
        adapter.a.copy_(vectors[:, -adapter.a.shape[0] :].T)


class Learnt(WeightAdapter):
    kind = "learnt"
    calibrator_class = Directions
    a: Tensor

    def __init__(self, layer: Layer, config: LearntConfig) -> None:
        super().__init__()
        rows, columns = layer.matrix_shape
        self.register_buffer("a", torch.zeros(config.rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, config.rank))

    groups = Budget.groups

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return dict.fromkeys(base, self.b @ self.a)


def learnt_model(*, stereo: bool = False) -> nn.Module:
    configs = [LearntConfig(target=LAYERS), *([lowpeft.StereoConfig(every=1)] if stereo else [])]
    base = edt()
    torch.manual_seed(1)
    return lowpeft.adapt(base, configs)


@pytest.mark.parametrize("stereo", by_default([True], [False, True]), ids=["single images", "pairs"])
def test_train_lets_kinds_learn_their_start_and_saves_it(stereo: bool, tmp_path: Path) -> None:
    model, settings = learnt_model(stereo=stereo), dataclasses.replace(SETTINGS, calibration=4)
    train(model, Samples(), settings, out=tmp_path / "run")
    ranks = {len(t) for n, t in lowpeft.adapter_state_dict(model).items() if n.endswith("learnt_weight.a")}
    assert ranks == {1, 3}
    loaded = lowpeft.load_adapter(edt(), tmp_path / "run")
    assert_same_tensors(lowpeft.adapter_state_dict(loaded), lowpeft.adapter_state_dict(model))


def test_a_run_with_a_start_from_data_goes_on_bit_equal(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, calibration=4)
    whole, halves = learnt_model(), learnt_model()
    train(whole, Samples(views=1), settings)
    with pytest.raises(KeyboardInterrupt):
        train(halves, Samples(views=1), settings, out=tmp_path / "halves", report=stop_after(3))
    halves = learnt_model()
    train(halves, Samples(views=1), settings, out=tmp_path / "halves", resume=True)
    assert_same_tensors(halves.state_dict(), whole.state_dict())


def test_a_crop_for_calibration_that_cannot_be_read_is_an_error_of_the_run(tmp_path: Path) -> None:
    class Holed(Samples):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index == 2:
                raise DataError("scene b: b_L.png is damaged")
            return super().__getitem__(index)

    with pytest.raises(TrainingError, match=r"step 0\b.*b_L.png"):
        train(learnt_model(), Holed(views=1), dataclasses.replace(SETTINGS, calibration=4), out=tmp_path)


def test_what_was_calibrated_by_hand_is_not_calibrated_again() -> None:
    model = learnt_model()
    lowpeft.calibrate(model, [(torch.rand(2, 3, 12, 24), torch.rand(2, 3, 24, 48))], loss=nn.functional.l1_loss)
    before = {n: t.clone() for n, t in lowpeft.adapter_state_dict(model).items() if n.endswith(".a")}
    train(model, Samples(views=1), SETTINGS)
    assert_same_tensors({n: lowpeft.adapter_state_dict(model)[n] for n in before}, before)


# --- Frozen adapters beside trained ones -----------------------------------------------------------------------------


def two_adapters() -> nn.Module:
    model = lowpeft.adapt(edt(), "spatial", name="old")
    randomise_adapters(model)
    return lowpeft.adapt(model, lowpeft.LoRAConfig(target=LAYERS, rank=1), name="new")


def test_a_frozen_adapter_stays_and_the_trained_one_is_saved_alone(tmp_path: Path) -> None:
    model = two_adapters()
    for _, parameter in lowpeft.adapter_parameters(model, name="old"):
        parameter.requires_grad_(False)
    old = {n: t.clone() for n, t in lowpeft.adapter_state_dict(model, name="old").items()}
    new = {n: t.clone() for n, t in lowpeft.adapter_state_dict(model, name="new").items()}
    train(model, Samples(views=1), SETTINGS, out=tmp_path)
    assert_same_tensors(lowpeft.adapter_state_dict(model, name="old"), old)
    trained = lowpeft.adapter_state_dict(model, name="new")
    assert all(not torch.equal(trained[n], new[n]) for n in new)
    assert lowpeft.read_adapter(tmp_path).tensors.keys() == new.keys()


def test_two_trained_adapters_do_not_go_into_one_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="new, old"):
        train(two_adapters(), Samples(views=1), SETTINGS, out=tmp_path)


def test_a_calibrated_frozen_adapter_is_not_calibrated_again_beside_a_new_one(tmp_path: Path) -> None:
    model = learnt_model()
    train(model, Samples(views=1), SETTINGS)
    for _, parameter in lowpeft.adapter_parameters(model):
        parameter.requires_grad_(False)
    old = {n: t.clone() for n, t in lowpeft.adapter_state_dict(model).items()}
    lowpeft.adapt(model, LearntConfig(target=LAYERS), name="new")
    train(model, Samples(views=1), SETTINGS, out=tmp_path)
    assert_same_tensors(lowpeft.adapter_state_dict(model, name="default"), old)
    assert not any(p.requires_grad for _, p in lowpeft.adapter_parameters(model, name="default"))


def test_calibrating_keeps_strength_switch_and_dtype() -> None:
    model = learnt_model().double()
    lowpeft.set_strength(model, 0.25)
    x = torch.rand(2, 3, 12, 24).double()
    with torch.no_grad(), lowpeft.disabled(model):
        base = model(x)
        lowpeft.calibrate(model, [(x, torch.rand(2, 3, 24, 48).double())], loss=nn.functional.l1_loss)
        randomise_adapters(model)
        assert torch.equal(model(x), base)
    with torch.no_grad():
        quarter = model(x)
        lowpeft.set_strength(model, 1.0)
        assert not torch.allclose(model(x), quarter)
        lowpeft.set_strength(model, 0.25)
        assert torch.equal(model(x), quarter)
    assert {p.b.dtype for p in model.modules() if isinstance(p, Learnt)} == {torch.float64}


@pytest.mark.parametrize(
    "batches",
    [
        [torch.rand(2, 3, 12, 24)],
        torch.rand(2, 3, 12, 24),
        [(torch.rand(0, 3, 12, 24), torch.rand(0, 3, 24, 48))],
        [(torch.rand(2, 3, 12, 24), torch.rand(1, 3, 24, 48))],
        [(torch.rand(2, 3, 12, 24), torch.full((2, 3, 24, 48), float("nan")))],
        [(None, None)],
    ],
    ids=["no pair", "one tensor", "no images", "too few targets", "nan", "none"],
)
def test_batches_that_calibrate_cannot_use_are_refused(batches: Any) -> None:
    model = learnt_model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(PlanError):
        lowpeft.calibrate(model, batches, loss=nn.functional.l1_loss)
    assert_same_tensors(model.state_dict(), before)
