"""Cells as jobs of submitit: on this machine, and on a stand-in of a Slurm cluster."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lowpeft.cli import main
from lowpeft.errors import LowpeftError
from lowpeft.paper.experiments import load_experiment
from lowpeft.paper.reproduce import Cluster, Settings, smoke
from lowpeft.paper.reproduce.cluster import Call, submitter

pytest.importorskip("submitit")

CELLS = """
from pathlib import Path


def cell(folder, number):
    if number == 2:
        raise OSError("disk full")
    (Path(folder) / f"cell-{number}").write_text("done")
    return number
"""

SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" "{folder}/script.sh"
echo "Submitted batch job 7"
SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NNODES=1 SLURM_JOB_NODELIST=one \\
    sh "$last" > "{folder}/log" 2>&1 &
"""
SRUN = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
echo "7|RUNNING|one"
"""


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of cells that jobs can import."""
    (tmp_path / "tiny_cells.py").write_text(CELLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stand in for Slurm's: sbatch runs the script at once, and leaves a copy."""
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": "#!/bin/sh\n"}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(folder=tmp_path, python=sys.executable))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    return tmp_path


@pytest.mark.slow
def test_three_cells_run_on_this_machine_and_a_failure_names_the_log(cells: Path) -> None:
    import tiny_cells

    with submitter(Cluster(place="local"), cells / "jobs", 3) as jobs:
        results = [jobs.submit(tiny_cells.cell, str(cells), number) for number in range(3)]
        assert [each.result() for each in results[:2]] == [0, 1]
        with pytest.raises(LowpeftError, match=r"OSError: disk full \(log: .*err\)"):
            results[2].result()
    assert sorted(path.name for path in cells.glob("cell-*")) == ["cell-0", "cell-1"]


@pytest.mark.slow
def test_a_cell_runs_on_slurm_with_its_options(cells: Path, slurm: Path) -> None:
    import tiny_cells

    options = {"partition": "gpu", "time": 90, "gpus": 1, "cpus_per_task": 4, "account": "vision", "name": "cells"}
    with submitter(Cluster(place="slurm", options=options), cells / "jobs", 9) as jobs:
        assert jobs.submit(tiny_cells.cell, str(cells), 5).result() == 5
    script = (slurm / "script.sh").read_text()
    wanted = ["partition=gpu", "time=90", "gpus-per-node=1", "cpus-per-task=4", "account=vision", "job-name=cells"]
    assert [option for option in wanted if f"#SBATCH --{option}" not in script] == []


def test_a_job_that_is_stopped_is_queued_again_with_the_same_call() -> None:
    call = Call(max, (1, 2), None)
    assert call.checkpoint().function is call
    assert call() == 2


@pytest.mark.parametrize(
    ("place", "options", "words"),
    [
        ("slurm", {}, "time minutes"),
        ("slurm", {"time": "1:00", "nodes": 2}, "time nodes"),
        ("cloud", {}, "'cloud' slurm local"),
    ],
)
def test_impossible_options_are_refused(place: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(LowpeftError) as caught:
        Cluster(place=place, options=options)
    assert [word for word in words.split() if word not in str(caught.value)] == []


def test_what_slurm_does_not_know_is_refused(tmp_path: Path, slurm: Path) -> None:
    with (
        pytest.raises(LowpeftError, match="partitoin"),
        submitter(Cluster(place="slurm", options={"time": 9, "partitoin": "gpu"}), tmp_path / "jobs", 1),
    ):
        pass


def test_a_machine_without_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(LowpeftError, match="slurm"),
        submitter(Cluster(place="slurm", options={"time": 9}), tmp_path / "jobs", 1),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slurm", "time=9"], "--slurm --submit"),
        (["--submit", "slurm", "--slurm", "time"], "--slurm 'time' FIELD=VALUE"),
        (["--submit", "slurm"], "time minutes"),
    ],
)
def test_the_command_line_says_what_is_missing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "finetuning", "--smoke", "--out", str(tmp_path), *arguments]) == 2
    message = capsys.readouterr().err
    assert [word for word in words.split() if word not in message] == []


def test_all_cells_are_submitted_to_slurm_unless_a_number_is_given() -> None:
    slurm = Cluster(place="slurm", options={"time": 9})
    assert Settings(cluster=slurm).at_a_time > 100
    assert (Settings(cluster=slurm, jobs=3).at_a_time, Settings(cluster=Cluster(place="local")).at_a_time) == (3, 1)


@pytest.mark.slow
def test_an_experiment_runs_as_jobs_and_its_results_are_taken_over(tmp_path: Path) -> None:
    experiment = load_experiment("finetuning")
    experiment = replace(experiment, rows=experiment.rows[-1:])
    settings = Settings(seeds=(0, 1), cluster=Cluster(place="local"), jobs=2, device="auto")
    table = smoke(experiment, tmp_path, settings=settings)
    assert [(line.row, len(line.outcomes)) for line in table.lines] == [("frozen", 1), ("both", 2)]
    logs = list((tmp_path / "jobs").glob("*_result.pkl"))
    assert len(logs) == 3
    assert smoke(experiment, tmp_path, settings=replace(settings, cluster=None)).lines == table.lines
    assert json.loads((tmp_path / "both" / "seed-1" / "result.json").read_text())["outcome"]["seed"] == 1
