"""Training as researchers need it: data sets, losses, optimisers and rates of one's own."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lowpeft
from lowpeft.errors import PlanError, TrainingError
from lowpeft.recipes import TrainSettings
from lowpeft.recipes.losses import loss_terms
from lowpeft.restoration.training import (
    checkpoints,
    image_loss,
    train,
    trained_parameters,
)
from lowpeft.restoration.training.losses import qualified_name
from lowpeft.restoration.training.sources import Samples as Finite
from lowpeft.restoration.training.sources import source_of
from training_runs import CONSTANT, PLAIN, SETTINGS, Samples, Stop, equal, go, model_of, state_of, stop_after

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")


def pairs(count: int = 5, size: tuple[int, int] = (12, 24), views: int | None = None) -> list[tuple[Tensor, Tensor]]:
    shape = (3,) if views is None else (views, 3)
    lr = [torch.rand(*shape, *size) for _ in range(count)]
    return [(image, image.repeat_interleave(2, -1).repeat_interleave(2, -2)) for image in lr]


# --- Data sets
class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws from all global generators, as data sets of other projects do."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(3, 12, 24) * random.random() * np.random.rand()
        lr = (noise + index / 10).clamp(0, 1)
        return lr, lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_a_list_and_a_data_set_of_torch_train_alike() -> None:
    data = pairs()
    stacked = TensorDataset(*(torch.stack(images) for images in zip(*data, strict=True)))
    models = [model_of("spatial") for _ in range(2)]
    before = state_of(models[0])
    for model, given in zip(models, (data, stacked), strict=True):
        train(model, given, PLAIN)
    assert equal(*map(state_of, models))
    assert not equal(before, state_of(models[0]))


def test_views_are_measured_and_must_fit() -> None:
    train(model_of("stereo"), pairs(views=2), replace(PLAIN, steps=1))
    with pytest.raises(TrainingError, match="2 views"):
        train(model_of("stereo"), pairs(), PLAIN)


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    data = [(torch.full((3, 2, 2), n / 10), torch.full((3, 4, 4), n / 10)) for n in range(7)]
    source = source_of(data, 3)
    epochs = [[round(source[e * 7 + i][0].mean().item() * 10) for i in range(7)] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(7)]] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (source.scale, source.crop_px, source.views) == (2, (4, 4), 1)


def test_a_sample_depends_on_its_number_alone_and_nobodys_random_numbers_are_touched() -> None:
    source = Finite(Augmented(), 0)
    first = source[9][0]
    before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy())
    source[3]
    assert torch.equal(source[9][0], first)
    assert not torch.equal(source[8 + 4][0], source[8 + 8][0])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_on_a_data_set_that_was_stopped_ends_as_one_that_was_not(workers: int, tmp_path: Path) -> None:
    intact, stopped = model_of("spatial"), model_of("spatial")
    train(intact, Augmented(), SETTINGS)
    settings = replace(SETTINGS, workers=workers)
    with pytest.raises(Stop):
        train(stopped, Augmented(), settings, out=tmp_path, report=stop_after(3))
    again = model_of("spatial")
    assert train(again, Augmented(), settings, out=tmp_path, resume=True).resumed_at == 2
    assert equal(state_of(intact), state_of(again))
    with pytest.raises(TrainingError, match="another run") as caught:
        train(model_of("spatial"), pairs(4), settings, out=tmp_path, resume=True)
    assert any("some samples" in problem for problem in caught.value.problems)


def pair(**change: Any) -> list[Any]:
    (good,) = pairs(1)
    return [(change.get("lr", good[0]), change.get("hr", good[1]))]


REFUSED: dict[str, tuple[Any, str]] = {
    "empty": ([], "empty"),
    "no pair": ([torch.rand(3, 4, 4)], "a Tensor"),
    "three": ([(1, 2, 3)], "3 items"),
    "dict": ([{"lq": 1, "gt": 2}], "a dict"),
    "arrays": (pair(lr=np.zeros((3, 12, 24))), "lr is a ndarray"),
    "bytes": (pair(lr=torch.zeros(3, 12, 24, dtype=torch.uint8)), "uint8"),
    "0..255": (pair(hr=torch.rand(3, 24, 48) * 255), "divide an image 0..255 by 255"),
    "NaN": (pair(lr=torch.full((3, 12, 24), float("nan"))), "NaN"),
    "flat": (pair(lr=torch.rand(12, 24)), r"lr has shape \(12, 24\)"),
    "no multiple": (pair(hr=torch.rand(3, 25, 48)), "times one whole number"),
    "views": (pair(hr=torch.rand(2, 3, 24, 48)), "lr has shape"),
    "loader": (DataLoader(pairs()), "not a DataLoader"),  # type: ignore[arg-type]
    "number": (7, "a int is not a data set"),
    "other scale": ([*pairs(1), (torch.rand(3, 12, 24), torch.rand(3, 36, 72))], "must agree"),
    "sizes": ([*pairs(2), *pairs(2, (16, 24))], "batch = 1"),
    "channels": ([(torch.rand(1, 12, 24), torch.rand(1, 24, 48))], "3 channels, the crops have 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_of_pairs_is_refused_in_words(case: str) -> None:
    data, says = REFUSED[case]
    with pytest.raises(TrainingError, match=says):
        train(model_of("spatial"), data, PLAIN)


def test_samples_of_several_sizes_are_trained_one_by_one() -> None:
    data = [*pairs(2), *pairs(2, (16, 24))]
    assert train(model_of("spatial"), data, replace(PLAIN, batch=1)).steps == 4


class Broken(Augmented):
    """Raises for a sample that is not the first."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 2:
            raise self.error
        return super().__getitem__(index)


class BrokenCrops(Samples):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 4:
            raise KeyError("bad")
        return super().__getitem__(index)


@pytest.mark.parametrize("error", [KeyError("bad"), IndexError("bad"), OSError("bad"), StopIteration("bad")])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_a_data_set_names_the_sample(error: Exception, workers: int) -> None:
    with pytest.raises(TrainingError, match=rf"step \d.*sample 2 of .*{type(error).__name__}: .?bad") as caught:
        train(model_of("spatial"), Broken(error), replace(PLAIN, workers=workers))
    assert "Traceback" not in str(caught.value)


def test_an_error_of_a_source_of_crops_names_the_crop(tmp_path: Path) -> None:
    settings = replace(PLAIN, save_every_steps=1)
    with pytest.raises(TrainingError, match=r"step-00000001.*crop 4 cannot be read: KeyError: 'bad'"):
        train(model_of("full"), BrokenCrops(), settings, out=tmp_path)


def test_any_of_sixteen_samples_tells_a_data_set_from_another(tmp_path: Path) -> None:
    data = pairs(6)
    train(model_of("spatial"), data, replace(CONSTANT, steps=2), out=tmp_path)
    for n in range(6):
        other = [pair if i != n else pairs(1)[0] for i, pair in enumerate(data)]
        with pytest.raises(TrainingError, match="another run"):
            train(model_of("spatial"), other, CONSTANT, out=tmp_path, resume=True)
    facts = Finite(pairs(40), 0).facts()["some samples"]
    assert len(facts) == 2 * 16


# --- Arguments of wrong types
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "loss text": ({"loss": "l1"}, "loss must be a function, not 'l1'; .*settings.loss"),
    "loss class": ({"loss": nn.L1Loss}, "not the class L1Loss"),
    "optimizer text": ({"optimizer": "adam"}, "settings.optimizer"),
    "optimizer made": (
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])},
        "optimizer must be a function, not a SGD",
    ),
    "optimizer fails": ({"optimizer": lambda groups: 1 / 0}, "optimizer= failed: ZeroDivisionError"),
    "validate": ({"validate": 3}, "validate must be a function, not 3"),
    "report": ({"report": "x"}, "report must be a function"),
    "callback": ({"callbacks": [print]}, r"callbacks\[0\] must be a Callback"),
    "callbacks": ({"callbacks": 7}, "callbacks must be a list of Callback, not 7"),
    "out": ({"out": 7}, "out must be the path of a folder, not 7"),
    "out with NUL": ({"out": "a\0b"}, "out must be the path"),
    "resume": ({"resume": "no"}, "resume must be True or False, not 'no'"),
    "settings": ({"settings": {"steps": 3}}, "settings must be a TrainSettings .* not a dict"),
    "loss fails": ({"loss": lambda output, target: output.sub_(target).abs().mean()}, "loss .* failed: RuntimeError"),
    "complex loss": (
        {"loss": lambda output, target: torch.fft.fft2(output - target).mean()},
        "must return a real float, not complex64",
    ),
    "integer loss": ({"loss": lambda output, target: torch.tensor(3)}, "must return a real float, not int64"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_train_cannot_use_are_refused_in_words(case: str) -> None:
    options, says = ARGUMENTS[case]
    settings = options.get("settings", PLAIN)
    with pytest.raises(TrainingError, match=rf"(?s){says}"):
        go("full", settings, **{key: value for key, value in options.items() if key != "settings"})


def test_a_loss_without_a_gradient_is_refused_for_a_network_too() -> None:
    with pytest.raises(TrainingError, match="get no gradient"):
        go("whole", PLAIN, loss=lambda output, target: (output.detach() - target).abs().mean())


@pytest.mark.parametrize("value", [np.float32(2), torch.tensor(2.0), np.array(2.0), 2, torch.tensor([2.0])])
def test_validate_may_return_a_number_of_numpy_and_of_torch(value: Any, tmp_path: Path) -> None:
    settings = replace(PLAIN, steps=1, validate_every_steps=1)
    assert go("full", settings, validate=lambda model: value, out=tmp_path)[1].best == 2.0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "not None"),
        ("2", "not '2'"),
        (torch.zeros(2), r"not a tensor of shape \(2,\)"),
        (1j, "not a complex"),
        (float("inf"), "is infinite"),
    ],
)
def test_what_validate_may_not_return_is_refused(value: Any, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        go("full", replace(PLAIN, validate_every_steps=1), validate=lambda model: value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_dtype_gets_its_images_in_it(dtype: torch.dtype) -> None:
    model = model_of("spatial").to(dtype)
    before = state_of(model)
    train(model, pairs(), PLAIN)
    assert not equal(before, state_of(model))


# --- Losses
def test_ssim_is_that_of_scikit_image() -> None:
    target = torch.rand(2, 3, 20, 24, dtype=torch.float64)
    output = (target + 0.1 * torch.randn_like(target)).clamp(0, 1)
    expected = []
    for x, y in zip(output.numpy(), target.numpy(), strict=True):
        maps = structural_similarity(
            x, y, channel_axis=0, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True
        )[1]
        expected.append(maps[:, 5:-5, 5:-5].mean())
    assert image_loss("ssim", output, target).item() == pytest.approx(1 - np.mean(expected), abs=1e-9)
    assert image_loss("ssim", target, target).item() == pytest.approx(0, abs=1e-9)
    with pytest.raises(TrainingError, match="11 px"):
        image_loss("ssim", output[..., :8], target[..., :8])


def test_fft_is_the_mean_difference_of_real_and_imaginary_parts_and_sums_are_weighted() -> None:
    output, target = torch.rand(2, 3, 8, 10, requires_grad=True), torch.rand(2, 3, 8, 10)
    a, b = (np.fft.fft2(image.detach().numpy()) for image in (output, target))
    fft = (np.abs(a.real - b.real).mean() + np.abs(a.imag - b.imag).mean()) / 2
    assert image_loss("fft", output, target).item() == pytest.approx(fft, rel=1e-5)
    total = image_loss("2*l1 + 0.1 * fft", output, target)
    assert total.item() == pytest.approx(2 * image_loss("l1", output, target).item() + 0.1 * fft, rel=1e-5)
    total.backward()
    assert output.grad is not None
    assert output.grad.any()


@pytest.mark.parametrize(
    "text", ["l2", "l1 + l1", "0*l1", "-1*l1", "x*l1", "l1 +", "", "nan*l1", "mypackage.losses:perceptual"]
)
def test_losses_that_are_no_sum_of_known_ones_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="loss"):
        TrainSettings(loss=text)


def test_weights_may_be_written_as_floats() -> None:
    assert loss_terms("1e+1*l1 + 5e-2*ssim") == {"l1": 10.0, "ssim": 0.05}


def own_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def other_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


class Perceptual(nn.Module):
    """A module with weights, which are never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.net(output) - self.net(target)).abs().mean()


def test_a_loss_of_ones_own_is_what_is_minimised_and_is_part_of_the_run(tmp_path: Path) -> None:
    named, own = go("spatial", PLAIN)[0], go("spatial", PLAIN, loss=own_loss, out=tmp_path / "own")[0]
    assert equal(state_of(named), state_of(own))
    assert lowpeft.read_adapter(tmp_path / "own").facts["own loss"].endswith("test_train_own.own_loss")
    longer = replace(PLAIN, save_every_steps=1)
    with pytest.raises(Stop):
        go("spatial", longer, loss=own_loss, out=tmp_path / "run", report=stop_after(2))
    with pytest.raises(TrainingError) as caught:
        go("spatial", longer, loss=other_loss, out=tmp_path / "run", resume=True)
    assert "own loss" in caught.value.problems[0]


def weighted(output: Tensor, target: Tensor, weight: float) -> Tensor:
    return own_loss(output, target) * weight


def test_the_arguments_of_a_partial_are_part_of_its_name(tmp_path: Path) -> None:
    go("full", replace(CONSTANT, steps=2), loss=functools.partial(weighted, weight=1.0), out=tmp_path)
    with pytest.raises(TrainingError, match="another run"):
        go("full", CONSTANT, loss=functools.partial(weighted, weight=100.0), out=tmp_path, resume=True)
    go("full", CONSTANT, loss=functools.partial(weighted, weight=1.0), out=tmp_path, resume=True)
    long = [qualified_name(functools.partial(weighted, weight=[n] * 1000)) for n in (1, 2)]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200
    assert qualified_name(functools.partial(weighted, weight=own_loss)).endswith("test_train_own.own_loss)")


def test_a_loss_that_is_a_module_is_not_trained() -> None:
    loss = Perceptual()
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    model, done = go("spatial", PLAIN, loss=loss)
    assert done.parameters == sum(p.numel() for p in trained_parameters(model).values())
    assert equal(before, loss.state_dict())


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"must return a tensor of one number, not shape \(3,"):
        go("spatial", PLAIN, loss=lambda output, target: output - target)


# --- Optimisers and rates
class Odd(torch.optim.SGD):
    """Keeps a number, which changes, in its state and in its groups."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            for p in group["params"]:
                self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
                if p.grad is not None:
                    p.grad.mul_(1 + 0.1 * self.state[p]["seen"] + 0.01 * group["calls"])
        super().step()


def odd(groups: Any) -> torch.optim.Optimizer:
    for group in groups:
        group["calls"] = 0
    return Odd(groups, lr=1.0, momentum=0.9)


def adafactor(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups)


OPTIMIZERS: dict[str, tuple[TrainSettings, dict[str, Any]]] = {
    **{name: (replace(SETTINGS, optimizer=name, weight_decay=0.1), {}) for name in ("adam", "nadam", "sgd")},
    "own": (SETTINGS, {"optimizer": odd}),
    "adafactor": (SETTINGS, {"optimizer": adafactor}),
    "adagrad": (SETTINGS, {"optimizer": torch.optim.Adagrad}),  # has its state before the first step
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("adam", "nadam") else n for n in OPTIMIZERS]
)
def test_the_state_of_any_optimiser_is_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    settings, more = OPTIMIZERS[name]
    intact, _ = go("full", settings, **more)
    assert not equal(state_of(intact), state_of(go("full", SETTINGS)[0]))
    with pytest.raises(Stop):
        go("full", settings, **more, out=tmp_path, report=stop_after(5))
    again, done = go("full", settings, **more, out=tmp_path, resume=True)
    assert done.resumed_at == 4
    assert equal(state_of(intact), state_of(again))
    with pytest.raises(TrainingError, match="another run"):
        go("full", replace(SETTINGS, optimizer="adamw" if name != "own" else "sgd"), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("thing", object(), "object"),
        ("my buf", 1, "the key 'my buf'"),
        ("a.b", 1, "the key 'a.b'"),
        (3, 1, "the key 3"),
        (None, {"n": 1}, "under 'glob'"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused_at_the_first_step(
    key: Any, value: Any, says: str, tmp_path: Path
) -> None:
    class Strange(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            state: Any = self.state
            for group in self.param_groups:
                at = "glob" if key is None else group["params"][0]
                state[at] = value if key is None else {key: value}

    with pytest.raises(TrainingError, match=r"step 1\b.*state of Strange") as caught:
        go("full", SETTINGS, optimizer=lambda groups: Strange(groups, lr=1.0), out=tmp_path)
    assert says in caught.value.problems[0]
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda groups: 7, "not a int"),
        (lambda groups: torch.optim.SGD([nn.Parameter(torch.zeros(1))]), "1 tensors"),
        (
            lambda groups: torch.optim.SparseAdam([p for g in groups for p in g["params"]]),
            "step of .*SparseAdam failed",
        ),
        (lambda groups: torch.optim.LBFGS([p for g in groups for p in g["params"]]), "closure"),
    ],
)
def test_what_is_no_optimiser_of_the_trained_tensors_is_refused(make: Any, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        go("full", SETTINGS, optimizer=make)


def test_rates_are_factors_by_pattern_and_by_kind_which_multiply() -> None:
    seen: dict[str, float] = {}

    def make(groups: Any) -> torch.optim.Optimizer:
        seen.update({name: g["initial_lr"] for g in groups for n, p in names for name in [n] if _in(p, g["params"])})
        return torch.optim.AdamW(groups)

    model = model_of("stereo")
    names = [*trained_parameters(model).items()]
    kinds = {adapter.kind for adapter in lowpeft.load_recipe("stereo").adapters}
    assert "spatial" in kinds
    train(model, Samples(), replace(PLAIN, steps=1, rates=("spatial=2", "**.bias=0.5")), optimizer=make)
    assert {1.0, 2.0, 0.5} <= set(seen.values())
    assert all(rate in (0.5, 1.0) for name, rate in seen.items() if name.endswith("bias")), seen
    with pytest.raises(TrainingError, match="rates name") as caught:
        train(model_of("stereo"), Samples(), replace(PLAIN, rates=("nothing.here=2", "lora=3")))
    assert len(caught.value.problems) == 2
    for bad in ("stereo", "stereo=0", "=2", "stereo=x", "a..b=2"):
        with pytest.raises(PlanError, match="not valid"):
            replace(PLAIN, rates=(bad,))


def _in(parameter: nn.Parameter, members: list[nn.Parameter]) -> bool:
    return any(parameter is member for member in members)
