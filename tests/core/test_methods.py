"""`lowpeft.methods`: what the rows say of the kinds, and of a network."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import lowpeft
import zoo
from lowpeft.cli import main
from lowpeft.core.operations.methods import kept_bytes
from lowpeft.kinds import get_kind, kinds
from states import assert_same_tensors, tensors

NETWORKS = {network.name: network for network in zoo.FAMILIES}


def build(name: str) -> nn.Module:
    torch.manual_seed(7)
    return NETWORKS[name].build()


def test_every_kind_has_a_row_that_its_class_bears_out() -> None:
    rows = {row.kind: row for row in lowpeft.methods()}
    assert list(rows) == [kind.name for kind in kinds()]
    for name, row in rows.items():
        kind = get_kind(name)
        assert row.mergeable == kind.on_weights == (row.acts_on == "weights")
        assert row.parameters == kind.parameters
        assert row.zero, name
        assert (row.trained, row.share, row.kept, row.problem) == (None,) * 4
    assert rows["spatial"].zero == ("fc2",)
    assert rows["lora"].zero == ("b",)
    assert rows["lst"].acts_on == "image"
    assert rows["convpass"].places == ("parallel_attention", "parallel")
    assert rows["full"].places == ()


def test_rows_of_a_network_are_what_planning_counts_and_leave_it_alone() -> None:
    base = build("edsr")
    lowpeft.adapt(base, "spatial", name="there")
    before = tensors(base)
    rows = {row.kind: row for row in lowpeft.methods(base, memory=False)}
    assert_same_tensors(tensors(base), before)
    total = sum(p.numel() for p in build("edsr").parameters())
    for name in ("lora", "spatial", "convpass", "stereo"):
        planned = lowpeft.plan(build("edsr"), get_kind(name).config()).parameters
        assert (rows[name].trained, rows[name].share, rows[name].kept) == (planned, planned / total, None)
    assert rows["full"].trained == total


def test_a_kind_that_does_not_fit_says_why() -> None:
    (row,) = (row for row in lowpeft.methods(build("edsr"), memory=False) if row.kind == "norm")
    assert row.trained is row.share is row.kept is None
    assert row.problem is not None
    assert "norm" in row.problem


def test_bytes_are_those_of_tensors_that_backward_needs() -> None:
    layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).requires_grad_(False)
    x = torch.rand(3, 8)
    assert kept_bytes(layers, lambda: layers(x)) == 0
    layers[2].requires_grad_(True)
    assert kept_bytes(layers, lambda: layers(x)) == 3 * 16 * 4
    layers.requires_grad_(True)
    assert kept_bytes(layers, lambda: layers(x)) == 3 * (8 + 16 + 16) * 4


def test_the_command_prints_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line and not line.startswith(" ")} >= {k.name for k in kinds()}
    assert max(map(len, lines)) <= 120
    assert main(["methods", "--json"]) == 0
    assert [row["kind"] for row in json.loads(capsys.readouterr().out)["methods"]] == [kind.name for kind in kinds()]


@pytest.mark.slow
def test_the_command_measures_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--network", "demo", "--json"]) == 0
    rows = {row["kind"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert 0 < rows["lst"]["kept"] < 0.2 < rows["spatial"]["kept"] < 1.2
    assert all(0.0 < row["kept"] < 1.3 for row in rows.values() if row["problem"] is None)
