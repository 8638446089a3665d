"""The training loop on tiny networks: what is trained, how, what is written, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowpeft
import zoo
from lowpeft import Backbone, enhance, load_backbone
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.core.observation.describe import image_facts
from lowpeft.errors import DataError, PlanError, TrainingError
from lowpeft.recipes import TrainSettings, load_recipe
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import compare
from lowpeft.restoration.images import bicubic_upscale, matlab_downscale, to_float
from lowpeft.restoration.inference.network import run
from lowpeft.restoration.metrics import psnr
from lowpeft.restoration.training import (
    Trackers,
    image_loss,
    learning_rate,
    reinitialise,
    train,
    trained_parameters,
    validation,
)
from lowpeft.restoration.training.log import draw_curves
from states import backbone_of
from tiers import by_default
from training_runs import SETTINGS, Samples, edt, go, model_of, small

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_curves")

PLAIN = replace(SETTINGS, ema_decay=0.0, warmup_steps=0, steps=4)


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of this test draws its curves all the same."""
    monkeypatch.setattr("lowpeft.restoration.training.loop.draw_curves", draw_curves)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- What is trained
def test_training_lowers_the_loss_and_leaves_the_base_alone() -> None:
    model = model_of("stereo")
    before = {k: v.clone() for k, v in model.backbone.state_dict().items() if "lowpeft" not in k}
    samples = Samples()
    lr, hr = (torch.stack(views) for views in zip(*(samples[n] for n in range(900, 904)), strict=True))

    def loss() -> float:
        with torch.no_grad():
            outputs = run(model, lr.unbind(1), image_facts(model))
        return torch.stack([(o - h).abs().mean() for o, h in zip(outputs, hr.unbind(1), strict=True)]).mean().item()

    first = loss()
    done = train(model, samples, replace(PLAIN, steps=30, learning_rate=1e-2))
    assert loss() < first
    assert done.parameters == lowpeft.summary(model).trainable
    state = model.backbone.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.items())


def test_the_same_seed_gives_the_same_adapter() -> None:
    def run_with(seed: int) -> dict[str, torch.Tensor]:
        model = model_of("stereo")
        train(model, Samples(seed=seed), replace(PLAIN, seed=seed))
        return state_of(model)

    one, same, other = run_with(1), run_with(1), run_with(2)
    assert equal(one, same)
    assert not equal(one, other)


@pytest.mark.parametrize("views", [1, 2])
def test_a_single_image_recipe_trains_on_images_and_on_both_views_of_pairs(views: int) -> None:
    model = model_of("spatial")
    before = state_of(model)
    train(model, Samples(views=views), PLAIN)
    assert not equal(before, state_of(model))


def test_every_tensor_of_a_stereo_recipe_moves() -> None:
    model = model_of("stereo")
    before = state_of(model)
    train(model, Samples(), PLAIN)
    assert [n for n, p in state_of(model).items() if torch.equal(p, before[n])] == []


def test_dropout_is_drawn_from_the_seed_and_the_step_alone() -> None:
    """And nobody's random numbers are touched."""
    results = []
    for noise in (0, 5):
        model = model_of("whole")
        torch.manual_seed(3)
        torch.rand(noise)
        before = torch.get_rng_state()
        train(model, Samples(), PLAIN)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state_of(model))
    assert equal(*results)


def test_readers_give_the_same_samples() -> None:
    models = [go("full", replace(PLAIN, workers=workers))[0] for workers in (0, 2)]
    assert equal(*map(state_of, models))


def test_bf16_computes_the_same_to_its_precision() -> None:
    losses = [go("stereo", replace(PLAIN, precision=p))[1].loss for p in ("no", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_model_is_in_eval_mode_afterwards_also_after_an_error() -> None:
    model = model_of("whole")
    with pytest.raises(TrainingError):
        train(model, Samples(scale=4), PLAIN)

    def stop(step: Any) -> None:
        raise DataError("enough")

    with pytest.raises(TrainingError, match=r"step 1\b.* enough"):
        train(model, Samples(), PLAIN, report=stop)
    assert not any(m.training for m in model.modules())


@pytest.mark.gpu
def test_on_a_gpu_bf16_trains_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(step: Any) -> None:
        if step.step == 3:
            raise Stop

    settings = replace(SETTINGS, precision="bf16", workers=1)
    model = model_of("stereo")
    before = state_of(model)
    with pytest.raises(Stop):
        train(model.cuda(), Samples(), settings, out=tmp_path, report=stop)
    model = model_of("stereo")
    done = train(model.cuda(), Samples(), settings, out=tmp_path, resume=True)
    assert (done.resumed_at, done.steps) == (2, 6)
    after = {name: tensor.cpu() for name, tensor in state_of(model).items()}
    assert not equal(before, after)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in after.values())
    assert equal(state_of(lowpeft.load_adapter(edt(), tmp_path)), after)


# --- Loss, schedule, clip, average
def test_losses_are_their_formulas() -> None:
    output, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    d = (output - target).double()
    expected = {"l1": d.abs(), "mse": d**2, "charbonnier": torch.sqrt(d**2 + 1e-6)}
    for kind, values in expected.items():
        assert image_loss(kind, output, target).item() == pytest.approx(values.mean().item(), rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["l1", "mse", "charbonnier"])
def test_the_loss_of_the_settings_is_what_is_minimised(kind: str) -> None:
    model = model_of("spatial")
    lr, hr = (torch.stack(views) for views in zip(*(Samples()[n] for n in range(3)), strict=True))
    with torch.no_grad():
        outputs = run(model, lr.unbind(1), image_facts(model))
    wanted = [image_loss(kind, o, h).item() for o, h in zip(outputs, hr.unbind(1), strict=True)]  # type: ignore[arg-type]
    done = train(model, Samples(), replace(PLAIN, steps=1, loss=kind))  # type: ignore[arg-type]
    assert done.loss == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_schedules() -> None:
    cosine = TrainSettings(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(cosine, i) for i in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    constant = TrainSettings(steps=100, learning_rate=1.0, schedule="constant")
    assert {learning_rate(constant, i) for i in range(100)} == {1.0}
    multistep = TrainSettings(
        steps=100, learning_rate=1.0, schedule="multistep", milestones=(20, 50), milestone_factor=0.1, warmup_steps=2
    )
    rates = [learning_rate(multistep, i) for i in (0, 1, 19, 20, 49, 50, 99)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_gradient_is_clipped_and_its_norm_logged(tmp_path: Path) -> None:
    seen = []
    go("full", replace(PLAIN, clip_norm=1e-9), out=tmp_path, report=seen.append)
    assert all(step.gradient_norm > 1e-6 for step in seen)
    free, _ = go("full", replace(PLAIN, clip_norm=0.0, steps=1))
    clipped, _ = go("full", replace(PLAIN, clip_norm=1e-9, steps=1))
    moved = [max(p.abs().max().item() for p in state_of(m).values()) for m in (free, clipped)]
    assert moved[1] < 0.2 * moved[0]  # below AdamW's epsilon of 1e-8 a small gradient makes a small step


# With 0.9 the ramp is lower in all four steps, with 0.2 in one.
@pytest.mark.parametrize("most", by_default([0.2], [0.9, 0.2]))
def test_with_an_average_it_is_what_is_validated_saved_and_left_in_the_model(most: float, tmp_path: Path) -> None:
    live: list[dict[str, torch.Tensor]] = []
    seen: list[dict[str, torch.Tensor]] = []
    model = model_of("stereo")
    settings = replace(PLAIN, ema_decay=most, validate_every_steps=1)

    def look(current: nn.Module) -> float:
        seen.append(state_of(current))
        assert not any(m.training for m in current.modules())
        return float(len(seen))

    train(
        model, Samples(), settings, out=tmp_path, validate=look,
        report=lambda step: live.append(state_of(model)),
    )  # fmt: skip
    expected = {k: v.double() for k, v in state_of(model_of("stereo")).items()}
    for step, tensors in enumerate(live, start=1):
        decay = min(most, (1 + step) / (10 + step))
        expected = {k: decay * expected[k] + (1 - decay) * v.double() for k, v in tensors.items()}
        assert all(torch.allclose(seen[step - 1][k].double(), v, atol=1e-6) for k, v in expected.items())
    assert equal(state_of(model), seen[-1])
    assert not equal(live[-1], seen[-1])
    saved = lowpeft.load_adapter(edt(), tmp_path)
    assert equal(state_of(saved), seen[-1])
    assert "EMA" in str(lowpeft.read_adapter(tmp_path).facts["trained tensors"])


# --- What is written
@pytest.mark.usefixtures("curves")
def test_the_log_has_every_step(tmp_path: Path) -> None:
    seen = []
    go("stereo", replace(PLAIN, validate_every_steps=3), out=tmp_path, validate=lambda m: 30.0, report=seen.append)
    rows = [json.loads(r) for r in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert rows == [vars(step) for step in seen]
    assert [row["validation"] for row in rows] == [None, None, 30.0, 30.0]
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, done = go("full", PLAIN, out=tmp_path, callbacks=[Trackers(["tensorboard"])])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [e.step for e in events] == [1, 2, 3, 4]
    assert events[-1].value == pytest.approx(done.loss)


@pytest.mark.usefixtures("curves")
def test_without_optional_libraries_there_is_a_log_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    go("full", PLAIN, out=tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert not (tmp_path / "training.png").exists()
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 4


def test_the_adapter_that_is_written_is_the_trained_one(tmp_path: Path) -> None:
    model, _ = go("stereo", PLAIN, out=tmp_path)
    assert equal(state_of(lowpeft.load_adapter(edt(), tmp_path)), state_of(model))


def test_the_adapter_records_the_settings_that_it_was_trained_with(tmp_path: Path) -> None:
    go("spatial", PLAIN, out=tmp_path)
    assert lowpeft.read_adapter(tmp_path).recipe.training == PLAIN


def test_an_adapter_of_a_stopped_run_records_the_steps_taken(tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go("spatial", replace(PLAIN, save_every_steps=1), out=tmp_path, report=stop)
    assert lowpeft.read_adapter(tmp_path).recipe.training.steps == 2


def test_a_refused_run_leaves_the_recorded_settings(tmp_path: Path) -> None:
    model, _ = go("spatial", PLAIN, out=tmp_path)
    with pytest.raises(TrainingError):
        train(model, Samples(), replace(PLAIN, steps=99), out=tmp_path, resume=True)
    lowpeft.save_adapter(model, tmp_path / "again")
    assert lowpeft.read_adapter(tmp_path / "again").recipe.training == PLAIN


def test_the_best_is_kept(tmp_path: Path) -> None:
    figures = iter([1.0, 3.0, 2.0, 3.0])
    states = {}
    model = model_of("stereo")

    def look(current: nn.Module) -> float:
        states[len(states) + 1] = state_of(current)
        return next(figures)

    done = train(model, Samples(), replace(PLAIN, validate_every_steps=1), out=tmp_path, validate=look)
    assert (done.best, done.best_step) == (3.0, 2)
    assert equal(state_of(lowpeft.load_adapter(edt(), tmp_path / "best")), states[2])
    facts = lowpeft.read_adapter(tmp_path / "best").facts
    assert facts.pop("training data").startswith("2 scenes (SHA-256")
    assert facts == {"training": "2 of 4 steps", "validation": 3.0}


def test_validation_is_the_mean_psnr_over_views_and_scenes() -> None:
    base = edt()
    hr = [(torch.rand(3, 48, 96) * 255).to(torch.uint8) for _ in range(3)]
    lr = [matlab_downscale(image, 2) for image in hr]
    pair, single = Example("pair", tuple(lr[:2]), tuple(hr[:2])), Example("single", (lr[2],), (hr[2],))
    each = [psnr(enhance(base, to_float(a)), b) for a, b in zip(lr, hr, strict=True)]
    found = validation([pair, single])(base)
    assert found == pytest.approx((sum(each[:2]) / 2 + each[2]) / 2, abs=1e-3)
    with pytest.raises(DataError, match="validate"):
        validation([])


# --- Full training and training from scratch
def test_full_fine_tuning_trains_every_parameter_as_a_difference(tmp_path: Path) -> None:
    base = edt()
    count = base.parameters
    model = lowpeft.adapt(base, "full")
    done = train(model, Samples(views=1), PLAIN, out=tmp_path)
    assert done.parameters == count
    assert lowpeft.read_adapter(tmp_path).recipe.name == "full"
    image = torch.rand(1, 3, 24, 48)
    with torch.no_grad():
        expected = model(image)
        assert lowpeft.merge(model).kept == ()
        assert torch.equal(model(image), expected)


def test_full_fine_tuning_lets_droppath_and_dropout_be_active() -> None:
    assert not load_recipe("full").freeze_statistics
    network = next(n for n in zoo.FAMILIES if n.name == "swinir")
    model = lowpeft.adapt(network.build(), "full").train()
    assert {m.training for m in model.modules()} == {True}


def test_statistics_that_no_adapter_file_could_hold_are_refused() -> None:
    base = small()
    with pytest.raises(PlanError, match="freeze_statistics") as caught:
        lowpeft.adapt(base, "full")
    assert caught.value.problems == ("norm",)
    assert "--set freeze_statistics=true" in str(caught.value)
    assert str(caught.value).endswith("\nThe layers:\n  - norm")
    train(lowpeft.adapt(base, "full", freeze_statistics=True), Samples(), PLAIN)
    assert "norm.running_mean" in dict(base.module.named_buffers())
    assert not base.module.norm.running_mean.any()


@pytest.mark.parametrize(
    "name", by_default(["swinir", "nafnet"], ["edt", "hat", "swinir", "ipt", "nafnet", "rcan", "swin2sr"])
)
def test_new_weights_depend_on_the_seed_alone_and_replace_all(name: str) -> None:
    network = next(n for n in zoo.FAMILIES if n.name == name)
    torch.manual_seed(99)
    module = network.build()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    found = []
    for seed in (0, 1, 0):
        reinitialise(module, seed)
        found.append({k: v.clone() for k, v in module.state_dict().items()})
    assert equal(found[0], found[2])
    assert not equal(found[0], found[1])
    random = {k for k in found[0] if not torch.equal(found[0][k], found[1][k])}
    assert not any(torch.equal(before[k], found[0][k]) for k in random)
    assert sum(found[0][k].numel() for k in random) > 0.5 * sum(p.numel() for p in module.parameters())
    image = torch.rand(1, 3, *network.input_px) * network.value_max
    with torch.no_grad():
        assert torch.isfinite(module(image)).all()


def test_networks_that_do_not_say_how_they_were_built_are_refused() -> None:
    with pytest.raises(PlanError, match="Small"):
        reinitialise(small().module, 0)
    adapted = edt()
    lowpeft.adapt(adapted, "spatial")
    with pytest.raises(PlanError, match="EDT"):
        reinitialise(adapted.module, 0)


def test_a_network_trained_from_scratch_is_a_checkpoint(tmp_path: Path) -> None:
    config = EDTConfig(tasks=("sr_x2",), features=2, dim=60, depths=(1, 1), heads=6, image_px=24)
    base = lowpeft.describe(EDT(config))
    reinitialise(base.module, 0)
    done = train(base, Samples(views=1), SETTINGS, out=tmp_path)
    assert done.parameters == base.parameters
    assert not (tmp_path / "adapter_model.safetensors").exists()
    opened = load_backbone(tmp_path / "network.safetensors")
    assert (opened.architecture, opened.scale) == ("EDT", 2)
    image = torch.rand(1, 3, 24, 48)
    with torch.no_grad():
        assert torch.equal(opened.module(image), base.module(image))


def test_the_scratch_recipe_attaches_nothing() -> None:
    assert load_recipe("scratch").from_scratch
    with pytest.raises(PlanError, match="'scratch'"):
        lowpeft.adapt(edt(), "scratch")
    with pytest.raises(PlanError, match="trains from scratch, so it can have no adapters"):
        lowpeft.adapt(edt(), "scratch", train_also="**")


# --- What is refused
@pytest.mark.parametrize(
    ("samples", "values"),
    [
        (Samples(scale=4), ("x2", "x4")),
        (Samples(views=1), ("2 views", "1")),
    ],
    ids=["scale", "views"],
)
def test_crops_that_do_not_fit_are_refused(samples: Samples, values: tuple[str, str], tmp_path: Path) -> None:
    model = model_of("stereo")
    with pytest.raises(TrainingError) as caught:
        train(model, samples, PLAIN, out=tmp_path / "out")
    (problem,) = caught.value.problems
    assert all(value in problem for value in values)
    assert not (tmp_path / "out").exists()


class Together(lowpeft.MultiViewModel):
    """Adds to each view's result what the mean of all results is."""

    def forward(self, *views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = [self.backbone(view) for view in views]
        return tuple((result + sum(results) / len(results)) / 2 for result in results)


def test_a_model_of_three_views_is_trained_on_three() -> None:
    model = Together(EDSR.build(), views=3)
    before = state_of(model)
    train(model, Samples(views=3), PLAIN)
    assert not equal(before, state_of(model))
    for views in (1, 2, 4):
        with pytest.raises(TrainingError, match=f"3 views.* {views}$"):
            train(model, Samples(views=views), PLAIN)


def test_a_network_of_fixed_size_takes_its_own_crops() -> None:
    base = edt()
    model = lowpeft.adapt(lowpeft.describe(base, fixed_px=24), "spatial")
    with pytest.raises(TrainingError, match=r"EDT .*\(48, 48\).*\(24, 48\)"):
        train(model, Samples(), PLAIN)


def test_two_adapters_do_not_fit_into_one_folder(tmp_path: Path) -> None:
    base = edt()
    lowpeft.adapt(base, "spatial", name="a")
    model = lowpeft.adapt(base, lowpeft.LoRAConfig(target="**.qkv.*"), name="b")
    with pytest.raises(PlanError, match="a, b"):
        train(model, Samples(), PLAIN, out=tmp_path)
    train(model, Samples(), PLAIN)


class CutOff(nn.Module):
    """Runs a layer without gradients, as a reentrant checkpoint with a frozen input does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.inner(x)


def test_adapters_that_get_no_gradient_are_refused_in_the_first_step(tmp_path: Path) -> None:
    """One of EDSR's blocks is cut off, so that its adapter would be saved as it began."""
    base = network()
    model = lowpeft.adapt(base, "spatial")
    base.module.body[2].body = CutOff(base.module.body[2].body)
    before = state_of(model)
    with pytest.raises(TrainingError, match=r"step 1\b.* 4 of 24 .*check_trainable") as caught:
        train(model, Samples(), PLAIN, out=tmp_path)
    assert len(caught.value.problems) == 4
    assert all(name.startswith("body.2.") for name in caught.value.problems)
    assert equal(before, state_of(model))


def test_layers_of_a_network_that_take_no_part_are_refused_as_sites_of_adapters_and_else_left_alone() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = (nn.Conv2d(3, 12, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.pixel_shuffle(self.used(x), 2)

    assert train(Spare(), Samples(), PLAIN).steps == PLAIN.steps
    model = lowpeft.adapt(Spare(), lowpeft.FullConfig(target="**"))
    with pytest.raises(TrainingError, match=r"2 of 4 ") as caught:
        train(model, Samples(), PLAIN)
    assert [problem.split(".")[0] for problem in caught.value.problems] == ["spare", "spare"]
    model = lowpeft.adapt(lowpeft.restore(model), lowpeft.FullConfig(target=["**", "!spare"]))
    assert train(model, Samples(), PLAIN).steps == PLAIN.steps


def test_validating_needs_something_to_validate_with() -> None:
    with pytest.raises(TrainingError, match="validate="):
        go("stereo", replace(PLAIN, validate_every_steps=1))


def test_a_validation_figure_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    """Else nothing after it would count as better, and an arbitrary adapter would stay the best."""
    figures = iter([20.0, float("nan"), 30.0, 30.0])
    settings = replace(PLAIN, validate_every_steps=1, save_every_steps=1)
    with pytest.raises(TrainingError, match=r"step 2\b.*step-00000001\b.* NaN"):
        go("stereo", settings, out=tmp_path, validate=lambda model: next(figures))
    assert lowpeft.read_adapter(tmp_path / "best").facts["validation"] == 20.0


def test_samples_of_several_sizes_in_a_batch_are_refused() -> None:
    class Uneven(Samples):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return replace(self, crop_px=(24 + 24 * index, 48)).plain(index)

        def plain(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return super().__getitem__(index)

    model = model_of("stereo")
    with pytest.raises(TrainingError, match=r"the samples of a batch differ in size.*batch = 1"):
        train(model, Uneven(), PLAIN)


def test_a_network_without_trainable_parameters_is_refused() -> None:
    base = edt()
    base.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="EDT"):
        train(base, Samples(), PLAIN)


# --- Measuring, on the zoo's EDSR, which takes values 0..255
EDSR = next(n for n in zoo.FAMILIES if n.name == "edsr")


def network() -> Backbone:
    return backbone_of(EDSR)


FACTS = network()


def test_the_loss_is_of_values_0_to_1_whatever_the_network_takes() -> None:
    base = network()
    done = train(lowpeft.adapt(base, "stereo"), Samples(), replace(PLAIN, steps=1))
    lr, hr = (torch.stack(views) for views in zip(*(Samples()[n] for n in range(3)), strict=True))
    with torch.no_grad():
        outputs = [FACTS.module(view * 255) / 255 for view in lr.unbind(1)]
    wanted = sum((o - h).abs().mean().item() for o, h in zip(outputs, hr.unbind(1), strict=True)) / 2
    assert done.loss == pytest.approx(wanted, rel=1e-4)


def scene() -> Example:
    hr = (torch.rand(3, 30, 42, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    lr = matlab_downscale(hr, EDSR.scale)
    return Example("scene", (lr, lr), (hr, hr))


def test_measuring_puts_the_mode_back() -> None:
    model = lowpeft.adapt(network(), "stereo").train()
    compare(model, [scene()])
    assert model.training
    assert next(s for _, _, s in lowpeft.core.attachment.slots.slots(model)).training


def test_comparison_of_a_new_adapter_has_no_gain_and_no_use_of_the_other_view() -> None:
    model = lowpeft.adapt(network(), "stereo")
    found = compare(model, [scene()])
    assert found.values_db("frozen") == found.values_db("adapted")
    assert found.values_db("same view") == pytest.approx(found.values_db("adapted"), abs=1e-3)
    assert [line.split()[0] for line in str(found).splitlines() if line][-2:] == ["mean", "the"]


def test_nothing_is_compared_without_scenes() -> None:
    with pytest.raises(DataError, match="no scenes"):
        compare(FACTS, [])


def test_bicubic_is_measured_on_the_same_views() -> None:
    pair = scene()
    found = compare(lowpeft.adapt(network(), "spatial"), [pair])
    assert list(found.reports) == ["bicubic", "frozen", "adapted"]
    assert found.values_db("bicubic") == [psnr(bicubic_upscale(pair.lr[0], EDSR.scale), pair.hr[0])]
