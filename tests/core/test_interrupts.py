"""After an interruption a network is as before or as after; so it is after an error in a kind's own code."""

from __future__ import annotations

import pytest
from torch import nn

import interrupts
import lowpeft


@pytest.mark.parametrize("call", ["set_strength"])
def test_an_interruption_leaves_nothing_between(call: str) -> None:
    number, between = interrupts.interrupt_everywhere(*interrupts.CALLS[call])
    assert number > 20
    assert between == []


@pytest.mark.slow
@pytest.mark.parametrize("call", interrupts.CALLS)
def test_an_interruption_at_any_line_leaves_nothing_between(call: str) -> None:
    number, between = interrupts.interrupt_everywhere(*interrupts.CALLS[call], runs_of_a_line=(0, 0.5, 1))
    assert number > 20
    assert between == []


def test_the_harness_sees_what_is_left_between() -> None:
    make, _ = interrupts.CALLS["restore"]

    def half(root: nn.Module) -> None:
        root.requires_grad_(False)
        lowpeft.list_adapters(root)
        root.requires_grad_(True)

    number, between = interrupts.interrupt_everywhere(make, half, runs_of_a_line=(0,))
    assert number > 5
    assert len(between) == number


@pytest.mark.parametrize("part", ["__init__", "start", "change"])
def test_an_error_in_the_code_of_a_kind_leaves_the_network_as_before(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = interrupts.with_adapters("a")()
    before = interrupts.state_of(root)

    def fails(*args: object) -> None:
        raise ZeroDivisionError("in the code of a kind")

    monkeypatch.setattr(lowpeft.kinds.DoRA, part, fails)
    with pytest.raises(ZeroDivisionError):
        lowpeft.adapt(root, lowpeft.DoRAConfig(target="body.**", rank=1), name="b")
    assert interrupts.same(interrupts.state_of(root), before)
