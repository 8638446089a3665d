"""`reproduce --speed`: rows side by side on one network; a tiny one here."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from lowpeft import LowpeftError
from lowpeft.cli import main
from lowpeft.paper.experiments import load_experiment
from lowpeft.paper.reproduce.speed import Measured, Speed, measure_speed


def test_the_command_times_every_row_and_writes_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = (
        (resources.files("lowpeft.paper.experiments") / "count.toml").read_text(encoding="utf-8").split("[[row]]")
    )
    three = tmp_path / "three.toml"
    three.write_text("[[row]]".join([head, rows[0], rows[-2], rows[-1]]), encoding="utf-8")
    command = ["reproduce", str(three), "--speed", "--size", "8x16", "--repeats", "2", "--device", "cpu", "--smoke"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "speed.json").read_text())
    measured = {row["row"]: row for row in found["rows"]}
    assert {name: row["trained"] for name, row in measured.items()} == {"0": 1_044, "6": 5_220, "12": 9_396}
    assert all(row["seconds"]["median"] > 0 and row["peak_mb"] > 0 for row in measured.values())
    assert (measured["0"]["time_ratio"], measured["0"]["peak_ratio"]) == ({"median": 1, "spread": 0}, 1)
    assert (found["ratios_to"], found["rounds"], found["size_px"]) == ("0", 2, [8, 16])
    assert found["command"] == " ".join(["lowpeft", *command])
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"].startswith("CPU, ")
    assert "tiny HAT-L x4, 83,667 parameters, random weights" in shown
    assert [name for name in measured if not any(line.split()[:1] == [name] for line in shown.splitlines())] == []


def test_ratios_are_taken_within_a_round() -> None:
    first = Measured(row="0", trained=1, seconds=(1.0, 2.0, 4.0), peak_bytes=10**7)
    second = Measured(row="6", trained=2, seconds=(1.5, 3.0, 6.0), peak_bytes=15 * 10**6)
    speed = Speed(experiment="e", network="n", size_px=(8, 8), device="d", rows=(first, second))
    row = speed.as_dict()["rows"][1]
    assert row["time_ratio"] == {"median": 1.5, "spread": 0}
    assert row["seconds"]["median"] == 3
    assert (row["peak_mb"], row["peak_ratio"]) == (15, 1.5)
    assert str(speed).splitlines()[-1].split() == [
        "6",
        "2",
        "3.0000",
        "±",
        "2.2913",
        "1.500",
        "±",
        "0.000",
        "15.0",
        "1.500",
    ]


@pytest.mark.parametrize(
    ("experiment", "options", "words"),
    [
        ("count", {"repeats": 1}, "repeats 2, 1"),
        ("count", {"size_px": (8, 15)}, "8x15 4"),
        ("count", {"size_px": (0, 16)}, "0x16 4"),
        ("count", {"device": "meta"}, "cpu cuda meta"),
        ("backbones", {}, "'backbones' --row"),
        ("finetuning", {}, "'scratch' 'finetuning' --row"),
        ("pretraining", {}, "'pretraining' --row"),
    ],
)
def test_what_cannot_be_measured_is_refused(experiment: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(LowpeftError) as caught:
        measure_speed(load_experiment(experiment), smoke=True, **options)  # type: ignore[arg-type]
    assert [word for word in words.split() if word not in str(caught.value)] == []


@pytest.mark.parametrize("size", ["32", "axb", "8x8x8"])
def test_a_size_that_is_no_size_gets_a_sentence(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "count", "--speed", "--size", size])
    assert f"--size: '{size}'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_published_size_is_measured() -> None:
    """HAT-L x4 at one window, two rows: what takes minutes here is what the command is for."""
    from dataclasses import replace

    experiment = load_experiment("count")
    two = replace(experiment, rows=tuple(row for row in experiment.rows if row.name in ("0", "12")))
    speed = measure_speed(two, size_px=(16, 16), repeats=2)
    assert speed.network == "HAT-L x4, 40,846,575 parameters"
    assert [row.trained for row in speed.rows] == [row.trained for row in two.rows]
    assert speed.rows[1].peak_bytes >= speed.rows[0].peak_bytes


@pytest.mark.gpu
def test_rows_are_timed_on_a_cuda_device() -> None:
    speed = measure_speed(load_experiment("count"), repeats=2, smoke=True, device="cuda")
    assert all(row.peak_bytes > 0 and min(row.seconds) > 0 for row in speed.rows)
    assert speed.device == torch.cuda.get_device_name()
