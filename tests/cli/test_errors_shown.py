"""What the command line prints of an error."""

from __future__ import annotations

import sys

import pytest

from lowpeft.cli import main
from lowpeft.errors import LowpeftError, and_more


@pytest.mark.parametrize(("number", "lines"), [(0, 1), (20, 21), (21, 22), (300, 22)])
def test_a_long_list_of_problems_is_cut(
    number: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> None:
        raise LowpeftError("images are too small:", problems=[f"image {n}" for n in range(number)])

    monkeypatch.setattr(sys.modules["lowpeft.cli.show"], "read_adapter", fails)
    assert main(["info", "folder"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "lowpeft info: images are too small:"
    assert len(printed) == lines
    assert ("  - … and 280 more" in printed) is (number == 300)


def test_a_long_list_ends_with_the_number_of_the_others() -> None:
    assert and_more("abc", most=3) == "a, b, c"
    assert and_more([*range(1905)]) == "0, 1, 2, 3, 4 and 1,900 more"
