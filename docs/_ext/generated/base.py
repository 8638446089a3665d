"""What the writers of generated parts share: the package's names, tables, and results files."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def need(module: str, name: str) -> Any:
    """`lowpeft.module.name`; LookupError where the package does not have it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise LookupError(f"{module}.{name}") from error


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return str(need("lowpeft.tables", "markdown")([header, *rows]))


def yes(answer: bool) -> str:
    return "yes" if answer else "no"


def results_of(name: str) -> Any:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        raise LookupError(f"benchmarks/results/{file.name}")
    return json.loads(file.read_text(encoding="utf-8"))


def made_by(results: Any) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"Made by `{results['command']}` on {results['date']} ({versions}; {results['device']})."


def measured_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a benchmark that may not have got there yet."""
    return table(header, rows) if rows else "*These cells are not measured yet.*"


def section(name: str, write: Callable[[Any], str]) -> Callable[[], str]:
    """A section of what a benchmark measured; before it was run, the command that measures it."""

    def write_section() -> str:
        try:
            results = results_of(name)
        except LookupError:
            command = f"python benchmarks/{name}.py --out benchmarks/results/{name}.json"
            return f"*Not measured yet: `{command}` writes this table.*"
        return f"{write(results)}\n\n{made_by(results)}"

    return write_section


def measured(part: str) -> Callable[[], str]:
    """A table of one section of inference.json: what its rows hold, with their keys as heads."""

    def write() -> str:
        results = results_of("inference")
        rows = results[part] if isinstance(results[part], list) else [results[part]]
        heads = [key.replace("_", " ") for key in rows[0]]
        cells = [["–" if value is None else str(value) for value in row.values()] for row in rows]
        return f"{table(heads, cells)}\n\n{made_by(results)}"

    return write


def hours(results: Any) -> str:
    """How long the trainings of a benchmark took."""
    seconds = [cell["seconds"] for cell in results["cells"].values() if "seconds" in cell]
    return (
        f"{len(seconds)} trainings, {sum(seconds) / 3600:.1f} hours by the clock, each on one core of a machine "
        "that did other things too."
    )
