"""Tables as text, Markdown and HTML."""

from __future__ import annotations

import pytest

from lowpeft import tables

CELLS = [["row", "trained", "gain, dB"], ["a|b", "1,044", "+0.012 ± 0.003"], ["<c>", "7", tables.NOTHING]]


def test_text_sets_numbers_to_the_right() -> None:
    assert tables.text(CELLS).splitlines() == [
        "row  trained        gain, dB",
        "a|b    1,044  +0.012 ± 0.003",
        "<c>        7               –",
    ]


def test_long_tables_keep_their_header_and_their_last_row() -> None:
    cells = [["scene", "dB"], *([str(i), "1"] for i in range(2000)), ["mean", "1"]]
    said = ["… and 1,998 more in report.md", ""]
    assert tables.capped(cells, 2, "report.md") == [*cells[:3], said, cells[-1]]
    assert tables.capped(cells, 2000, "report.md") == tables.capped(cells, None, "report.md") == cells


def test_markdown_escapes_bars() -> None:
    assert tables.markdown(CELLS).splitlines()[:3] == [
        "| row | trained | gain, dB |",
        "| --- | ---: | ---: |",
        r"| a\|b | 1,044 | +0.012 ± 0.003 |",
    ]


def test_html_escapes_markup() -> None:
    assert '<tr><td>&lt;c&gt;</td><td class="number">7</td><td class="number">–</td></tr>' in tables.html(CELLS)


@pytest.mark.parametrize("text", ["3", "-1.5", "24.43/0.7690", "1.2 ± 0.1", "inf", "12 %", "32x80"])
def test_these_are_numbers(text: str) -> None:
    assert tables.markdown([["h"], [text]]).splitlines()[1] == "| ---: |"


@pytest.mark.parametrize("text", ["layers.0", "x4", "", tables.NOTHING, "not known"])
def test_these_are_not(text: str) -> None:
    assert tables.markdown([["h"], [text]]).splitlines()[1] == "| --- |"


def test_a_header_alone_is_a_table() -> None:
    assert tables.text([["a", "b"]]) == "a  b"
    assert tables.markdown([["a", "b"]]) == "| a | b |\n| --- | --- |"
