"""`--json` of every command: one JSON object on standard output, and nothing else."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import lowpeft
from lowpeft.backbones.asteisr import Converted
from lowpeft.cli import main, parser
from lowpeft.cli.help import subcommands
from lowpeft.cli.output import as_json
from lowpeft.core.files.hub.pulling import Pulled
from lowpeft.demo import demo_backbone, write_scenes
from lowpeft.restoration.images import make_folder, read_image, write_image
from lowpeft.restoration.training import save_network
from lowpeft.storage import write_json

DEMO = "--weights demo"
TRAINED = "--steps 1 --batch 1 --crop 32 32 --optimize none"
CASES = {
    "plan": f"stereo {DEMO}",
    "info": "{work}/adapter",
    "recipes": "lora",
    "methods": "",
    "prepare": "{work}/pairs --scale 2 --out {out}",
    "verify-lr": "{work}/prepared --scale 2",
    "check-pair": "{work}/pairs/train_0000_L.png {work}/pairs/train_0000_R.png",
    "train": f"spatial {DEMO} --images {{work}}/pairs --test {{work}}/pairs --out {{out}} {TRAINED}",
    "evaluate": "--bicubic --scale 2 --data {work}/prepared",
    "compare": f"trained={{work}}/adapter {DEMO} --data {{work}}/prepared",
    "enhance": f"{{work}}/l.png {{work}}/r.png {DEMO} --adapter {{work}}/adapter --out {{out}}",
    "export": f"{DEMO} --torch {{out}}.safetensors",
    "lam": f"{{work}}/l.png {{work}}/r.png {DEMO} --patch 0 0 8 --steps 1 --out {{out}}",
    "reproduce": "table1 --show",
    "convert": "asteisr network.pth --out {out}",
    "push": "{work}/adapter owner/name --license mit --dry-run",
    "pull": "owner/name --out {out}",
    "list": "{work}",
    "demo": "--quick --out {out}",
    "completion": "bash",
}
"""Cheapest call of each command."""
EXPECTED = {
    "plan": "sites",
    "info": "recipe",
    "recipes": "recipes",
    "methods": "methods",
    "prepare": "scenes",
    "verify-lr": "borders",
    "check-pair": "verdict",
    "train": "written",
    "evaluate": "methods",
    "compare": "gains",
    "enhance": "written",
    "export": "files",
    "lam": "figures",
    "reproduce": "experiment",
    "convert": "adapter",
    "push": "result",
    "pull": "folder",
    "list": "adapters",
    "demo": "mean_db",
    "completion": "script",
}
"""A name in the object of each command."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, their LR images, single images, two small views and an adapter."""
    folder = tmp_path_factory.mktemp("json")
    write_scenes(folder / "pairs", range(1), size_px=(64, 128))
    assert main(["prepare", str(folder / "pairs"), "--scale", "2", "--out", str(folder / "prepared")]) == 0
    view = read_image(folder / "pairs" / "train_0000_L.png")
    for name in ("l.png", "r.png"):
        write_image(view[:, :16, :24], folder / name)
    lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), "stereo"), folder / "adapter")
    return folder


def replace_slow(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    """Replace the work of commands that take a minute, a network or the Hub; other tests do it."""
    converted = Converted(weights=work / "network.pth", adapter=work / "adapter")
    monkeypatch.setattr(sys.modules["lowpeft.cli.convert"], "convert_asteisr", lambda *_, **__: converted)

    def demo(*, out: str, **_: object) -> None:
        print("what people read")
        write_json(make_folder(out) / "results.json", {"mean_db": {"frozen": 30.0}})

    monkeypatch.setattr("lowpeft.demo.run.run_demo", demo)
    pulled = Pulled(folder=work / "adapter", repo_id="owner/name", commit="0" * 40)
    monkeypatch.setattr("lowpeft.cli.sharing.pull", lambda *_, **__: pulled)


def test_the_table_has_every_command() -> None:
    assert CASES.keys() == EXPECTED.keys() == subcommands(parser()).keys()


@pytest.mark.parametrize("command", CASES)
def test_json_is_all_that_is_printed(
    command: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "completion":
        pytest.importorskip("shtab")
    replace_slow(monkeypatch, work)
    capsys.readouterr()
    arguments = shlex.split(CASES[command].format(work=work, out=tmp_path / "out"))
    assert main([command, *arguments, "--json"]) in ((0, 1) if command == "check-pair" else (0,))

    def refused(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    figures = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert isinstance(figures, dict)
    assert EXPECTED[command] in figures


def test_info_gives_figures_not_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lowpeft.adapt(demo_backbone(), "lora", rank=2)
    lowpeft.save_adapter(model, tmp_path, facts={"PSNR": 31.6105, "data": "made up", "tensors": 3})
    capsys.readouterr()
    assert main(["info", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    adapter = lowpeft.read_adapter(tmp_path)
    assert "tensor(" not in repr(adapter)
    lora = figures["kinds"]["lora"]
    assert lora["settings"][0]["rank"] == 2
    assert [site["path"] for site in lora["sites"]] == [site.path for site in adapter.sites]
    assert lora["parameters"] == figures["parameters"] == sum(site["parameters"] for site in lora["sites"])
    assert figures["tensors"]["count"] == len(adapter.tensors)
    assert figures["tensors"]["bytes"] == adapter.size_bytes
    assert figures["base"]["parameters"] == adapter.base.parameters
    assert figures["network"]["scale"] == 2
    assert figures["facts"] == {"PSNR": 31.6105, "data": "made up", "tensors": 3}


def test_info_gives_the_figures_of_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_network(torch.nn.Linear(3, 2), tmp_path, facts={"training": "3 steps"})
    assert main(["info", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tensors"] == {"count": 2, "elements": 8, "bytes": path.stat().st_size}
    assert figures["facts"] == {"training": "3 steps"}


FIGURE_AS_TEXT = re.compile(r"[-+]?[\d.,]+|\d[\d,]* (?:sites?|parameters|MB|scenes|dB)\b.*|\w+=\d.*")


@pytest.mark.parametrize("command", ["plan", "info", "recipes", "methods"])
def test_no_figure_is_a_text(command: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([command, *shlex.split(CASES[command].format(work=work, out="")), "--json"]) == 0

    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for name, each in value.items() if name != "lowpeft" for text in texts(each)]
        if isinstance(value, list):
            return [text for each in value for text in texts(each)]
        return [value] if isinstance(value, str) else []

    assert not [text for text in texts(json.loads(capsys.readouterr().out)) if FIGURE_AS_TEXT.fullmatch(text)]


def test_figures_become_plain_values() -> None:
    values = {"a": math.inf, "b": (1.5, math.nan), 3: Path("x"), "c": None, "d": True}
    assert as_json(values) == {"a": "inf", "b": [1.5, "nan"], "3": "x", "c": None, "d": True}


def test_an_error_leaves_standard_output_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "missing", "--json"]) == 2
    assert capsys.readouterr().out == ""
