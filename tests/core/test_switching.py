"""Which adapters act: `using`, `disabled`, `set_strength`, strengths by image, repeated forwards, captured forwards."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import os
import pickle
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowpeft
from lowpeft import LoRAConfig, MultiViewModel, PlanError, SpatialConfig, VeRAConfig
from lowpeft.kinds import kinds
from states import assert_same_tensors, randomise_adapters, run_acceptance_script, tensors
from stress import stress, switched
from tiers import SORTS, by_default
from zoo import build, image, image_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")


@pytest.fixture(scope="module")
def shared() -> nn.Module:
    """SwinIR with `a` and `b` on features and `low` on weights; tests leave it as it is."""
    return switched("swinir")


@pytest.fixture
def model(shared: nn.Module) -> nn.Module:
    return copy.deepcopy(shared)


X = image("swinir", 2)


@torch.no_grad()
def out(model: nn.Module, x: Tensor = X) -> Tensor:
    return model(x)


def under(model: nn.Module, strengths: Mapping[str, Any], x: Tensor = X) -> Tensor:
    with lowpeft.using(model, strengths):
        return out(model, x)


# --- what is in force ------------------------------------------------------------------------------------------------


def test_a_block_replaces_the_one_around_it_and_ends_with_it(shared: nn.Module) -> None:
    default, a, b = out(shared), under(shared, {"a": 1.0}), under(shared, {"b": 0.5})
    with lowpeft.using(shared, {"a": 1.0}):
        with lowpeft.using(shared, {"b": 0.5}):
            assert torch.equal(out(shared), b)
            with lowpeft.disabled(shared):
                assert torch.equal(out(shared), out(build("swinir")))
        assert torch.equal(out(shared), a)
    assert torch.equal(out(shared), default)
    assert not torch.equal(a, default)


def test_the_default_is_every_adapter_at_full_strength_in_any_order(shared: nn.Module) -> None:
    assert torch.equal(under(shared, {"low": 1, "b": 1, "a": 1}), out(shared))
    assert torch.equal(under(shared, {"b": 0.5, "a": 0.2}), under(shared, {"a": 0.2, "b": 0.5, "low": 0.0}))


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_blocks_may_end_in_any_order(shared: nn.Module, first_ends_first: bool) -> None:
    default, second = out(shared), under(shared, {"b": 1.0})
    one, two = lowpeft.using(shared, {"a": 1.0}), lowpeft.using(shared, {"b": 1.0})
    one.__enter__()
    two.__enter__()
    assert torch.equal(out(shared), second)
    for block in (one, two) if first_ends_first else (two, one):
        block.__exit__(None, None, None)
    assert torch.equal(out(shared), default)


def test_a_block_that_is_gone_without_having_ended_is_over(shared: nn.Module) -> None:
    default = out(shared)
    lowpeft.using(shared, {"a": 1.0}).__enter__()  # as an interruption just before `__exit__` would leave it
    assert torch.equal(out(shared), default)


def test_one_block_may_be_entered_by_many_and_again(shared: nn.Module) -> None:
    wanted, block, found = under(shared, {"a": 0.5}), lowpeft.using(shared, {"a": 0.5}), []

    def enter() -> None:
        with block, block:
            found.append(out(shared))

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    enter()
    for thread in threads:
        thread.join()
    assert all(torch.equal(f, wanted) for f in found)
    assert len(found) == 5


def test_a_thread_starts_with_the_default_and_a_task_with_what_it_was_started_in(shared: nn.Module) -> None:
    default, a, b, found = out(shared), under(shared, {"a": 1.0}), under(shared, {"b": 1.0}), {}

    async def look(name: str) -> None:
        await asyncio.sleep(0)
        found[name] = out(shared)

    async def tasks() -> None:
        with lowpeft.using(shared, {"a": 1.0}):
            inherited = asyncio.create_task(look("inherited"))
            with lowpeft.using(shared, {"b": 1.0}):
                await look("own")
        await inherited
        await look("after")

    with lowpeft.using(shared, {"a": 1.0}):
        thread = threading.Thread(target=contextvars.Context().run, args=(lambda: found.update(thread=out(shared)),))
        thread.start()
        thread.join()
    asyncio.run(tasks())
    assert torch.equal(found["thread"], default)
    assert torch.equal(found["inherited"], a)
    assert torch.equal(found["own"], b)
    assert torch.equal(found["after"], default)


def test_settings_of_two_networks_do_not_meet(shared: nn.Module, model: nn.Module) -> None:
    default, a = out(shared), under(shared, {"a": 1.0})
    with lowpeft.using(shared, {"a": 1.0}):
        assert torch.equal(out(model), default)
        with lowpeft.disabled(model):
            assert torch.equal(out(shared), a)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_made_within_a_block_has_the_default(model: nn.Module, twin_of: Callable[[Any], Any]) -> None:
    lowpeft.set_strength(model, 0.5, name="a")
    default = out(model)
    with lowpeft.disabled(model):
        twin = twin_of(model)
    assert torch.equal(out(twin), default)
    lowpeft.set_strength(twin, 1.0)
    assert torch.equal(out(model), default)
    assert not torch.equal(out(twin), default)


def test_one_forward_has_one_setting(model: nn.Module) -> None:
    whole = out(model)

    def switch(module: nn.Module, args: object, output: object) -> None:
        lowpeft.set_strength(model, 0.0)

    handle = model.layers[0].register_forward_hook(switch)
    assert torch.equal(out(model), whole)
    handle.remove()
    assert torch.equal(out(model), out(build("swinir")))


def test_disabling_one_leaves_the_others_as_they_are(shared: nn.Module) -> None:
    with lowpeft.using(shared, {"a": 0.5, "b": 1.0}), lowpeft.disabled(shared, name="b"):
        assert torch.equal(out(shared), under(shared, {"a": 0.5}))


def test_wrappers_are_seen_through(shared: nn.Module) -> None:
    wrapped = nn.DataParallel(shared)
    with lowpeft.using(wrapped, {"a": 1.0}):
        assert torch.equal(out(wrapped), under(shared, {"a": 1.0}))


def test_a_replica_has_the_setting_of_the_thread_that_made_it(shared: nn.Module) -> None:
    with lowpeft.using(shared, {"a": 1.0}):
        replica = shared._replicate_for_data_parallel()
        for name, child in shared._modules.items():
            replica._modules[name] = child
    assert torch.equal(out(replica), under(shared, {"a": 1.0}))
    with lowpeft.using(shared, {"a": [1.0, 0.0]}), pytest.raises(PlanError, match="DataParallel"):
        shared._replicate_for_data_parallel()


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({"c": 1.0}, "'c'"),
        ({1: 1.0}, " 1;"),
        ({"a": 1.5}, r"0\.\.1"),
        ({"a": True}, r"0\.\.1"),
        ({"a": "1"}, r"0\.\.1"),
        ({"a": [0.5, 2.0]}, r"0\.\.1"),
        ({"a": [[0.5]]}, r"0\.\.1"),
        ({"a": torch.ones(2, 1)}, r"0\.\.1"),
        ({"a": []}, "empty"),
        ({"a": [0.1, 0.2], "b": [0.1, 0.2, 0.3]}, "2 and 3"),
        ("a", "not 'a'"),
        ({"a": torch.ones(2, requires_grad=True)}, "detach"),
    ],
)
def test_settings_that_mean_nothing_are_refused(shared: nn.Module, strengths: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        lowpeft.using(shared, strengths)


def test_a_block_whose_adapter_is_gone_says_so(model: nn.Module) -> None:
    a = under(model, {"a": 1.0})
    with lowpeft.using(model, {"a": 1.0, "b": 0.0}):
        lowpeft.delete(model, "b")
        with pytest.raises(PlanError, match=r"^b .* attached: a, low$"):
            out(model)
        with lowpeft.using(model, {"a": 1.0}):
            assert torch.equal(out(model), a)


def test_what_is_merged_in_a_block_stays_in_force(model: nn.Module) -> None:
    with lowpeft.using(model, {"a": 0.5, "low": 0.25}):
        expected = out(model)
        lowpeft.merge(model, name="low")
        torch.testing.assert_close(out(model), expected, rtol=1e-4, atol=1e-5)
    assert lowpeft.list_adapters(model) == ["a", "b"]


def test_what_another_thread_merges_is_refused_in_a_block_that_names_it(model: nn.Module) -> None:
    lowpeft.set_strength(model, 0.5)
    with lowpeft.using(model, {"low": 1.0}):
        thread = threading.Thread(target=contextvars.Context().run, args=(lambda: lowpeft.merge(model, name="low"),))
        thread.start()
        thread.join()
        with pytest.raises(PlanError, match=r"^low "):
            out(model)


def test_a_block_outlives_the_adapter_that_it_names(model: nn.Module, tmp_path: Path) -> None:
    lowpeft.save_adapter(model, tmp_path, name="a")
    wanted = under(model, {"a": 0.3})
    with lowpeft.using(model, {"a": 0.3}):
        lowpeft.restore(model)
        assert torch.equal(out(model), out(build("swinir")))
        lowpeft.load_adapter(model, tmp_path, name="a")
        assert torch.equal(out(model), wanted)


def test_a_model_of_views_without_its_mixing_adapter_says_so() -> None:
    stereo = lowpeft.adapt(build("edsr"), "stereo", name="st")
    lowpeft.adapt(stereo, "spatial", name="rain")
    lowpeft.delete(stereo, "st")
    with pytest.raises(PlanError, match="2 views"):
        stereo(image("edsr"), image("edsr"))
    assert lowpeft.list_adapters(stereo) == ["rain"]


def test_merging_with_strengths_by_image_is_refused(model: nn.Module) -> None:
    before = tensors(model)
    with lowpeft.using(model, {"low": [0.5, 1.0]}), pytest.raises(PlanError, match="strengths by image"):
        lowpeft.merge(model)
    assert_same_tensors(tensors(model), before)


def test_the_report_of_a_merge_lists_every_part_that_stays(tmp_path: Path) -> None:
    """A shared part stays with the adapter that is off, though an adapter of the same kind is merged."""
    root = build("edsr")
    for name, path in (("on", "body.0.body.0"), ("off", "body.1.body.0")):
        lowpeft.adapt(root, VeRAConfig(target=path, rank=2), name=name)
    randomise_adapters(root)
    with lowpeft.using(root, {"on": 1.0}):
        report = lowpeft.merge(root)
    assert report.merged == ("body.0.body.0.vera_weight",)
    assert report.kept == ("vera_root", "body.1.body.0.vera_weight")
    assert {n.rpartition(".")[0] for n in lowpeft.adapter_state_dict(root, name="off")} == set(report.kept)


# --- several adapters on one tensor ----------------------------------------------------------------------------------


OF_WEIGHTS = [
    k.name for k in kinds() if k.on_weights and any("weight" in g for g in k.module.groups(nn.Conv2d(1, 1, 1)))
]


@pytest.mark.parametrize("kind", OF_WEIGHTS)
def test_changes_of_one_weight_are_each_of_the_frozen_one_and_add(kind: str) -> None:
    config = {k.name: k.config for k in kinds()}[kind]
    root = build("edsr").double()
    for name in "ab":
        lowpeft.adapt(root, config(target="body.0.body.0"), name=name)
    randomise_adapters(root, std=0.3)
    layer = root.get_submodule("body.0.body.0")

    def weight(strengths: Mapping[str, float]) -> Tensor:
        with lowpeft.using(root, strengths), torch.no_grad():
            return layer.weight.clone()

    base = weight({})
    sums = base + (weight({"a": 1}) - base) * 0.3 + (weight({"b": 1}) - base) * 0.6
    torch.testing.assert_close(weight({"a": 0.3, "b": 0.6}), sums, rtol=0, atol=1e-12)
    assert not torch.allclose(sums, base)


# --- strengths by image ----------------------------------------------------------------------------------------------

TARGETS: dict[str, dict[str, Any]] = {k.name: {} for k in kinds() if not k.on_weights or k.name == "norm"}


def by_image_model(name: str, kind: str) -> nn.Module:
    config = {k.name: k.config for k in kinds()}[kind]
    target = "**.qkv" if name in ("hat", "swinir") else "body.**"
    root = lowpeft.adapt(build(name), config(**TARGETS.get(kind, {"target": target})), name="a")
    lowpeft.adapt(root, SpatialConfig(), name="b")
    return randomise_adapters(root, std=0.2)


@torch.no_grad()
def scenes_out(model: nn.Module, scenes: Tensor) -> Tensor:
    """Outputs by scene, from scenes (N,V,C,H,W)."""
    if isinstance(model, MultiViewModel):
        return model(scenes.clone())
    return image_of(model(scenes[:, 0].clone()))


@pytest.mark.parametrize("kind", by_default(SORTS, [k.name for k in kinds()]))
def test_strengths_by_image_are_those_of_single_images(kind: str) -> None:
    model = by_image_model("hat", kind)
    views = model.views if isinstance(model, MultiViewModel) else 1
    scenes = image("hat", 4 * views).unflatten(0, (4, views))
    strengths = {"a": [0.0, 0.3, 0.3, 1.0], "b": [0.5, 0.5, 1.0, 0.0]}
    with lowpeft.using(model, strengths):
        together = scenes_out(model, scenes)
    for i in range(4):
        with lowpeft.using(model, {name: numbers[i] for name, numbers in strengths.items()}):
            alone = scenes_out(model, scenes[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)
    with lowpeft.disabled(model):
        base = scenes_out(model, scenes)
    assert [torch.allclose(b, t, atol=1e-5) for b, t in zip(base, together, strict=True)] == [False] * 4
    equal = [torch.full((4,), 0.3, dtype=torch.float64), [numpy.float64(0.7)] * 4]
    with lowpeft.using(model, dict(zip("ab", equal, strict=True))):
        one = scenes_out(model, scenes)
    with lowpeft.using(model, {"a": 0.3, "b": 0.7}):
        assert torch.equal(one, scenes_out(model, scenes))


def test_gradients_by_image_are_those_of_single_images() -> None:
    model = by_image_model("hat", "lora").double()
    x = image("hat", 2).double()

    def gradients(calls: list[tuple[Tensor, Mapping[str, Any]]]) -> dict[str, Tensor]:
        model.zero_grad()
        for part, strengths in calls:
            with lowpeft.using(model, strengths):
                model(part).square().sum().backward()
        return {n: p.grad.clone() for n, p in lowpeft.adapter_parameters(model) if p.grad is not None}

    together = gradients([(x, {"a": [0.2, 1.0], "b": [0.5, 0.1]})])
    alone = gradients([(x[:1], {"a": 0.2, "b": 0.5}), (x[1:], {"a": 1.0, "b": 0.1})])
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-8, atol=1e-8)


def test_windows_and_tables_of_outputs_are_run_in_groups() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, gain: Tensor, *, add: Tensor | None = None) -> dict[str, Any]:
            y = self.conv(x) * gain[:, None, None, None] + (0 if add is None else add)
            return {"image": y, "pair": (y.mean((1, 2, 3)), "text"), "none": None}

    torch.manual_seed(0)
    model = lowpeft.adapt(lowpeft.describe(Several(), scale=1, channels=3), LoRAConfig(target="conv", rank=1), name="a")
    randomise_adapters(model)
    x, gain, add = torch.rand(3, 3, 4, 4), torch.rand(3), torch.rand(3, 1, 1, 1)
    with torch.no_grad():
        with lowpeft.using(model, {"a": [0.2, 1.0, 0.2]}):
            found = model(x, gain, add=add)
        for i, strength in enumerate([0.2, 1.0, 0.2]):
            with lowpeft.using(model, {"a": strength}):
                wanted = model(x[i : i + 1], gain[i : i + 1], add=add[i : i + 1])
            torch.testing.assert_close(found["image"][i], wanted["image"][0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found["pair"][0][i], wanted["pair"][0][0], rtol=1e-6, atol=1e-6)
    assert found["pair"][1] == "text"
    assert found["none"] is None


def test_outputs_that_cannot_be_put_together_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean()

    facts = lowpeft.describe(Mean(), scale=1, channels=3, size_multiple=1)
    model = randomise_adapters(lowpeft.adapt(facts, LoRAConfig(target="conv", rank=1), name="a"))
    with lowpeft.using(model, {"a": [0.1, 1.0]}), pytest.raises(PlanError, match="groups"):
        model(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_images_is_refused(shared: nn.Module, count: int) -> None:
    with lowpeft.using(shared, {"a": [0.1, 1.0]}), pytest.raises(PlanError, match=f"2 images,.* {count}$"):
        out(shared, image("swinir", count))


def test_a_network_that_takes_its_batch_apart_refuses_strengths_by_image() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.conv(half) for half in x.split(2)])

    config = SpatialConfig(target="conv", reduction=1)
    model = randomise_adapters(lowpeft.adapt(lowpeft.describe(Halves(), scale=1, channels=3), config, name="a"))
    with lowpeft.using(model, {"a": [0.1, 1.0, 0.5, 0.2]}), pytest.raises(PlanError, match=r"4 images,.* 2:"):
        model(torch.rand(4, 3, 4, 4))


# --- forwards that checkpointing repeats -----------------------------------------------------------------------------

REGIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "inside": lambda m, x: m(x),
    "whole": lambda m, x: checkpoint(m, x, use_reentrant=False),
    "whole, reentrant": lambda m, x: checkpoint(m, x, use_reentrant=True),
    "nested": lambda m, x: checkpoint(lambda z: checkpoint(m, z, use_reentrant=False) + 0, x, use_reentrant=False),
    "nested, reentrant": lambda m, x: checkpoint(
        lambda z: checkpoint(m, z, use_reentrant=True) + 0, x, use_reentrant=True
    ),
}


def gradients(
    model: nn.Module, region: Callable[[nn.Module, Tensor], Tensor], *, elsewhere: bool, by_image: bool = False
) -> dict[str, Tensor]:
    """Of a loss of two forwards in two settings, from a backward pass in a third one, in this thread or another."""
    model.zero_grad()
    x = X.double().requires_grad_()
    with lowpeft.using(model, {"a": [0.3, 0.6] if by_image else 0.3, "low": 0.7}):
        one = region(model, x)
    with lowpeft.using(model, {"b": 1.0, "low": 0.2}):
        two = region(model, x)
    loss = one.square().sum() + 3 * two.square().sum()

    def backward() -> None:
        with lowpeft.using(model, {"b": 0.9}):
            loss.backward()

    if elsewhere:
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
    else:
        backward()
    return {n: p.grad.clone() for n, p in lowpeft.adapter_parameters(model) if p.grad is not None}


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant parameter")  # spandrel's call
@pytest.mark.parametrize(
    ("region", "elsewhere"),
    [
        # The harder place by default, and the one that is nested in the other.
        pytest.param(
            region,
            elsewhere,
            id=f"{region}-{'in another thread' if elsewhere else 'here'}",
            marks=[pytest.mark.slow] * (not elsewhere and region != "nested, reentrant"),
        )
        for region in REGIONS
        for elsewhere in (False, True)
    ],
)
def test_a_repeated_forward_has_the_setting_of_the_one_that_it_repeats(
    model: nn.Module, region: str, elsewhere: bool
) -> None:
    model.double()
    wanted = gradients(model, REGIONS["inside"], elsewhere=False, by_image=elsewhere)
    for module in model.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = region == "inside"
    found = gradients(model, REGIONS[region], elsewhere=elsewhere, by_image=elsewhere)
    assert found.keys() == wanted.keys()
    assert len(wanted) > 10
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant parameter")
def test_a_default_that_changes_before_backward_does_not_change_a_repeated_forward(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = True

    def gradients(*, changed: bool) -> list[Tensor]:
        model.zero_grad()
        loss = model(X).square().sum()
        if changed:
            lowpeft.set_strength(model, 0.1)
        loss.backward()
        lowpeft.set_strength(model, 1.0)
        return [p.grad.clone() for _, p in lowpeft.adapter_parameters(model)]

    for wanted, found in zip(gradients(changed=False), gradients(changed=True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("region", REGIONS)
def test_a_repeated_forward_in_groups_of_images_is_repeated_in_them(model: nn.Module, region: str) -> None:
    model.double()

    def gradients(call: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        with lowpeft.using(model, {"a": [0.1, 0.9], "low": [1.0, 0.2]}):
            loss = call(model, X.double().requires_grad_()).square().sum()
        loss.backward()
        return {n: p.grad.clone() for n, p in lowpeft.adapter_parameters(model) if p.grad is not None}

    wanted, found = gradients(REGIONS["inside"]), gradients(REGIONS[region])
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)


def test_adapters_that_are_gone_when_a_forward_is_repeated_are_named(model: nn.Module) -> None:
    with lowpeft.using(model, {"a": 0.5}):
        loss = checkpoint(model, X.clone().requires_grad_(), use_reentrant=True).sum()
    lowpeft.delete(model, "a")
    with pytest.raises(PlanError, match=r"checkpointing.* a,.*`backward`"):
        loss.backward()


@pytest.mark.parametrize("change", ["swap", "attach"])
def test_what_is_renamed_or_attached_before_backward_does_not_change_it(
    model: nn.Module, change: str, tmp_path: Path
) -> None:
    parameters = [p for _, p in lowpeft.adapter_parameters(model)]
    lowpeft.save_adapter(model, tmp_path, name="b")

    def gradients(*, changed: bool, block: Mapping[str, float] | None) -> list[Tensor | None]:
        model.zero_grad()
        with lowpeft.using(model, block) if block is not None else contextlib.nullcontext():
            loss = checkpoint(model, X.clone().requires_grad_(), use_reentrant=True).square().sum()
        if changed and change == "swap":
            for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
                lowpeft.rename(model, old, new)
        elif changed:
            lowpeft.load_adapter(model, tmp_path, name="new")
        loss.backward()
        return [None if p.grad is None else p.grad.clone() for p in parameters]

    block = {"a": 0.5, "b": 0.1} if change == "swap" else None
    wanted = gradients(changed=False, block=block)
    for gradient, found in zip(wanted, gradients(changed=True, block=block), strict=True):
        if gradient is None or found is None:
            assert gradient is found
        else:
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("region", ["whole", "whole, reentrant"])
def test_a_forward_at_the_default_is_repeated_at_it_in_any_block(model: nn.Module, region: str) -> None:
    def gradients(call: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
        model.zero_grad()
        loss = call(model, X.clone().requires_grad_()).square().sum()
        with lowpeft.disabled(model):
            loss.backward()
        return [p.grad.clone() for _, p in lowpeft.adapter_parameters(model)]

    for wanted, found in zip(gradients(REGIONS["inside"]), gradients(REGIONS[region]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_block_opened_during_backward_is_newer_than_the_forward_that_is_under_way(model: nn.Module) -> None:
    b, seen = under(model, {"b": 1.0}), []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            with lowpeft.using(model, {"b": 1.0}):
                seen.append(out(model))
            return gradient

    handle = model.conv_after_body.register_forward_hook(lambda module, args, output: Look.apply(output))
    with lowpeft.using(model, {"a": 1.0}):
        loss = model(X).sum()
    handle.remove()
    loss.backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], b)


def test_noting_a_setting_keeps_no_graph_alive(model: nn.Module) -> None:
    class Marker:
        pass

    markers: list[weakref.ref[Marker]] = []

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.marker = Marker()
            markers.append(weakref.ref(ctx.marker))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    handle = model.conv_after_body.register_forward_hook(lambda module, args, output: Mark.apply(output))
    with lowpeft.using(model, {"a": 0.5}):
        loss = model(X).sum()
    handle.remove()
    assert markers[0]() is not None
    del loss
    gc.collect()
    assert markers[0]() is None


# --- captured forwards -----------------------------------------------------------------------------------------------


@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """How many graphs `torch.compile` has made since the last call."""
    from torch._dynamo.utils import counters

    def count() -> int:
        found = counters["stats"]["unique_graphs"]
        counters.clear()
        return int(found)

    torch._dynamo.reset()
    count()
    yield count
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_network_is_not_compiled_anew_for_another_strength(graphs: Callable[[], int]) -> None:
    model, x = switched("edsr"), image("edsr", 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    def compare(strengths: Mapping[str, Any]) -> None:
        with lowpeft.using(compiled, strengths), torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-3)

    for strength in (1.0, 0.3, 0.0, 0.7):
        compare({"a": strength, "low": 1 - strength})
    assert graphs() == 1
    for strengths in ([0.2, 0.9], [0.0, 1.0]):
        compare({"a": strengths})
    assert graphs() == 1
    for strength in (0.4, 0.8, 0.0):
        lowpeft.set_strength(model, strength, name="b")
        torch.testing.assert_close(out(compiled, x), out(model, x), rtol=1e-5, atol=1e-3)
    assert graphs() == 1
    lowpeft.adapt(model, "spatial", name="other")
    compare({"a": 0.5, "low": 0.5})
    assert graphs() == 0
    with pytest.raises(Exception, match="fullgraph=True"):
        compare({"low": [0.1, 0.2]})


@pytest.mark.slow
def test_without_fullgraph_strengths_by_image_of_weights_are_run_in_groups() -> None:
    model, x = switched("edsr"), image("edsr", 2)
    with lowpeft.using(model, {"low": [0.1, 0.8]}):
        torch.testing.assert_close(out(torch.compile(model, backend="eager"), x), out(model, x), rtol=1e-5, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.slow
def test_an_exported_network_keeps_its_setting_and_says_so() -> None:
    model, x = switched("edsr"), image("edsr", 2)
    with lowpeft.using(model, {"a": 0.5}):
        wanted = out(model, x)
        with pytest.warns(UserWarning, match="a at 0.5"):
            exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(out(exported, x), wanted, rtol=1e-5, atol=1e-3)
    with lowpeft.using(model, {"low": [0.5, 0.1]}), pytest.raises(PlanError, match=r"torch\.export"):
        torch.export.export(model, (x,), strict=False)
    torch.export.export(model, (x,), strict=False)  # at full strength there is nothing to say


# --- names -----------------------------------------------------------------------------------------------------------


def test_adapters_are_listed_renamed_and_deleted(model: nn.Module) -> None:
    assert lowpeft.list_adapters(build("edsr")) == []
    assert lowpeft.list_adapters(model) == ["a", "b", "low"]
    default, b, parameters = out(model), under(model, {"b": 0.5}), dict(lowpeft.adapter_parameters(model, name="b"))
    lowpeft.rename(model, "b", "rain")
    assert lowpeft.list_adapters(model) == ["a", "rain", "low"]
    assert torch.equal(out(model), default)
    assert torch.equal(under(model, {"rain": 0.5}), b)
    renamed = dict(lowpeft.adapter_parameters(model, name="rain"))
    assert [*renamed] == [key.replace(".b.", ".rain.") for key in parameters]
    assert all(one is two for one, two in zip(renamed.values(), parameters.values(), strict=True))
    lowpeft.set_strength(model, 0.25, name="rain")
    lowpeft.rename(model, "rain", "b")
    assert torch.equal(out(model), under(model, {"a": 1, "b": 0.25, "low": 1}))
    assert lowpeft.delete(model, "b") is model
    assert lowpeft.list_adapters(model) == ["a", "low"]
    assert torch.equal(out(model), under(model, {"a": 1, "low": 1}))


@pytest.mark.parametrize(("old", "new"), [("c", "d"), ("a", "b"), ("a", "no name"), ("a", "forward"), ("a", 3)])
def test_names_that_are_none_are_refused(model: nn.Module, old: str, new: Any) -> None:
    before = out(model)
    with pytest.raises(PlanError):
        lowpeft.rename(model, old, new)
    with pytest.raises(PlanError):
        lowpeft.delete(model, "c")
    assert lowpeft.list_adapters(model) == ["a", "b", "low"]
    assert torch.equal(out(model), before)


def test_a_renamed_adapter_is_saved_and_restored_like_any(model: nn.Module, tmp_path: Any) -> None:
    lowpeft.rename(model, "a", "rain")
    lowpeft.save_adapter(model, tmp_path, name="rain")
    root = lowpeft.load_adapter(build("swinir"), tmp_path, name="again")
    assert torch.equal(out(root), under(model, {"rain": 1.0}))
    assert lowpeft.restore(model) is model
    assert torch.equal(out(model), out(build("swinir")))


# --- at once ---------------------------------------------------------------------------------------------------------


def test_a_change_from_within_a_forward_is_refused(model: nn.Module) -> None:
    default = out(model)
    handle = model.conv_after_body.register_forward_hook(lambda *args: lowpeft.restore(model))
    with pytest.raises(PlanError, match="forward"):
        out(model)
    handle.remove()
    assert torch.equal(out(model), default)


@pytest.mark.parametrize("adapted", [False, True], ids=["the first adapter", "one more"])
def test_a_change_waits_for_forwards_under_way(adapted: bool) -> None:
    root = build("edsr")
    if adapted:
        randomise_adapters(lowpeft.adapt(root, "spatial", name="a"))
    x, inside, go, found = image("edsr"), threading.Event(), threading.Event(), []
    before = out(root, x)

    def wait(*args: object) -> None:
        inside.set()
        assert go.wait(20)

    handle = root.body[0].register_forward_hook(wait)
    forward = threading.Thread(target=lambda: found.append(out(root, x)))
    forward.start()
    assert inside.wait(20)
    handle.remove()
    change = threading.Thread(target=lowpeft.adapt, args=(root, "spatial"), kwargs={"name": "new"})
    change.start()
    change.join(0.3)
    assert change.is_alive()
    go.set()
    change.join(20)
    forward.join(20)
    assert torch.equal(found[0], before)
    assert lowpeft.list_adapters(root) == ["a", "new"][not adapted :]


@pytest.mark.parametrize(
    ("how", "name"),
    by_default([("threads", "edsr"), ("tasks", "edsr")], [("threads", "edsr"), ("tasks", "edsr"), ("threads", "hat")]),
)
def test_every_result_is_that_of_its_setting_beside_threads_that_change_the_network(
    how: str, name: str, tmp_path: Any
) -> None:
    outcome = stress(tmp_path, 2.0, name=name, how=how)
    assert outcome.failures == []
    assert outcome.wrong == 0
    assert outcome.results >= 8
    assert len(outcome.beside) >= 2


@pytest.mark.slow
def test_the_acceptance_script_passes() -> None:
    run_acceptance_script("threads.py")


# --- calls from odd places -------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two convolutions; `body` may be checkpointed, and `shape` says what comes out."""

    def __init__(self, shape: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.shape = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.body(self.head(x).relu()))


def two_on(net: nn.Module) -> nn.Module:
    """The network with the random adapters `a` and `b` on its weights."""
    for name in "ab":
        known = lowpeft.describe(net, scale=1, channels=3, size_multiple=1)
        lowpeft.adapt(known, LoRAConfig(target="**", rank=1), name=name)
    return randomise_adapters(net, std=0.5)


SMALL = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("what", ["read", "another thread", "another context"])
def test_a_change_and_a_forward_that_calls_lowpeft_do_not_wait_for_each_other(what: str) -> None:
    net, inside, found = two_on(Net()), threading.Event(), []

    def hook(*args: object) -> None:
        if inside.is_set():
            return
        inside.set()
        time.sleep(0.2)
        if what == "read":
            lowpeft.adapter_state_dict(net, name="a")
            lowpeft.plan(net, LoRAConfig(target="head", rank=1), name="c")
        elif what == "another thread":
            thread = threading.Thread(target=net, args=(SMALL,))
            thread.start()
            thread.join()
        else:
            contextvars.Context().run(net, SMALL)

    net.head.register_forward_hook(hook)
    forward = threading.Thread(target=lambda: found.append(net(SMALL)), daemon=True)
    forward.start()
    assert inside.wait(20)
    change = threading.Thread(target=lowpeft.delete, args=(net, "b"), daemon=True)
    change.start()
    forward.join(20)
    change.join(20)
    assert not forward.is_alive()
    assert not change.is_alive()
    assert lowpeft.list_adapters(net) == ["a"]


def test_a_bare_network_cannot_be_adapted_from_within_its_own_forward() -> None:
    net, calls = Net(), []

    def hook(*args: object) -> None:
        calls.append(1)
        if len(calls) == 1:  # planning runs a copy of the network, hooks included
            lowpeft.adapt(net, LoRAConfig(target="body", rank=1))

    net.head.register_forward_hook(hook)
    with pytest.raises(PlanError, match="forward"):
        net(SMALL)
    assert lowpeft.list_adapters(net) == []


def test_a_task_that_was_started_in_a_forward_is_no_part_of_it_when_it_has_ended() -> None:
    net, contexts = two_on(Net()), []
    b = under(net, {"b": 1.0}, SMALL)
    net.head.register_forward_hook(lambda *args: contexts.append(contextvars.copy_context()) and None)
    under(net, {"a": 1.0}, SMALL)
    later = contexts[0]
    assert torch.equal(later.run(under, net, {"b": 1.0}, SMALL), b)
    later.run(lowpeft.rename, net, "a", "c")


def test_hooks_of_a_backward_pass_have_the_setting_around_it() -> None:
    net, seen = two_on(Net()), []
    b, default = under(net, {"b": 1.0}, SMALL), out(net, SMALL)
    for block, wanted in (({"b": 1.0}, b), (None, default)):
        with lowpeft.using(net, {"a": 0.5}):
            y = net(SMALL)
        y.register_hook(lambda gradient: seen.append(out(net, SMALL)))
        with lowpeft.using(net, block) if block else contextlib.nullcontext():
            y.sum().backward()
        assert torch.equal(seen[-1], wanted)


@dataclass
class Inner:
    image: Any


class Slotted:
    __slots__ = ("image",)

    def __init__(self, image: Any) -> None:
        self.image = image


SHAPES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (lambda y: Inner(Inner(y)), lambda o: o.image.image),
    "slots": (lambda y: Slotted([y]), lambda o: o.image[0]),
    "set": (lambda y: {y}, lambda o: next(iter(o))),
    "table": (lambda y: {"deep": ({"image": y},)}, lambda o: o["deep"][0]["image"]),
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_repeated_in_their_setting_whatever_the_network_gives(shape: str, reentrant: bool) -> None:
    make, image_in = SHAPES[shape]
    net = two_on(Net(make)).double()
    plain = net.body.forward

    def gradients(body: Callable[[Tensor], Tensor]) -> list[Tensor]:
        net.zero_grad()
        net.body.forward = body
        with lowpeft.using(net, {"a": 0.5, "b": 0.1}):
            y = image_in(net(SMALL.double().requires_grad_()))
        y.square().sum().backward()
        del net.body.forward
        return [p.grad.clone() for _, p in lowpeft.adapter_parameters(net)]

    wanted = gradients(plain)
    found = gradients(lambda x: checkpoint(plain, x, use_reentrant=reentrant))
    assert all(torch.allclose(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [({"a": 0.5}, {"b": 1.0}), ({"b": [0.2, 0.9]}, {"b": [0.9, 0.2]}), ({"b": [0.2, 0.9]}, {"b": 0.5})],
    ids=["numbers", "by image", "by image and a number"],
)
def test_calls_in_several_settings_in_one_reentrant_checkpoint_are_refused(
    outer: dict[str, float | list[float]], inner: dict[str, float | list[float]]
) -> None:
    net = two_on(Net())

    def both(x: Tensor) -> Tensor:
        y = net(x)
        with lowpeft.using(net, inner):
            return y - net(x)

    with lowpeft.using(net, outer):
        loss = checkpoint(both, SMALL.clone().requires_grad_(), use_reentrant=True).square().sum()
    with pytest.raises(PlanError, match="in several settings"):
        loss.backward()


def test_a_forked_process_has_locks_that_nobody_holds() -> None:
    net, inside, go = two_on(Net()), threading.Event(), threading.Event()
    net.head.register_forward_hook(lambda *args: inside.set() or (go.wait(20) and None))
    forward = threading.Thread(target=net, args=(SMALL,))
    forward.start()
    assert inside.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, since Python 3.12
        child = os.fork()
    if child == 0:  # pragma: no cover
        go.set()
        lowpeft.delete(net, "b")
        os._exit(0 if lowpeft.list_adapters(net) == ["a"] else 1)
    go.set()
    forward.join()
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
    assert done
    assert status == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_an_interrupted_forward_is_over() -> None:
    net = two_on(Net())
    default = out(net, SMALL)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(500):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-6 * i)
                out(net, SMALL)
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torch.equal(under(net, {"b": 1.0}, SMALL), under(copy.deepcopy(net), {"b": 1.0}, SMALL))
    assert torch.equal(out(net, SMALL), default)
    lowpeft.rename(net, "a", "c")
