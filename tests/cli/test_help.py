"""The help of every command, and what the command line says of wrong options and of bugs."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

import lowpeft
from lowpeft.cli import EXIT_CODES, main, parser, wording
from lowpeft.cli.help import subcommands
from lowpeft.cli.wording import in_options
from lowpeft.errors import DataError
from lowpeft.restoration.data import LAYOUTS, Scene
from lowpeft.restoration.data.examples import check_degraded
from lowpeft.restoration.degradations import PRESETS, STEPS


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's own parser by its name."""
    return subcommands(parser())


@pytest.fixture
def width_80(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("width_80")
def test_help_fits_a_terminal_of_80_columns() -> None:
    for each in (parser(), *commands().values()):
        assert max(map(len, each.format_help().splitlines())) <= 80, each.prog


@pytest.mark.usefixtures("width_80")
def test_help_shows_examples_first_and_they_parse() -> None:
    top = parser()
    for name, each in commands().items():
        usage, about, examples, *_ = each.format_help().split("\n\n")
        assert len(usage.splitlines()) <= 2, usage
        assert about
        heading, lines = examples.split(":\n", 1)
        found = re.findall(r"^  lowpeft (.*)$", lines.replace("\\\n", ""), re.MULTILINE)
        assert heading == ("example" if len(found) == 1 else "examples")
        assert 2 <= len(found) <= 4, name
        for example in found:
            assert top.parse_args(shlex.split(example.partition(" >")[0])).command == name


def test_help_names_options_by_their_names() -> None:
    """No option is described by the Python name of another one."""
    for name, each in commands().items():
        words = set(re.findall(r"[a-z]+(?:_[a-z]+)+", each.format_help()))
        assert not words & {action.dest for action in each._actions}, name
        assert "_--" not in each.format_help(), name


def test_help_names_no_files_that_an_installed_package_lacks() -> None:
    for name, each in commands().items():
        shown = each.format_help()
        assert not re.search(r"\bdocs/|\.md\b(?<!report\.md)", shown), name


def test_help_explains_degradations_and_layouts() -> None:
    shown = " ".join(commands()["evaluate"].format_help().split())
    for name, text in {**STEPS, **PRESETS}.items():
        assert re.search(rf"\b{name}(:VALUE)? {re.escape(f'({text.text})')}", shown), name
    for name, row in LAYOUTS.items():
        assert f"{name} ({row.title})" in shown


def test_the_top_help_names_the_exit_codes() -> None:
    shown = parser().format_help()
    assert all(re.search(rf"^  {re.escape(code)} +\w", shown, re.MULTILINE) for code in EXIT_CODES)


def test_every_command_with_an_exit_code_of_its_own_is_named_with_it() -> None:
    for name, each in commands().items():
        if each.get_default("run").__annotations__["return"] == "int":
            assert name in EXIT_CODES["1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("info folder --josn", "did you mean '--json'?"),
        ("train lora --images a --out b --bacth 3", "did you mean '--batch'?"),
        ("recipes one two", "cannot use two"),
    ],
)
def test_an_unknown_option_is_refused_by_its_command(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: lowpeft {line.split()[0]} ")
    assert said in error


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        ("enhance a --adapter b", "memory_mb=3 is too little", "--memory-mb 3 is too little"),
        ("enhance a --adapter b", "with resume=True (--resume), or not", "with --resume, or not"),
        ("enhance a --adapter b", "raise memory_mb", "raise --memory-mb"),
        ("enhance a --adapter b", "open it with allow_half=True", "open it with --allow-half"),
        ("enhance a --adapter b", "task=, weights= are for files", "--task, --weights are for files"),
        ("verify-lr a --scale 2", "name it (lr_folder=, on the command line --data-lr or --lr):", "name it (--lr):"),
        ("evaluate --data a", "f(x, a=True) (on the command line --network-fact a=true)", "--network-fact a=true"),
        ("train r --data a --out b", "give views=1 (--images or --views 1)", "give --images"),
        ("prepare a --scale 2 --out b", "give views=1 (--images or --views 1)", "give --views 1"),
        ("evaluate --data a", "give --network-fact scale=4", "give --network-fact scale=4"),
        ("evaluate --data a", "lowpeft.describe(model, scale=4) does", "lowpeft.describe(model, scale=4) does"),
        ("evaluate --data a", "the file my/memory_mb.png", "the file my/memory_mb.png"),
        ("train r --data a --out b", "keys are warmup_steps, rates", "keys are warmup_steps, rates"),
        ("train r --data a --out b --warmup-steps 0", "warmup_steps must be 1", "--warmup-steps must be 1"),
        ("export", "write a graph (--onnx, export_onnx)", "write a graph (--onnx)"),
        ("evaluate --data a", "with degrade=degradation('a:2') (--degrade a:2)", "with --degrade a:2"),
    ],
)  # fmt: skip
def test_errors_are_in_the_words_of_the_command_line(line: str, text: str, said: str) -> None:
    assert in_options(text, parser().parse_args(shlex.split(line))) == said


def _plain(part: ast.expr) -> ast.Constant:
    return part if isinstance(part, ast.Constant) else ast.Constant("X")


def messages() -> list[str]:
    """Every text of the library that names an option beside what Python says, with X for its values."""
    found = []
    for path in set(Path(lowpeft.__file__).parent.rglob("*.py")) - {Path(wording.__file__)}:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        filled = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in filled for part in node.values}
        texts = ["".join(str(part.value) for part in map(_plain, node.values)) for node in filled]
        texts += [str(node.value) for node in nodes if isinstance(node, ast.Constant) and id(node) not in parts]
        found += [text for text in texts if re.search(r"\(--|on the command line", text)]
    return found


def test_no_message_names_an_option_twice_or_an_argument_of_python_beside_it() -> None:
    texts = messages()
    assert len(texts) > 20
    each = {name: argparse.Namespace(parser=sub, **defaults(sub)) for name, sub in commands().items()}
    for text in texts:
        left = {}
        for name, options in each.items():
            said = in_options(text, options)
            assert not re.search(r"(--[\w-]+)[ ,;]+\1\b", said), (name, said)
            assert not re.search("on the command line,? --", said), (name, said)
            found = re.findall(r"(?<![\w-])(\w+)=", re.sub(r"--(?:set|network-fact|network-set) \S+", "", said))
            assert not {*found} & vars(options).keys(), (name, said)
            left[name] = found
        assert [] in left.values(), text  # some command says it all in its own words


def test_a_network_of_scale_1_without_degraded_images_names_the_options_that_give_them() -> None:
    options = parser().parse_args(["evaluate", "--data", "a"])
    with pytest.raises(DataError) as raised:
        check_degraded(Scene("a", (Path("a.png"),)), 1, None)
    said = in_options(str(raised.value), options)
    assert said.endswith("name their folder (--lr), or make them, for example with --degrade noise:25")


def defaults(command: argparse.ArgumentParser) -> dict[str, None]:
    """No option of a command given."""
    return {action.dest: None for action in command._actions}


def test_a_bug_keeps_its_traceback_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sys.modules["lowpeft.cli.show"], "read_adapter", fails)
    with pytest.raises(ZeroDivisionError) as raised:
        main(["info", "folder"])
    (note,) = raised.value.__notes__
    assert note.startswith("lowpeft info: ")
    assert "please report it" in note


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*commands(), "memory-mb", "replicate", "lora-convpass", "finetuning"):
        assert word in script
