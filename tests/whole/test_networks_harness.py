"""The checks of `which_networks.py` pass on a right network and fail on one that is made wrong on purpose."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import networks_checks as checks
import which_networks as harness
from lowpeft.kinds import SpatialAdapter, StereoAdapter
from networks_case import Case, State, Wrong, pieces, randomise
from networks_rows import Row


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Net(nn.Module):
    """Four residual blocks between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.body = nn.Sequential(*(Block() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


STEREO: dict[str, Any] = {"stereo": {"target": ["body.*"], "every": 2}, "spatial": {"target": ["body.*"]}}
ADAPT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "stereo": lambda network: lowpeft.adapt(network, "stereo", **STEREO),
    "spatial": lambda network: lowpeft.adapt(network, lowpeft.SpatialConfig(target="body.*")),
    "lora": lambda network: lowpeft.adapt(network, lowpeft.LoRAConfig(target="**", rank=1)),
}


def case_of(recipe: str, build: Callable[[], nn.Module] = Net, *, used: bool = True) -> Case:
    row = Row(name="net", source="here", build=build, px=(8, 12))
    network = harness.mixed(row.network())
    before = State.of(network)
    model = ADAPT[recipe](network)
    if used:
        randomise(model, 0.1)
    found = {"row": row, "model": model, "network": network, "base": row.network(), "before": before}
    return Case(**found, fresh=row.network, sizes=[(8, 12), (12, 8), (8, 8), (4, 16)])


def first(case: Case, kind: str) -> nn.Module:
    return next(piece for _, piece in pieces(case.model) if piece.kind == kind)


@pytest.mark.parametrize("recipe", ADAPT)
def test_a_right_network_passes_every_check(recipe: str) -> None:
    outcomes = harness.checked(case_of(recipe, used=False))
    assert {name: said for name, said in outcomes.items() if said != "ok"} == {}


def test_identity_fails_on_adapters_that_do_something() -> None:
    with pytest.raises(Wrong, match="at 8x12: view 0 differs"):
        checks.identity(case_of("stereo"))


@pytest.fixture
def unrefused(monkeypatch: pytest.MonkeyPatch) -> None:
    """lowpeft takes networks that it would refuse."""
    monkeypatch.setattr("lowpeft.core.planning.plan.mixes_images", lambda trial, sites: False)
    monkeypatch.setattr("lowpeft.core.planning.plan._refuse_own_writes", lambda trial: None)


class Mixing(Net):
    """Each image gets the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x.mean(0))


@pytest.mark.usefixtures("unrefused")
def test_views_apart_fails_on_a_base_that_mixes_its_batch() -> None:
    with pytest.raises(Wrong, match="depends on other images"):
        checks.views_apart(case_of("stereo", Mixing, used=False))


def test_views_meet_fails_on_adapters_that_do_nothing() -> None:
    with pytest.raises(Wrong, match="view 1 does not depend on view 0"):
        checks.views_meet(case_of("stereo", used=False))


class LeftOnly(StereoAdapter):
    def delta(self, features: lowpeft.Features) -> Tensor:
        found = super().delta(features).clone()
        found[1::2] = 0
        return found


class Silent(SpatialAdapter):
    def delta(self, features: lowpeft.Features) -> Tensor:
        return 0 * super().delta(features)


class RowsMixed(StereoAdapter):
    """Takes tokens for a grid of twice the width."""

    def delta(self, features: lowpeft.Features) -> Tensor:
        x = features.values
        wide = x.reshape(*x.shape[:2], x.shape[2] // 2, 2 * x.shape[3])
        found = super().delta(lowpeft.Features(wide, features.layout, None, features.views))
        return found.reshape(x.shape)


class ScenesMixed(StereoAdapter):
    def delta(self, features: lowpeft.Features) -> Tensor:
        x = features.values.roll(2, 0)
        return super().delta(lowpeft.Features(x, features.layout, None, features.views))


class Detached(StereoAdapter):
    def delta(self, features: lowpeft.Features) -> Tensor:
        return super().delta(features).detach()


@pytest.mark.parametrize(
    ("wrong", "check", "said"),
    [
        (LeftOnly, checks.moved, "stereo adapters change 2 of 4 equal images"),
        (RowsMixed, checks.rows, "depends on rows"),
        (ScenesMixed, checks.rows, "depends on another scene"),
        (LeftOnly, checks.rows, "does not depend on that row of the other view"),
        (Detached, checks.gradients, "14 tensors get no gradient"),
    ],
)
def test_a_wrong_adapter_is_found(wrong: type[nn.Module], check: Callable[[Case], None], said: str) -> None:
    case = case_of("stereo")
    for _, piece in pieces(case.model):
        if piece.kind == "stereo" and (wrong is not Detached or piece is first(case, "stereo")):
            piece.__class__ = wrong
    with pytest.raises(Wrong, match=said):
        check(case)


def test_moved_fails_on_adapters_that_change_nothing() -> None:
    case = case_of("spatial")
    for _, piece in pieces(case.model):
        piece.__class__ = Silent
    with pytest.raises(Wrong, match="spatial adapters change nothing"):
        checks.moved(case)


class TwoViews(Net):
    """Takes two views in six channels (or one, twice), and passes the first one only through its blocks."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = (self.first(view) for view in (x.chunk(2, 1) if x.shape[1] == 6 else (x, x)))
        return torch.cat([self.last(self.body(one)), self.last(two)], 1)


def test_moved_looks_at_both_views_of_a_pair_in_the_channels() -> None:
    case = case_of("spatial", TwoViews)
    case.row = Row(name="pair", source="here", build=TwoViews, px=(8, 12), channels=6, pair=True)
    with pytest.raises(Wrong, match="spatial adapters change 2 of 4 equal images"):
        checks.moved(case)


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.mark.usefixtures("unrefused")
def test_base_kept_fails_on_a_base_that_is_written() -> None:
    with pytest.raises(Wrong, match="calls"):
        checks.base_kept(case_of("stereo", Counting))


class Forgetful(Net):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return Net()


@pytest.mark.usefixtures("unrefused")
def test_copies_fails_on_a_copy_that_is_another_network() -> None:
    with pytest.raises(Wrong, match="the copy: view 0 differs"):
        checks.copies(case_of("spatial", Forgetful))


def test_saves_fails_on_an_adapter_that_was_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("spatial")
    monkeypatch.setattr(lowpeft, "load_adapter", lambda network, folder: network)
    with pytest.raises(Wrong, match="the loaded one: view 0 differs"):
        checks.saves(case)


def test_merges_fails_on_a_merge_that_loses_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowpeft, "merge", lowpeft.restore)
    with pytest.raises(Wrong, match="of the largest value"):
        checks.merges(case_of("lora"))


def test_merges_fails_on_a_merge_that_changes_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = lowpeft.merge
    monkeypatch.setattr(lowpeft, "merge", lambda model: (merge(model), model.train()))
    with pytest.raises(Wrong, match="training flag"):
        checks.merges(case_of("lora"))


def test_restores_fails_where_a_flag_or_a_weight_is_not_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = lowpeft.restore
    monkeypatch.setattr(lowpeft, "restore", lambda model: copy.copy(restore(model)))
    with pytest.raises(Wrong, match="another object"):
        checks.restores(case_of("stereo"))
    monkeypatch.setattr(lowpeft, "restore", lambda model: restore(model).eval())
    with pytest.raises(Wrong, match=r"1 differ: \['first.training'\]"):
        checks.restores(case_of("stereo"))


def test_a_crash_in_a_check_is_a_failure() -> None:
    case = case_of("stereo")
    case.row = Row(name="net", source="here", build=Net, px=(8, 12), inputs=lambda images: (images, 1))
    assert harness.outcome(checks.copies, case).startswith("failed: ")


@pytest.mark.parametrize(
    ("size", "images", "shape"),
    [
        ((16, 64), 2, (2, 1024, 8)),
        ((64, 16), 2, (1024, 2, 8)),
        ((16, 64), 2, (2, 8, 8, 32)),
        ((8, 32), 2, (2, 4, 16, 3)),
    ],
)
def test_rows_are_told_by_shape_also_where_the_tokens_would_make_a_square(
    size: tuple[int, int], images: int, shape: tuple[int, ...]
) -> None:
    grid = checks.grid_of(shape, images, size)
    assert grid is not None
    found = grid(torch.zeros(shape)).shape
    assert found[0] == images
    assert found[1] * size[1] == found[2] * size[0]


def test_no_rows_are_told_where_the_shape_leaves_two_answers() -> None:
    assert checks.grid_of((2, 8, 8, 8), 2, (16, 16)) is None
    assert checks.grid_of((2, 8, 8, 8), 2, (16, 16), first=True) is not None


def test_a_ready_call_is_found_whole() -> None:
    message = 'refused:\n  - call `lowpeft.adapt(model, "stereo", stereo={"target": ["a(b)"]},\n    spatial={})` or not'
    assert harness.ready_call(message) == 'lowpeft.adapt(model, "stereo", stereo={"target": ["a(b)"]}, spatial={})'
    assert harness.ready_call("name the sites yourself with lowpeft.plan(model)") is None


def test_a_printed_call_is_tried_and_must_give_the_kinds_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "checked", lambda case: {"identity": "ok"})
    row = Row(name="net", source="here", build=Net, px=(8, 12))
    right = f"lowpeft.adapt(model, 'stereo', **{STEREO})"
    assert harness.with_call(row, "stereo", right, {})["verdict"] == "call"
    found = harness.with_call(row, "spatial", "lowpeft.wrap_stereo(model, target='body.*')", {})
    assert "kinds of adapters that are not those of spatial" in found["checks"]["printed call"]


def test_a_network_that_hangs_or_dies_takes_nothing_else_down() -> None:
    assert harness.in_process(time.sleep, (60,), 0.2)["error"] == "took more than 0.2 s"
    assert harness.in_process(os._exit, (3,), 20)["error"] == "the process ended with code 3"
