"""README, CONTRIBUTING and docs/ are true: their code runs, their links lead somewhere, their commands are CI's."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lowpeft

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^`]*)$")
COMMENT = re.compile(r"<!--\s*no-run(?P<reason>.*?)-->")
LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]+)(?:#[^)]*)?\)")
REPOSITORY_PATH = re.compile(r"`((?:src|docs|tests|examples|benchmarks|\.ci)/[\w./-]+|[\w-]+\.(?:md|toml))`")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `line` is the number of its first line of code."""

    info: str
    line: int
    code: str
    before: str

    @property
    def language(self) -> str:
        return self.info.split(maxsplit=1)[0] if self.info else ""

    @property
    def not_run(self) -> str | None:
        """Why the block is not executed; None where it is. `python no-run: reason`, or a comment above the block."""
        found = re.search(r"\bno-run(.*)", self.info) or COMMENT.fullmatch(self.before)
        return found[1].lstrip(": ").strip() if found else None


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    before, number = "", 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            before = lines[number].strip() or before
            number += 1
            continue
        start, indent, ticks = number + 1, len(opening["indent"]), opening["ticks"]
        number = start
        while number < len(lines) and not re.fullmatch(rf" *{ticks[0]}{{{len(ticks)},}} *", lines[number]):
            number += 1
        code = "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines[start:number])
        yield Block(opening["info"].strip(), start + 1, code, before)
        before, number = "", number + 1


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.code, "") if block.code else text
    return text


LATER = {
    f"docs/{name}.md" for name in ("evaluation", "lam", *(f"methods/{n}" for n in ("adalora", "colora", "fish", "spt")))
}
"""Pages in the slow tier: their blocks measure or calibrate the demo's network for seconds, as the tests of both do."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=n, marks=[pytest.mark.slow] * (n in LATER)) for p, n in zip(PAGES, NAMES, strict=True)],
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> None:
    """The blocks of a page run in order, in one namespace, in an empty folder."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses and pickle look their module up
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "python" and block.not_run is None:
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            exec(code, module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_that_do_not_run_say_why(page: Path) -> None:
    assert [f"line {b.line}" for b in blocks(page) if b.not_run == ""] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=[*NAMES, "CHANGELOG.md"])
def test_links_and_files_exist(page: Path) -> None:
    text = prose(page)
    links = {m["path"] for m in LINK.finditer(text) if not (page.parent / m["path"]).exists()}
    files = {m for m in REPOSITORY_PATH.findall(text) if not ((ROOT / m).exists() or (page.parent / m).exists())}
    assert (sorted(links), sorted(files)) == ([], [])


def documented_commands(page: Path) -> set[str]:
    """Every line of the page's shell blocks, without prompt and comment."""
    shell = (b.code for b in blocks(page) if b.language in {"bash", "console", "sh", "shell"})
    lines = [re.sub(r"\s+#.*", "", line).removeprefix("$ ") for code in shell for line in code.splitlines()]
    return {command.strip() for line in lines for command in line.split("&&")}


def ci_commands() -> list[str]:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("run ").strip() for line in lines if line.startswith("run ")]


def test_every_promise_has_a_test_that_is_there() -> None:
    promises = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promises)
    assert len(named) > 15
    missing = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert missing == []


def test_ci_runs_the_documented_commands() -> None:
    commands = ci_commands()
    assert [c for c in commands if c not in documented_commands(ROOT / "CONTRIBUTING.md")] == []
    readme = documented_commands(ROOT / "README.md")
    assert [c for c in commands if c.startswith(("pip install", "pytest -n")) and c not in readme] == []


@pytest.fixture(scope="module")
def tables() -> types.ModuleType:
    """The module that writes the generated parts of pages."""
    pytest.importorskip("sphinx")
    return importlib.import_module("tables")


@pytest.mark.parametrize("kind", lowpeft.kinds.kinds(), ids=lambda k: k.name)
def test_a_kind_says_how_many_parameters_it_trains(kind: lowpeft.kinds.Kind) -> None:
    assert kind.parameters


def test_generated_pages_have_their_sources(tables: types.ModuleType) -> None:
    """Every table, the command line and the API page can be written from the package."""
    used = {m for page in PAGES for m in re.findall(r"```\{generated\} ([\w-]+)", page.read_text(encoding="utf-8"))}
    assert used == set(tables.GENERATED)
    for write in tables.GENERATED.values():
        assert write().strip()
