"""The command line: every command, and exit code 2 with one clear sentence for bad input."""

from __future__ import annotations

import argparse
import html
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spandrel.architectures.IPT import IPT

import lowpeft
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.cli import main, parser
from lowpeft.cli.help import subcommands
from lowpeft.cli.memory import keep_freed_memory
from lowpeft.cli.show import CLAIMED
from lowpeft.demo import demo_backbone, make_scene, write_scenes
from lowpeft.restoration.images import matlab_downscale, read_image, write_image
from lowpeft.restoration.training import save_network
from tiers import by_default

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures", "no_curves")

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `lowpeft.` and `lowpeft-demo` are other words; a line that ends in \\ goes on, a #, && or > begins something else.
PRINTED = re.compile(r"(?:^|&& )(?:\$ )?(?:[^\n`]* -m )?lowpeft (.*?)(?: +#.*| &&.*| >.*)?$", re.MULTILINE)


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's own parser by its name."""
    return subcommands(parser())


def printed_commands() -> list[tuple[str, str]]:
    """Every command line that a page shows in a block: the page, and what stands after `lowpeft`."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:bash|console|text)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            found += [(page.name, line) for line in PRINTED.findall(re.sub(r"\\\n\s*", "", block))]
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scenes, an LR pair and an adapter of the demo network."""
    folder = tmp_path_factory.mktemp("cli")
    write_scenes(folder / "pairs", range(2), size_px=(64, 128))
    for side in "LR":
        view = matlab_downscale(read_image(folder / "pairs" / f"train_0000_{side}.png"), 2)[:, :16, :24]
        write_image(view, folder / f"{side}.png")
    model = lowpeft.adapt(demo_backbone(), "stereo")
    lowpeft.save_adapter(model, folder / "adapter", facts={"note": "of the tests"})
    return folder


def test_pages_show_commands_as_they_are() -> None:
    """Every command line in a block of README and docs is one that the parser takes."""
    printed = printed_commands()
    assert len(printed) >= 20
    for page, line in printed:
        try:
            parser().parse_args(shlex.split(line))
        except SystemExit:
            pytest.fail(f"{page} shows a command that does not parse: lowpeft {line}")


def test_the_readme_shows_every_command() -> None:
    shown = {shlex.split(line)[0] for page, line in printed_commands() if page == "README.md"}
    assert shown == set(commands())


def test_the_package_names_every_command() -> None:
    """The docstring of `lowpeft.cli` lists them."""
    assert lowpeft.cli.__doc__ is not None
    assert set(re.findall(r"[\w-]+", lowpeft.cli.__doc__.partition(":")[2])) == set(commands())


def test_plan_prints_the_sites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "stereo", "--weights", "demo", "--set", "every=1", "--set", "spatial.reduction=8"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("stereo  ") == 4
    assert "layers.3.residual_group.blocks.1" in printed


def test_info_says_what_is_in_the_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(work / "adapter")]) == 0
    printed = capsys.readouterr().out
    assert "8 sites" in printed
    assert re.search(r"^stereo settings +every=2, logit_scale=1.5$", printed, re.MULTILINE)
    assert "of the tests" in printed


def test_info_shows_the_network_that_a_run_without_adapters_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_network(demo_backbone().module, tmp_path, facts={"training": "3 steps", "network": "a lie"})
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    count = sum(t.numel() for t in demo_backbone().module.state_dict().values())
    for text in (f"of {count:,} elements", f'lowpeft.load_backbone("{path}")', f"--weights {path}", "3 steps"):
        assert text in shown
    assert re.search(r"^network +network.safetensors: all weights", shown, re.MULTILINE)
    assert re.search(rf"{CLAIMED}\n.*^network +a lie$", shown, re.MULTILINE | re.DOTALL)
    with pytest.raises(
        lowpeft.LowpeftError, match=r"adapter_config\.json missing.*weights of a network.*load_backbone"
    ):
        lowpeft.read_adapter(tmp_path)
    path.write_bytes(b"x" * 30)
    assert main(["info", str(tmp_path)]) == 2
    assert f"{path} cannot be read" in capsys.readouterr().err


def test_info_hides_nothing_of_the_base_behind_facts_of_the_same_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lowpeft.adapt(demo_backbone(), "spatial")
    lowpeft.save_adapter(model, tmp_path, facts={"base weights": "HAT.pth", "data": "made up"})
    assert main(["info", str(tmp_path)]) == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[-7:] == ["base weights", "", CLAIMED, "recipe", "written by", "base weights", "data"]


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(work: Path) -> None:
    for unbuffered, code in (("", 0), ("1", 141)):  # after its work is done, and before
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "lowpeft", "info", str(work / "adapter")]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        os.close(write)
        assert (done.returncode, done.stderr) == (code, "")


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_freed_memory_is_not_kept_under_a_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[str] = []
    monkeypatch.setattr(sys.modules["lowpeft.cli.main"], "keep_freed_memory", lambda: kept.append("kept"))
    command = ["evaluate", "--bicubic", "--scale", "2", "--data", str(tmp_path)]
    assert main([*command, "--memory-mb", "9"]) == 2
    assert kept == []
    assert main(command) == 2
    assert kept == ["kept"]


def test_a_command_that_runs_out_of_memory_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("lowpeft.paper.reproduce.speed.measure_speed", no_memory)
    assert main(["reproduce", "count", "--speed", "--smoke"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lowpeft reproduce: ")
    assert "--memory-mb" in line


@pytest.mark.parametrize("more", [[], ["--optimize", "keep", "--channels-last"]])
def test_enhance_writes_what_the_model_gives(more: list[str], work: Path, tmp_path: Path) -> None:
    views = [str(work / "L.png"), str(work / "R.png")]
    network = ["--weights", "demo", "--adapter", str(work / "adapter")]
    assert main(["enhance", *more, *views, *network, "--out", str(tmp_path)]) == 0
    left, right = read_image(work / "L.png"), read_image(work / "R.png")
    model = lowpeft.load_adapter(demo_backbone(), work / "adapter").eval()
    with torch.no_grad():
        wanted = model(left[None] / 255, right[None] / 255)[0][0].clamp(0, 1)
    got = read_image(tmp_path / "L_x2.png")
    assert got.shape == (3, 32, 48)
    assert (got.float() - wanted * 255).abs().max() <= 0.5 + 1e-3


def test_train_writes_a_loadable_adapter_with_figures(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pairs = tmp_path / "trained", tmp_path / "pairs"
    shutil.copytree(work / "pairs", pairs, ignore=shutil.ignore_patterns("train_0001*"))
    arguments = ["train", "stereo", "--weights", "demo", "--data", str(pairs), "--test", str(pairs)]
    arguments += ["--out", str(out), "--steps", "2", "--batch", "1", "--crop", "32", "64", "--device", "cpu"]
    assert main(arguments) == 0
    assert "same view" in capsys.readouterr().out
    facts = lowpeft.read_adapter(out).facts
    assert {"PSNR in dB, (L+R)/2, pairs, frozen", "PSNR in dB, (L+R)/2, pairs, adapted"} <= facts.keys()
    assert facts["optimised"] == "keep"


def other_network(name: str, folder: Path) -> Path:
    """A checkpoint of a tiny network that is trained and run otherwise than the demo's."""
    torch.manual_seed(0)
    if name == "edt":
        network = EDT(EDTConfig(tasks=("sr_x2", "sr_x3"), features=2, dim=60, depths=(2, 2), heads=6))
    else:
        network = IPT(n_feats=4, num_heads=12, num_layers=2, scale=[2, 3], num_queries=2)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


@pytest.mark.parametrize(
    ("recipe", "name", "task"),
    by_default(
        [("spatial", "edt", "sr_x2"), ("stereo", "ipt", "0_x2")],
        [(r, *n) for r in ("stereo", "spatial") for n in (("edt", "sr_x2"), ("ipt", "0_x2"))],
    ),
)
def test_networks_of_fixed_size_other_range_or_several_tasks_train_and_run(
    name: str, task: str, recipe: str, work: Path, tmp_path: Path
) -> None:
    """IPT takes only 48x48 px with values 0..255, so its crops are 96x96 HR px whatever the recipe says."""
    network = ["--weights", str(other_network(name, tmp_path)), "--task", task, "--device", "cpu"]
    write_scenes(tmp_path / "pairs", range(1), size_px=(100, 128))
    crop = ["--crop", "48", "96"] if name == "edt" else []
    train = ["train", recipe, *network, "--data", str(tmp_path / "pairs"), "--steps", "1", "--batch", "1", *crop]
    assert main([*train, "--out", str(tmp_path / "adapter")]) == 0
    views = [str(work / "L.png"), str(work / "R.png")][: 2 if recipe == "stereo" else 1]
    assert main(["enhance", *views, *network, "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path)]) == 0
    assert read_image(tmp_path / "L_x2.png").shape == (3, 32, 48)


def test_ipt_refuses_another_crop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "pairs", range(1), size_px=(100, 128))
    arguments = ["train", "stereo", "--weights", str(other_network("ipt", tmp_path)), "--task", "0_x2"]
    arguments += ["--data", str(tmp_path / "pairs"), "--out", str(tmp_path / "x"), "--crop", "32", "80"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert [size in message for size in ("(96, 96)", "(32, 80)")] == [True, True]
    assert not (tmp_path / "x").exists()


def bad_inputs() -> list[tuple[list[str], str]]:
    """Arguments with {work} for the folder, and a part of the sentence that they get."""
    up = ["enhance", "{work}/L.png", "{work}/R.png", "--weights", "demo", "--adapter", "{work}/adapter"]
    train = ["train", "stereo", "--weights", "demo", "--data", "{work}/pairs", "--out", "{work}/x", "--steps", "1"]
    return [
        (["plan", "stereoo", "--weights", "demo"], "did you mean 'stereo'"),
        (["plan", "stereo", "--weights", "{work}/none.pth"], "none.pth"),
        (["plan", "stereo", "--weights", "{work}/L.png"], "L.png"),
        (["plan", "stereo", "--weights", "demo", "--task", "sr_x4"], "--task sr_x4"),
        (["plan", "stereo", "--weights", "demo", "--set", "evry=1"], "did you mean 'every'"),
        (["plan", "stereo", "--weights", "demo", "--set", "every"], "FIELD=VALUE"),
        (["plan", "stereo", "--weights", "demo", "--set", "every=1", "--set", "every=2"], "another --set"),
        (["plan", "stereo", "--weights", "demo", "--set", "stereo=1", "--set", "stereo.every=2"], "another --set"),
        (["info", "{work}"], "not an adapter folder"),
        (["info", "{work}/nothing"], "nothing"),
        (["enhance", "{work}/none.png", *up[2:]], "none.png"),
        ([*up[:2], *up[3:]], "two views"),
        (["enhance", "{work}/pairs/train_0000_L.png", *up[2:]], "train_0000_L.png"),
        (["enhance", "{work}/adapter/README.md", *up[2:]], "README.md"),
        ([*up, "--scale", "4"], "x2 network"),
        ([*up, "--channels-last"], "give --optimize keep, rebuild or checkpoint"),
        ([*up[:-1], "{work}/nothing"], "nothing"),
        ([*up[:-2], "--force"], "--force needs an adapter"),
        ([*up, "--format", "jpg", "--bits", "16"], "format jpg holds 8 bits"),
        ([*up, "--device", "cpu", "--precision", "fp16"], "fp16 is for GPUs"),
        (["enhance", up[1], up[1], *up[3:]], "L.png was given as both views"),
        ([*up, "--device", "cuda:77"], "cuda:77"),
        ([*up, "--device", "gpu"], "auto, cpu, cuda, cuda:1"),
        ([*up, "--out", "{work}/L.png"], "L.png"),
        ([*train[:5], "{work}/nothing", *train[6:]], "nothing"),
        ([*train, "--crop", "999", "999"], "999"),
        ([*train, "--batch", "0"], "batch"),
        ([*train, "--test-lr", "{work}"], "--test-lr"),
        (["demo", "--data", "{work}/nothing", "--out", "{work}/demo"], "nothing"),
        (["demo", "--data", "{work}/pairs", "--out", "{work}/L.png"], "L.png"),
        (["demo", "--data", "{work}/pairs", "--out", "{work}/demo", "--steps", "0"], "steps"),
    ]


@pytest.mark.parametrize(("arguments", "sentence"), bad_inputs())
def test_bad_input_exits_with_2_and_says_why(
    arguments: list[str], sentence: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([a.replace("{work}", str(work)) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"lowpeft {arguments[0]}: ")
    assert sentence in message
    assert "Traceback" not in message


def test_an_adapter_of_another_base_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = demo_backbone()
    with torch.no_grad():
        base.module.conv_last.bias.add_(1)
    lowpeft.save_adapter(lowpeft.adapt(base, "stereo"), tmp_path / "other")
    up = [
        "enhance",
        str(work / "L.png"),
        str(work / "R.png"),
        "--weights",
        "demo",
        "--adapter",
        str(tmp_path / "other"),
    ]
    assert main(up) == 2
    assert "belongs to another base" in capsys.readouterr().err


def test_python_m_lowpeft_is_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lowpeft", "--version"])
    monkeypatch.delitem(sys.modules, "lowpeft.__main__", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("lowpeft", run_name="__main__", alter_sys=True)
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == ["lowpeft", lowpeft.__version__]


@pytest.mark.slow
def test_demo_on_own_pairs(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "mine", range(2), size_px=(64, 160))
    assert main(["demo", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "out"), "--steps", "2"]) == 0
    assert "bit-equal" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scenes"] == ["train_0000"]
    assert results["data"] == str(tmp_path / "mine")
    assert set(results["mean_db"]) == {"bicubic", "frozen", "adapted", "same view"}
    assert read_image(tmp_path / "out" / "pictures" / "comparison-right.png").shape[0] == 3


def test_a_quick_demo_shows_that_the_other_view_counts(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, out = tmp_path / "my pairs", tmp_path / "the results"
    mine.mkdir()
    for path in (work / "pairs").glob("*.png"):  # names as of the built-in scenes
        shutil.copyfile(path, mine / path.name.replace("train", "test"))
    assert main(["demo", "--quick", "--data", str(mine), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["scenes"] == ["test_0000", "test_0001"]
    _, height, width = read_image(out / "pictures" / "disparity.png").shape
    assert height < width  # without a row for a true disparity, which is not known
    mean = results["mean_db"]
    assert mean["adapted"] > mean["same view"] > mean["frozen"]
    page = (out / "index.html").read_text()
    for command in re.findall(r"^  (lowpeft .*)$", printed, re.MULTILINE):
        assert html.escape(command) in page
        given = parser().parse_args(shlex.split(command, comments=True)[1:])
        assert {getattr(given, "adapter", str(out / "adapter"))} == {str(out / "adapter")}
    for side in ("left", "right"):
        shapes = {p.name: read_image(p).shape for p in (out / "pictures").glob(f"{side}-*.png")}
        assert len(shapes) == 5
        assert set(shapes.values()) == {(3, 64, 128)}


def test_a_quick_demo_takes_no_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--steps", "3", "--out", str(tmp_path)]) == 2
    assert "steps" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_takes_pairs_that_have_lr_views_of_another_scale(work: Path, tmp_path: Path) -> None:
    """The demo's network is x2; LR files for x4 are none of its business."""
    for seed in range(2):
        scene = make_scene(seed, size_px=(64, 160))
        for number, view in enumerate((scene.left, scene.right)):
            for kind, image in {"hr": view, "lr_x4": matlab_downscale(view, 4)}.items():
                folder = tmp_path / "mine" / kind / f"{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                write_image(image, folder / f"{kind[:2]}{number}.png")
    assert main(["demo", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "out"), "--steps", "1"]) == 0


@pytest.mark.slow
def test_verify_of_the_demo_runs_by_itself(work: Path) -> None:
    command = [sys.executable, "-m", "lowpeft.demo.verify", str(work / "adapter"), str(work / "L.png")]
    environment = {k: v for k, v in os.environ.items() if k != "LOWPEFT_DEMO_THREADS"}
    done = subprocess.run([*command, str(work / "R.png")], capture_output=True, text=True, env=environment, check=True)
    assert re.fullmatch("[0-9a-f]{64}", done.stdout.split()[-1])
