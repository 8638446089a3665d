"""After an interruption a network is as before or as after; so it is after an error in a kind's own code."""

from __future__ import annotations

import pytest

import interrupts


@pytest.mark.parametrize("call", ["load_adapter_state_dict", "restore one", "delete", "rename", "set_strength"])
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
    make, _ = interrupts.CALLS["adapt"]

    def half(root: interrupts.nn.Module) -> None:
        root.requires_grad_(False)
        interrupts.lowpeft.plan(root, "spatial")
        root.eval().train()

    number, between = interrupts.interrupt_everywhere(make, half, runs_of_a_line=(0,))
    assert len(between) == number
