"""`lowpeft evaluate` and `lowpeft compare`: frozen beside adapted, interrupted and resumed, several adapters."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lowpeft
from lowpeft import DataError
from lowpeft.cli import main
from lowpeft.locking import locked
from lowpeft.restoration.images import read_image, to_float, write_image
from states import randomise_adapters
from tiers import by_default

CODE = """
import os
import signal

import torch
from torch import nn


class Net(nn.Module):
    calls, stop_at = 0, None

    def __init__(self, scale=1):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3 * scale**2, 3, 1, 1))
        self.up = nn.PixelShuffle(scale)

    def forward(self, x):
        Net.calls += tuple(x.shape[-2:]) == (16, 20)  # not those that probe the network
        if Net.calls == Net.stop_at:
            raise KeyboardInterrupt
        return self.up(self.body(x)) * 0.1 + 0.5


def make(scale=1):
    import own_helper

    return Net(int(scale))
"""
NAMES = [f"image{i}" for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clean images, the code of a network, and two adapters for it."""
    path, generator = tmp_path_factory.mktemp("measuring"), torch.Generator().manual_seed(0)
    (path / "clean").mkdir()
    for name in NAMES:
        write_image(torch.rand(3, 16, 20, generator=generator), path / "clean" / f"{name}.png")
    (path / "my_net.py").write_text(CODE)
    (path / "own_helper.py").write_text("FACTOR = 1")
    sys.path.insert(0, str(path))
    from my_net import make  # type: ignore[import-not-found]

    for seed, name in enumerate(("one", "two")):
        model = lowpeft.adapt(make(), "lora", rank=2, target=("body.0", "body.2"))
        lowpeft.save_adapter(randomise_adapters(model, seed=seed), path / name)
    sys.path.remove(str(path))
    return path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a command that measures the clean images with noise."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    import my_net  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.setattr(my_net.Net, "calls", 0)
    monkeypatch.setattr(my_net.Net, "stop_at", None)

    def build(name: str, *more: str) -> list[str]:
        fixed = ["--network", "my_net:make", "--data", "clean", "--degrade", "noise:25", "--device", "cpu"]
        return [name, *more, *fixed]

    return build


def stop_at(call: int | None) -> None:
    """Interrupt the network's call of this number, counted from now."""
    net = sys.modules["my_net"].Net
    net.calls, net.stop_at = 0, call


def content(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "report.json").read_text()))


# --- Did it help?
def test_the_frozen_network_stands_beside_the_adapted_one(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("evaluate", "--adapter", "one", "--out", str(tmp_path))) == 0
    printed, found = capsys.readouterr().out, content(tmp_path)
    frozen, adapted = found["methods"]  # type: ignore[misc]
    assert (frozen["method"], adapted["method"]) == ("frozen", "adapted")
    (gain,) = found["gains"]  # type: ignore[misc]
    figures = gain["columns"]["PSNR RGB"]
    assert figures["mean"] == pytest.approx(adapted["mean"]["PSNR RGB"] - frozen["mean"]["PSNR RGB"])
    low, high = figures["95 % interval"]
    assert low < figures["mean"] < high
    assert gain["verdict"] in printed
    assert gain["verdict"] in (tmp_path / "report.md").read_text()
    for method in ("frozen", "adapted"):
        assert sorted(path.stem for path in (tmp_path / "images" / method).iterdir()) == NAMES
    main(command("evaluate", "--out", str(tmp_path / "alone")))
    assert content(tmp_path / "alone")["methods"][0] == frozen  # type: ignore[index]


def test_the_images_on_disk_are_what_was_measured(command: Callable[..., list[str]], tmp_path: Path) -> None:
    main(command("evaluate", "--adapter", "one", "--no-frozen", "--out", str(tmp_path)))
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["adapted"]
    clean = read_image(Path("clean") / "image3.png")
    written = read_image(tmp_path / "images" / "adapted" / "image3.png")
    figure = content(tmp_path)["methods"][0]["scenes"]["image3"]["PSNR RGB"]  # type: ignore[index]
    error = (to_float(clean) - to_float(written)).square().mean().log10()
    assert figure == pytest.approx(-10 * error.item(), abs=1e-3)


# --- The page
def test_a_page_that_fails_is_made_again_without_measuring_again(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, given = tmp_path / "index.html", command("evaluate", "--adapter", "one", "--out", str(tmp_path))
    page.mkdir()
    assert main([*given, "--page-scenes", "3"]) == 2
    page.rmdir()
    stop_at(None)
    assert main([*given, "--page-scenes", "3", "--resume"]) == 0
    assert sys.modules["my_net"].Net.calls == 0
    assert not (tmp_path / ".measuring").exists()
    text = page.read_text()
    assert text.count('<figure class="slider">') == 3
    assert "lowpeft evaluate --adapter one --out" in text


def test_the_page_of_several_adapters_has_the_curves_of_those_with_a_log(
    command: Callable[..., list[str]], folder: Path, tmp_path: Path
) -> None:
    row = {"step": 1, "loss": 0.5, "learning_rate": 0.1, "validation": None}
    (folder / "two" / "training.jsonl").write_text(json.dumps(row) + "\n")
    assert main(command("compare", "one", "again=two", "--out", str(tmp_path), "--page-scenes", "0")) == 0
    training = (tmp_path / "index.html").read_text().split("<h2>Training")[1]
    assert ('alt="again"' in training, 'alt="one"' in training) == (True, False)


def test_a_number_of_scenes_is_not_negative(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("evaluate", "--page-scenes", "-1")) == 2
    assert "--page-scenes" in capsys.readouterr().err


# --- Interrupted
@pytest.mark.parametrize("call", by_default([4], [1, 4, 10]))
def test_an_interrupted_measurement_goes_on_where_it_was(
    command: Callable[..., list[str]], tmp_path: Path, call: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command("evaluate", "--adapter", "one", "--out", str(whole))) == 0
    out.mkdir()
    (out / "report.json").write_text("old")
    stop_at(call)
    assert main(command("evaluate", "--adapter", "one", "--out", str(out))) == 130
    assert (out / "report.json").read_text() == "old"
    stop_at(None)
    capsys.readouterr()
    assert main(command("evaluate", "--adapter", "one", "--out", str(out), "--resume")) == 0
    done = (call - 1) // 2  # two methods, so two calls for each scene
    assert sys.modules["my_net"].Net.calls == 2 * (len(NAMES) - done)
    assert (f"{done} of 5 scenes are measured already" in capsys.readouterr().err) == (done > 0)
    assert content(out) == content(whole)
    assert not (out / ".measuring").exists()


def test_another_measurement_is_not_resumed(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(3)
    assert main(command("evaluate", "--adapter", "one", "--out", str(tmp_path))) == 130
    stop_at(None)
    for more, problem in (
        (["--adapter", "two"], "adapter: "),
        (["--adapter", "one", "--protocol", "derain"], "protocol: "),
    ):
        assert main(command("evaluate", *more, "--out", str(tmp_path), "--resume")) == 2
        assert f"- {problem}" in capsys.readouterr().err
    assert main(command("evaluate", "--adapter", "two", "--out", str(tmp_path))) == 0
    assert "the 1 scenes of another, interrupted measurement are dropped" in capsys.readouterr().err


def test_what_was_measured_is_not_dropped_without_a_word(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command("evaluate", "--adapter", "one", "--out", str(tmp_path))
    stop_at(5)
    assert main(given) == 130
    assert "2 of 5 scenes are measured and kept: go on with --resume" in capsys.readouterr().err
    stop_at(None)
    assert main(given) == 2
    assert "has 2 of 5 scenes of this measurement" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    assert "2 of 5 scenes are measured already" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    assert "there is nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize("change", by_default(["image", "code"], ["image", "folder", "code"]))
def test_a_measurement_of_other_images_or_code_is_not_resumed(
    command: Callable[..., list[str]], folder: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "a" / "clean"
    shutil.copytree(folder / "clean", data)
    given = command("evaluate", "--out", str(tmp_path / "out"))
    given[given.index("clean")] = str(data)
    stop_at(3)
    assert main(given) == 130
    stop_at(None)
    if change == "image":
        write_image(torch.rand(3, 16, 20), data / "image0.png")
    elif change == "folder":
        shutil.copytree(data, tmp_path / "b" / "clean")
        given[given.index(str(data))] = str(tmp_path / "b" / "clean")
    else:
        code = folder / "own_helper.py"
        text = code.read_text()
        code.write_text(text + "\n# changed\n")
    assert main([*given, "--resume"]) == 2
    assert "of another measurement" in capsys.readouterr().err
    if change == "code":
        code.write_text(text)


def test_an_earlier_report_keeps_its_images_until_the_new_one_is_complete(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert main(command("evaluate", "--adapter", "one", "--no-frozen", "--out", str(tmp_path))) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    stop_at(4)
    assert main(command("evaluate", "--adapter", "two", "--no-frozen", "--out", str(tmp_path))) == 130
    assert {path: path.read_bytes() for path in before} == before


def test_two_measurements_do_not_write_into_one_folder(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path, DataError):
        assert main(command("evaluate", "--adapter", "one", "--out", str(tmp_path))) == 2
    assert f"another run is writing into {tmp_path}" in capsys.readouterr().err


def test_names_of_files_that_are_no_text_stand_in_the_reports(
    command: Callable[..., list[str]], folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "clean"
    data.mkdir()
    try:
        shutil.copy(folder / "clean" / "image0.png", os.fsencode(data) + b"/a\xff.png")
    except OSError:
        pytest.skip("the file system takes only names that are text")
    given = command("evaluate", "--adapter", "one", "--out", str(tmp_path / "out"))
    given[given.index("clean")] = str(data)
    assert main(given) == 0
    assert list(content(tmp_path / "out")["methods"][0]["scenes"]) == ["a\udcff"]  # type: ignore[index]


def test_on_a_full_disk_the_old_report_stays(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "report.json").write_text("old")
    write = Path.write_text

    def full(path: Path, text: str, *rest: object, **options: object) -> int:
        if path.name.startswith(".report"):
            write(path, text[:10])
            raise OSError(28, "No space left on device")
        return write(path, text, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    assert main(command("evaluate", "--adapter", "one", "--out", str(tmp_path))) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == "old"
    assert not list((tmp_path / ".measuring").glob(".*"))


# --- Several at once
def test_adapters_are_compared_with_each_other(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("compare", "one", "second=two", "--bicubic", "--out", str(tmp_path))) == 0
    found = content(tmp_path)
    assert [each["method"] for each in found["methods"]] == ["input", "frozen", "one", "second"]  # type: ignore[attr-defined]
    (between,) = found["between methods"]  # type: ignore[misc]
    assert (between["method"], between["over"]) == ("second", "one")
    assert [(each["method"], each["over"]) for each in found["gains"]] == [("one", "frozen"), ("second", "frozen")]  # type: ignore[attr-defined]
    assert main(command("evaluate", "--adapter", "two", "--out", str(tmp_path / "two"))) == 0
    assert content(tmp_path / "two")["methods"][1]["scenes"] == found["methods"][3]["scenes"]  # type: ignore[index]
    assert "second: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["one", "one"], "two methods would be called one"),
        (["frozen=one"], "two methods would be called frozen"),
        (["=one"], "cannot read '=one'"),
        (["..=one"], "cannot read '..=one'"),
        (["nothing"], "nothing"),
        (["one", "--resume"], "--out"),
    ],
)
def test_what_cannot_be_compared_is_said(
    command: Callable[..., list[str]], given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("compare", *given)) == 2
    assert message in capsys.readouterr().err
