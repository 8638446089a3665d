"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import lowpeft
from lowpeft.cli import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "lowpeft"

MOST_LINES_PER_FILE = 400
MOST_LINES_PER_FUNCTION = 60
MOST_BYTES_PER_FILE = 5_000_000
MOST_SHARE_OF_TORCH = 0.25
"""CPU time of `import lowpeft` after `import torch`, as a share of the latter's: 0.3 s where torch takes 1.2 s."""

# Imports go one way: a package imports from those before it alone, and so do the parts of the two that have parts.
# Packages in one pair of brackets do not import each other. Imports for types alone are never run, and do not count.
PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "lowpeft": (
        ("errors", "storage", "tables", "version"),
        ("checks", "importing", "locking", "registry"),
        ("ports",),
        ("frozen",),
        ("kinds", "families"),
        ("recipes",),
        ("core",),
        ("backbones",),
        ("restoration",),
        ("demo",),
        ("paper", "pretrained"),
        ("cli",),
        ("__main__",),
    ),
    "lowpeft.core": (("padding", "attachment"), ("observation",), ("planning",), ("operations",), ("files",)),
    "lowpeft.restoration": (
        ("images", "progress", "words"),
        ("metrics", "pages", "degradations"),
        ("data", "inference", "perceptual"),
        ("evaluation", "exporting", "lam", "enhancing"),
        ("training",),
    ),
}

# What `import lowpeft` must not load: optional, or slow to import.
NOT_AT_IMPORT = {
    "PIL",
    "accelerate",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "rich",
    "shtab",
    "skimage",
    "spandrel",
    "submitit",
    "timm",
    "torchvision",
    "transformers",
}

RUNTIME_DEPENDENCIES = {"einops", "huggingface_hub", "safetensors", "timm", "torch"}


def module_name(path: Path) -> str:
    """`lowpeft.kinds.lora` for src/lowpeft/kinds/lora.py, `lowpeft.kinds` for its `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is tracked, or would be by `git add .`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return tuple(p for name in listing.split("\0") if name and (p := ROOT / name).is_file())


# --- The public door
def public_names() -> list[str]:
    return [n for n in lowpeft.__all__ if not n.startswith("__")]


def test_all_is_sorted_and_complete() -> None:
    """What lowpeft exports is what `__all__` says; helpers from elsewhere (`Any`, `annotations`) do not count."""
    things = {n: getattr(lowpeft, n) for n in dir(lowpeft) if not n.startswith("_")}
    home = {n: getattr(t, "__module__", "lowpeft").partition(".")[0] for n, t in things.items()}
    exported = {n for n, t in things.items() if not isinstance(t, ModuleType) and home[n] == "lowpeft"}
    assert list(lowpeft.__all__) == sorted(lowpeft.__all__)
    assert set(public_names()) == exported


def test_every_public_name_has_a_docstring() -> None:
    bare = []
    for name in public_names():
        thing = getattr(lowpeft, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        doc = (thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__) or ""
        generated = dataclasses.is_dataclass(thing) and doc.startswith(f"{thing.__name__}(")
        if not doc.strip() or generated:
            bare.append(name)
    assert bare == []


def test_every_error_is_a_lowpeft_error() -> None:
    errors = [getattr(lowpeft, n) for n in public_names()]
    errors = [e for e in errors if inspect.isclass(e) and issubclass(e, Exception)]
    assert lowpeft.LowpeftError in errors
    assert [e.__name__ for e in errors if not issubclass(e, lowpeft.LowpeftError)] == []


def test_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        metadata.version("lowpeft")
    except metadata.PackageNotFoundError:
        pytest.skip("lowpeft is not installed, so its metadata cannot be read")
    assert lowpeft.__version__ == project["version"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_runtime_dependencies_are_the_five() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    assert names == RUNTIME_DEPENDENCIES


INSTALLED_AS = {"PIL": "pillow", "skimage": "scikit-image"}
"""Packages that are imported by another name than they are installed by."""

NOT_NAMED = {"matplotlib", "psutil", "tensorboard"}
"""Packages that a command does without where they are not installed."""

BY_OTHERS = {"psutil"}
"""Those of them that packages of our extras bring: accelerate."""

IN_NO_EXTRA = {"pyiqa"}
"""Packages that the user installs beside lowpeft: they bring much, and fetch weights."""

NEED_DEMO = ("lowpeft.demo", "lowpeft.paper.reproduce.networks")
"""Modules that may import what only the extra `demo` brings together."""


def requirements(extra: str) -> set[str]:
    """Names of the packages that an extra of pyproject.toml lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[^\w-]", requirement)[0] for requirement in project["optional-dependencies"][extra]}


def packages_of(module: str) -> set[str]:
    """Packages beside the standard library and lowpeft that a module imports, by the name to install them by."""
    names = set()
    for node in ast.walk(parsed(SOURCES[module])):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    if module == "lowpeft.restoration.training.trackers":
        names.add("tensorboard")  # Accelerate imports it
    return {INSTALLED_AS.get(n, n) for n in names - sys.stdlib_module_names - IN_NO_EXTRA - {"lowpeft"}}


def test_the_extras_bring_what_the_commands_import() -> None:
    """`train` is enough for every command but those of NEED_DEMO; `spandrel` opens checkpoints, `cluster` submits,
    `onnx` exports, `completion` makes scripts."""
    imported = {module: packages_of(module) - RUNTIME_DEPENDENCIES - BY_OTHERS for module in SOURCES}
    brought = {"lowpeft.backbones.spandrel_reader": requirements("spandrel")}
    brought["lowpeft.paper.reproduce.cluster"] = requirements("cluster")
    brought["lowpeft.cli.completion"] = requirements("completion")
    exporting = "lowpeft.restoration.exporting"
    brought |= {module: requirements("onnx") for module in SOURCES if module.startswith(f"{exporting}.onnx_")}
    brought |= {module: requirements("demo") for module in SOURCES if module.startswith(NEED_DEMO)}
    missing = {m: found for m, names in imported.items() if (found := names - brought.get(m, requirements("train")))}
    assert missing == {}
    assert requirements("train") == set().union(*(i for m, i in imported.items() if m not in brought))


def test_every_runtime_dependency_is_imported() -> None:
    assert set().union(*map(packages_of, SOURCES)) >= RUNTIME_DEPENDENCIES


def test_a_command_names_the_extra_of_a_package_that_is_missing() -> None:
    optional = set().union(*map(packages_of, SOURCES)) - RUNTIME_DEPENDENCIES - NOT_NAMED
    assert {INSTALLED_AS.get(name, name) for name in EXTRAS} == optional
    assert [n for n, extra in EXTRAS.items() if INSTALLED_AS.get(n, n) not in requirements(extra)] == []


# --- What imports what
IMPORT_REPORT = """
import json, sys, time
start = time.process_time()
import torch
before, between = set(sys.modules), time.process_time()
import lowpeft
share = (time.process_time() - between) / (between - start)
json.dump({"share": share, "loaded": sorted(set(sys.modules) - before)}, sys.stdout)
"""


def test_import_is_light() -> None:
    """`import lowpeft` takes little CPU time beside torch's, and loads nothing optional or slow."""
    shares = []
    for _ in range(5):  # the best of five, because another process may have the machine
        done = subprocess.run([sys.executable, "-c", IMPORT_REPORT], capture_output=True, check=True, text=True)
        report = json.loads(done.stdout)
        assert NOT_AT_IMPORT.isdisjoint({name.partition(".")[0] for name in report["loaded"]})
        shares.append(report["share"])
        if shares[-1] < MOST_SHARE_OF_TORCH:
            return
    pytest.fail(f"import lowpeft took {min(shares):.2f} of the CPU time of import torch")


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Every lowpeft module that `module` imports, anywhere in the file but for types alone, with the line."""
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for_types = {
        node
        for block in ast.walk(parsed(path))
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(parsed(path)):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names if a.name.partition(".")[0] == "lowpeft")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*start, *([base] if base else [])])
            if base.partition(".")[0] == "lowpeft":
                full = (f"{base}.{a.name}" for a in node.names)
                yield from dict.fromkeys((name if name in SOURCES else base, node.lineno) for name in full)


def part_of(package: str, module: str) -> str:
    """The part of a package that a module is in: `kinds` for `lowpeft.kinds.lora`; empty where it is in none."""
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else ""


RANKS = {
    package: {name: rank for rank, names in enumerate(order) for name in names} for package, order in PACKAGES.items()
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_part_of_a_package_has_a_place_in_the_order(package: str) -> None:
    assert {part_of(package, module) for module in SOURCES} - {""} == set(RANKS[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    rank, wrong = RANKS[package], []
    for module in SOURCES:
        for imported, line in imports_of(module):
            here, there = part_of(package, module), part_of(package, imported)
            if here and there and here != there and rank[there] >= rank[here]:
                wrong.append(f"{where(SOURCES[module], line)} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    graph = {module: {i for i, _ in imports_of(module) if i in SOURCES} - {module} for module in SOURCES}
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in finished:
            for imported in sorted(graph[module]):
                visit(imported, (*trail, module))
            finished.add(module)

    for module in sorted(graph):
        visit(module, ())


# --- The source
SHORT = [
    *SOURCES.values(),
    *(p for folder in ("benchmarks", "docs", "examples") for p in (ROOT / folder).rglob("*.py")),
]


def test_files_are_short() -> None:
    lengths = {where(p, 1): len(p.read_text(encoding="utf-8").splitlines()) for p in SHORT}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_PER_FILE} == {}


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, less its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_functions_are_short() -> None:
    long = {}
    for path in SHORT:
        for node in ast.walk(parsed(path)):
            if (
                isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                and lines_of_code(node) > MOST_LINES_PER_FUNCTION
            ):
                long[where(path, node.lineno)] = lines_of_code(node)
    assert long == {}


def catches_everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(k is None or (isinstance(k, ast.Name) and k.id in {"Exception", "BaseException"}) for k in kinds)


def does_nothing(body: list[ast.stmt]) -> bool:
    return all(isinstance(s, (ast.Pass, ast.Continue)) or ast.unparse(s) == "..." for s in body)


def test_no_error_is_swallowed_and_nothing_is_asserted() -> None:
    wrong = []
    for path in SOURCES.values():
        for node in ast.walk(parsed(path)):
            swallows = isinstance(node, ast.ExceptHandler) and catches_everything(node) and does_nothing(node.body)
            if swallows or isinstance(node, ast.Assert):
                wrong.append(where(path, node.lineno))
    assert not wrong, "\n".join(wrong)


# --- The repository
def test_no_large_files() -> None:
    sizes = {p.relative_to(ROOT).as_posix(): p.stat().st_size for p in repository_files()}
    assert {name: size for name, size in sizes.items() if size > MOST_BYTES_PER_FILE} == {}


# Written in pieces, so that this file does not contain what it forbids.
REGISTRIES = [("pypi", "org"), ("python" + "hosted", "org"), ("npmjs", "com")]
MACHINE_FOLDERS = ["work", "tmp", "root", "home", "Users", "mnt"]
FORBIDDEN = {
    "a package registry's host": r"\b(?:" + "|".join(rf"{name}\.{end}" for name, end in REGISTRIES) + r")\b",
    "a path of one machine": r"(?<![\w.~-])/(?:" + "|".join(MACHINE_FOLDERS) + r")/\w",
    "a name that no reader knows": r"(?i)\bthe[ -]" + "fa" + r"rm\b",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_forbidden_strings(what: str) -> None:
    pattern, found = re.compile(FORBIDDEN[what]), []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a binary file
        found += [where(path, text.count("\n", 0, m.start()) + 1) for m in pattern.finditer(text)]
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.slow
def test_wheel_is_complete(tmp_path: Path) -> None:
    """Everything that the package reads at run time is in the wheel that users install."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("lowpeft/")}
    data = {".css", ".js", ".json", ".md", ".py", ".safetensors", ".toml", ".typed"}
    expected = {p.relative_to(PACKAGE.parent).as_posix() for p in PACKAGE.rglob("*") if p.suffix in data}
    expected = {n for n in expected if "__pycache__" not in n} | {"lowpeft/py.typed"}
    assert expected <= inside, sorted(expected - inside)
    assert any(n.startswith("lowpeft/recipes/") and n.endswith(".toml") for n in inside)
    assert any(n.startswith("lowpeft/demo/") and n.endswith(".safetensors") for n in inside)
