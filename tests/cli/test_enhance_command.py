"""`lowpeft enhance`: files in, files out, with or without an adapter, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lowpeft.cli import main
from lowpeft.restoration.images import read_image, write_image
from scene_files import noise

CODE = """
import torch
from torch import nn

import lowpeft


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.eye_(self.body.weight[:, :, 0, 0].data)

    def forward(self, x):
        return self.body(x).repeat_interleave(2, -1).repeat_interleave(2, -2)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.body(x) + x.mean((-2, -1), keepdim=True)


def twice():
    return lowpeft.describe(Twice(), scale=2, channels=3, value_range=(0, 1), size_multiple=1, min_px=1)


def mean():
    return lowpeft.describe(Mean(), scale=1, channels=3, value_range=(0, 1), size_multiple=1, min_px=1)
"""
TWICE = ["--network", "enhancers:twice", "--device", "cpu", "--out", "out"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of networks and two images."""
    (tmp_path / "enhancers.py").write_text(CODE)
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_image(noise(16, 18), tmp_path / "in" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("enhancers", None)


def test_a_folder_is_enhanced_without_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enhance", "in", *TWICE]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["out/a_x2.png", "out/b_x2.png"]
    assert "enhancing 2/2" in said.err
    assert torch.equal(read_image("out/a_x2.png")[:, ::2, ::2], noise(16, 18))
    assert main(["enhance", "in", *TWICE]) == 2
    assert "out/b_x2.png" in capsys.readouterr().err
    assert main(["enhance", "in", *TWICE, "--skip-existing"]) == 0
    assert capsys.readouterr().err.endswith("results that exist and were skipped: 2\n")
    assert main(["enhance", "in", *TWICE, "--overwrite", "--precision", "bf16"]) == 0
    capsys.readouterr()
    assert main(["enhance", "out", *TWICE]) == 0
    assert main(["enhance", "out", *TWICE, "--skip-existing"]) == 0
    said = capsys.readouterr()
    assert "out/a_x2_x2_x2.png" not in said.out
    assert "named as the results of others: 2 (out/a_x2_x2.png, out/b_x2_x2.png)" in said.err


def test_files_that_fail_are_listed_at_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in" / "c\nd.png").write_text("text")
    assert main(["enhance", "in/*.png", *TWICE, "--bits", "16"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert said.err.splitlines()[-2:] == [
        "lowpeft enhance: not enhanced: 1",
        "  - in/c\\nd.png is not an image in a format that Pillow reads",
    ]
    assert main(["enhance", "in/c\nd.png", *TWICE]) == 2
    assert main(["enhance", "none", "in/*.tif", *TWICE]) == 2
    assert ["none" in capsys.readouterr().err, (folder / "none").exists()] == [True, False]


@pytest.mark.parametrize(("network", "times"), [("mean", 1), ("twice", 0)])
def test_strips_of_a_network_that_sees_the_whole_image_are_remarked(
    network: str, times: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(noise(600, 64), "in/tall.png")
    bounded = ["--network", f"enhancers:{network}", "--device", "cpu", "--memory-mb", "8"]
    assert main(["enhance", "in/tall.png", *bounded, "--out", "out"]) == 0
    said = capsys.readouterr().err
    assert (said.count("run in strips"), said.count("sees the whole image")) == (1 + times, times)
    degrade = ["--degrade", "noise:5" if network == "mean" else "down:2"]
    assert main(["evaluate", "--data", "in", *degrade, "--protocol", "rgb", *bounded]) == 0
    assert capsys.readouterr().err.count("sees the whole image") == times


def test_json_says_which_result_is_of_which_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in" / "c.png").write_text("no image")
    assert main(["enhance", "in", *TWICE, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == [{"files": [f"in/{n}.png"], "results": [f"out/{n}_x2.png"]} for n in "ab"]
    assert [line.split()[0] for line in found["failures"]] == ["in/c.png"]
