"""The structure of the package: modules, lines, imports between packages, the longest files and functions.

    python benchmarks/structure.py [SRC/lowpeft]

Any checkout can be listed, so `git worktree add ../before REVISION` gives the other half of a comparison.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lowpeft import tables

LONGEST = 8


def main(package: Path) -> None:
    """Print the listing."""
    sources = {path.relative_to(package): ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    lines = {path: len((package / path).read_text(encoding="utf-8").splitlines()) for path in sources}
    parts = sorted({part_of(path) for path in sources})
    imports = Counter(
        (part_of(path), other) for path, tree in sources.items() for other in imported(path, tree, sources) if other
    )
    cells = [["package", "modules", "lines", "lines of docstrings", "imports from"]]
    for part in parts:
        members = [path for path in sources if part_of(path) == part]
        others = sorted({other for (here, other) in imports if here == part} - {part})
        documented = sum(docstring_lines(sources[path]) for path in members)
        cells.append(
            [part, str(len(members)), f"{sum(lines[p] for p in members):,}", f"{documented:,}", " ".join(others)]
        )
    total = sum(docstring_lines(tree) for tree in sources.values())
    cells.append(["all", str(len(sources)), f"{sum(lines.values()):,}", f"{total:,}", ""])
    print(tables.text(cells))
    functions = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for what, found in (("longest files", {str(p): n for p, n in lines.items()}), ("longest functions", functions)):
        longest = sorted(found.items(), key=lambda item: -item[1])[:LONGEST]
        print(f"\n{tables.text([[what, 'lines'], *([name, str(n)] for name, n in longest)])}")


def part_of(path: Path) -> str:
    """Return the package of a module, `core.planning` for those that have parts; `(top)` for modules beside them."""
    folders = path.parts[:-1]
    return ".".join(folders[: 2 if folders[:1] in (("core",), ("restoration",), ("paper",)) else 1]) or "(top)"


def imported(path: Path, tree: ast.Module, sources: dict[Path, ast.Module]) -> Iterator[str]:
    """Yield the package of every import of a module of lowpeft's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            here = path.parent
            for _ in range(node.level - 1):
                here = here.parent
            base = here.joinpath(*(node.module or "").split(".")) if node.module else here
            for alias in node.names:
                places = (base / alias.name / "__init__.py", base / f"{alias.name}.py", base / "__init__.py")
                places += (base.parent / f"{base.name}.py",)
                found = next((place for place in places if place in sources), None)
                if found is not None:
                    yield part_of(found)


def docstring_lines(tree: ast.Module) -> int:
    """Count the lines of the docstrings in a module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return sum(len(text.splitlines()) for text in texts if text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "src" / "lowpeft")
