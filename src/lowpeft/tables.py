"""Tables as plain text, Markdown and HTML.

A table is a sequence of rows of strings, the header first. A column is right-aligned if all its cells are numbers:
"1,044", "24.43/0.7690", "+0.012 ± 0.003", "–" for a missing number.
"""

from __future__ import annotations

import html as markup
import re
from collections.abc import Sequence

Cells = Sequence[Sequence[str]]

NOTHING = "–"
"""Cell for a missing figure."""

_NUMBER = re.compile(r"[-+±]?(\d[\d,.]*|inf|nan)([/ ±x%].*)?")


def capped(cells: Cells, most: int | None, rest: str) -> Cells:
    """Return the table with at most `most` rows between its header and its last row, the means; None keeps all.

    A row says how many were left out, and that `rest` has them.
    """
    if most is None or (left := len(cells) - 2 - most) <= 0:
        return cells
    said = [f"… and {left:,} more in {rest}", *[""] * (len(cells[0]) - 1)]
    return [*cells[: 1 + most], said, cells[-1]]


def text(cells: Cells) -> str:
    """Return the table as aligned plain text, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [str.rjust if numbers else str.ljust for numbers in _of_numbers(cells)]
    lines = ("  ".join(side(c, w) for side, c, w in zip(sides, row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def markdown(cells: Cells) -> str:
    """Return the table in Markdown."""
    header, *rows = (f"| {' | '.join(map(_in_one_line, row))} |" for row in cells)
    rule = f"| {' | '.join('---:' if numbers else '---' for numbers in _of_numbers(cells))} |"
    return "\n".join([header, rule, *rows])


def _in_one_line(cell: str) -> str:
    return " ".join(cell.replace("|", r"\|").splitlines())


def html(cells: Cells) -> str:
    """Return the table as an HTML element with escaped cells. Columns of numbers have the class `number`."""
    classes = [' class="number"' if numbers else "" for numbers in _of_numbers(cells)]

    def row(texts: Sequence[str], tag: str) -> str:
        cells = (f"<{tag}{c}>{markup.escape(t)}</{tag}>" for c, t in zip(classes, texts, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    header, *rows = cells
    body = "\n".join(row(each, "td") for each in rows)
    return f"<table>\n<thead>{row(header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _of_numbers(cells: Cells) -> list[bool]:
    """Return for each column whether all its filled cells below the header are numbers, with at least one filled."""
    columns = ([cell for cell in column[1:] if cell not in ("", NOTHING)] for column in zip(*cells, strict=True))
    return [bool(filled) and all(map(_NUMBER.fullmatch, filled)) for filled in columns]
