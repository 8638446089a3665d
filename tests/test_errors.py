"""The errors that lowpeft raises on purpose."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowpeft.errors import AdapterError, DataError, LowpeftError, PlanError, TrainingError, did_you_mean

EVERY = pytest.mark.parametrize("error", [LowpeftError, PlanError, AdapterError, DataError, TrainingError])


@EVERY
def test_every_error_is_a_lowpeft_error_and_a_value_error(error: type[LowpeftError]) -> None:
    assert issubclass(error, LowpeftError)
    assert issubclass(error, ValueError)


def test_the_four_kinds_are_told_apart() -> None:
    kinds = (PlanError, AdapterError, DataError, TrainingError)
    assert [(a, b) for a in kinds for b in kinds if a is not b and issubclass(a, b)] == []


@EVERY
def test_problems_are_kept_and_shown_one_per_line(error: type[LowpeftError]) -> None:
    raised = error("two things:", problems=["one", "other"])
    assert raised.problems == ("one", "other")
    assert str(raised) == "two things:\n  - one\n  - other"


def test_a_text_is_bounded_and_sends_no_terminal_codes() -> None:
    raised = AdapterError("these are \x1b[31mred\x07:", problems=[f"{i}\tä" for i in range(30_000)])
    lines = str(raised).split("\n")
    assert (lines[0], lines[1]) == (r"these are \x1b[31mred\x07:", r"  - 0\tä")
    assert (len(lines), lines[-1]) == (102, "  … and 29,900 more (.problems has all)")
    assert len(raised.problems) == 30_000


@EVERY
def test_without_problems_the_message_stands_alone(error: type[LowpeftError]) -> None:
    assert (str(error("alone")), error("alone").problems) == ("alone", ())


@EVERY
@pytest.mark.parametrize("problems", [(), ("one", "other"), ("a\nb",)])
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_errors_pickle_and_copy(error: type[LowpeftError], problems: tuple[str, ...], again: object) -> None:
    raised = error("it does not fit:", problems=problems)
    copied = again(raised)
    assert (type(copied), str(copied), copied.problems) == (error, str(raised), problems)


def test_a_message_with_a_list_of_its_own_pickles() -> None:
    raised = PlanError("nested:\n  - from another error", problems=["one"])
    assert str(pickle.loads(pickle.dumps(raised))) == str(raised)


@pytest.mark.parametrize(
    ("word", "known", "answer"),
    [
        ("steroe", ["spatial", "stereo"], " (did you mean 'stereo'?)"),
        ("lorra", ["lora", "loha", "full"], " (did you mean 'lora', 'loha'?)"),
        ("xyzzy", ["spatial", "stereo"], ""),
        ("stereo", [], ""),
    ],
)
def test_near_words_are_named(word: str, known: list[str], answer: str) -> None:
    assert did_you_mean(word, known) == answer


def test_no_more_names_than_asked_for() -> None:
    assert did_you_mean("aaa1", ["aaa2", "aaa3", "aaa4"], most=2).count("'aaa") == 2


@given(st.text(min_size=1, max_size=8))
def test_a_word_is_nearest_to_itself(word: str) -> None:
    assert repr(word) in did_you_mean(word, [word, "something else"])
