"""Benchmarks: their imports, also those inside functions, exist. Nothing is measured here."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


def missing_names(path: Path) -> list[str]:
    """Names that a script imports from lowpeft, or from a benchmark, and that do not exist there."""
    ours = {"lowpeft", *(p.stem for p in BENCHMARKS)}
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ours:
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = hasattr(module, "__path__") and importlib.util.find_spec(name) is not None
                missing += [] if is_module or hasattr(module, alias.name) else [name]
    return missing


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path: Path) -> None:
    assert missing_names(path) == []
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
