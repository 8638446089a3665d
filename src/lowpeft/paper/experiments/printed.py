"""Lines of a paper's table, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ... import checks
from ...errors import did_you_mean
from ...recipes import check_keys, plain_values


@dataclass(frozen=True, kw_only=True)
class Score:
    """PSNR and SSIM of a method on a test set; prints as in papers, `24.43/0.7690`."""

    db: float
    ssim: float

    def __str__(self) -> str:
        return f"{self.db:.2f}/{self.ssim:.4f}"


@dataclass(frozen=True, kw_only=True)
class PrintedFigures:
    """Scores of a line on one test set; None if not printed.

    Attributes:
        test_set: Name of the test set.
        left: Score that the paper gives for the left view.
        mean: Mean score of both views.
    """

    test_set: str
    left: Score | None = None
    mean: Score | None = None


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A line of a paper's table; None if a value is not printed.

    Attributes:
        name: Name of the line, unique in the experiment.
        scale: Output sides divided by input sides; None for a line that is shown beside rows of every scale.
        trained_m: Trained parameters in millions.
        hours: Training time in hours.
        memory_gb: Training memory in G. Papers seldom say whether G means 10^9 or 2^30 bytes.
        figures: Scores, one entry for each test set.
        note: Remark for readers of this line.
    """

    name: str
    scale: int | None = None
    trained_m: float | None = None
    hours: float | None = None
    memory_gb: float | None = None
    figures: tuple[PrintedFigures, ...] = ()
    note: str = ""

    def on(self, test_set: str) -> PrintedFigures:
        """Return the scores on a test set; both are None if none are printed."""
        return next((f for f in self.figures if f.test_set == test_set), PrintedFigures(test_set=test_set))


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Printed lines that a row is compared with; None if the paper has no such line.

    Attributes:
        frozen: Line for the network as its authors publish it, applied to each view separately.
        adapted: Line for the network as the row's recipe trains it.
        ensemble: Line for the adapted network with self-ensemble (mean over its passes).
    """

    frozen: Printed | None = None
    adapted: Printed | None = None
    ensemble: Printed | None = None

    @property
    def lines(self) -> tuple[Printed, ...]:
        """Lines that are present, in the order frozen, adapted, ensemble."""
        return tuple(line for line in (self.frozen, self.adapted, self.ensemble) if line is not None)


COSTS = ("trained_m", "hours", "memory_gb")
VIEWS = ("left", "mean")
_ROLES = ("frozen", "adapted", "ensemble")
_TEXTS = {"name": (str, None), "note": (str, "")}

T = TypeVar("T")


def read_tables(
    tables: list[object], read: Callable[[Mapping[str, Any], list[str]], T | None], what: str, problems: list[str]
) -> list[T]:
    """Read tables with unique names, e.g. the `[[row]]` tables.

    Args:
        tables: Values of the file.
        read: Function that returns a table's value; or appends to the list and returns None.
        what: Noun for such a table in error messages.
        problems: List of error messages; those of a table get its number and name, e.g. "row 2 ('x4'): …".

    Returns:
        The values of the tables without problems.
    """
    values: list[T] = []
    names: list[object] = []
    for number, table in enumerate(tables, start=1):
        wrong: list[str] = []
        name = table.get("name") if isinstance(table, Mapping) else None
        value = read(table, wrong) if isinstance(table, Mapping) else None
        if not isinstance(table, Mapping):
            wrong.append(f"a {what} must be a table, not {table!r}")
        elif name is not None and name in names:
            wrong.append(f"another {what} has this name")
        elif value is not None:
            values.append(value)
        names.append(name)
        problems += [f"{what} {number}{'' if name is None else f' ({name!r})'}: {problem}" for problem in wrong]
    return values


def printed_lines(tables: object, problems: list[str]) -> dict[str, Printed]:
    """Read the `[[printed]]` tables and return the lines by name; append what is wrong to `problems`."""
    if not isinstance(tables, list):
        problems.append(f"[[printed]] must be tables, not {tables!r}")
        return {}
    return {line.name: line for line in read_tables(tables, _line, "printed line", problems)}


def _line(table: Mapping[str, Any], problems: list[str]) -> Printed | None:
    """Return the line; or append to `problems` and return None."""
    check_keys(table, (*_TEXTS, "scale", *COSTS, "figures"), "the line", problems)
    values = plain_values(table, _TEXTS, problems)
    if values["name"] == "":
        problems.append("name must not be empty")
    optional = {key: table[key] for key in ("scale", *COSTS) if key in table}
    for key, value in optional.items():
        problems += checks.whole(key, value, least=1) if key == "scale" else checks.number(key, value, least=0)
    figures = _figures(table.get("figures", {}), problems)
    return None if problems else Printed(**values, **optional, figures=figures)


def _figures(tables: object, problems: list[str]) -> tuple[PrintedFigures, ...]:
    if not isinstance(tables, Mapping) or not all(isinstance(t, Mapping) and t for t in tables.values()):
        problems.append(f"figures must have a table with left, mean or both for each test set, not {tables!r}")
        return ()
    figures = []
    for name, table in tables.items():
        check_keys(table, VIEWS, f"figures.{name}", problems)
        scores = {view: _score(table[view], f"figures.{name}.{view}", problems) for view in VIEWS if view in table}
        figures.append(PrintedFigures(test_set=name, **scores))
    return tuple(figures)


def _score(value: object, where: str, problems: list[str]) -> Score | None:
    pair: list[Any] = value if isinstance(value, list) and len(value) == 2 else []
    if pair and all(checks.is_number(value, above=0) for value in pair) and pair[1] <= 1:
        return Score(db=pair[0], ssim=pair[1])
    problems.append(f"{where} must be [PSNR in dB, SSIM], two numbers above 0, the SSIM at most 1, not {value!r}")
    return None


def paper_of_row(table: object, lines: Mapping[str, Printed], problems: list[str]) -> Paper:
    """Find the lines that a row's `[paper]` names; append what is wrong to `problems`."""
    if not isinstance(table, Mapping):
        problems.append(f"[paper] must be a table of {', '.join(_ROLES)}, not {table!r}")
        return Paper()
    check_keys(table, _ROLES, "[paper]", problems)
    named: dict[str, Any] = {role: table[role] for role in _ROLES if role in table}
    for role, name in named.items():
        if not isinstance(name, str) or name not in lines:
            near = did_you_mean(str(name), lines)
            problems.append(f"{role} of [paper]: no [[printed]] line has the name {name!r}{near}")
    return Paper(**{role: lines.get(name) for role, name in named.items() if isinstance(name, str)})
