"""Run an experiment: every row with every seed, each in a separate process, and the resulting table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ... import checks
from ...errors import LowpeftError
from ...restoration.images import make_folder
from ...restoration.metrics import PROTOCOLS
from ...storage import write_json, write_text
from ..experiments import Experiment, Row
from .cluster import Cluster, submitter
from .job import Job, Outcome, finished, run_job
from .ready import with_ready_row
from .smoke import smoke_experiment, write_smoke_scenes, write_smoke_weights
from .table import FROZEN, Line, Table

SMOKE_NOTE = (
    "A smoke run: tiny networks with random weights, a few steps on made-up scenes. It shows that the experiment runs; "
    "its figures mean nothing."
)

MOST_SUBMITTED = 1000
"""Number of cells that may be submitted to a cluster at a time, if the caller does not say."""

READY_NOTE = "The adapter of row {} was trained before: it was measured, not trained here."


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Paths of an experiment's files.

    Attributes:
        weights: Folder with the checkpoints, under the names that their authors gave them. With `adapter` it may be the
            checkpoint itself.
        data: Folder of training pairs; not needed with `adapter`.
        tests: Mapping from the name of a test set to its folder. The paper's figures are shown for sets with its names
            (`flickr1024`, `kitti2012`, `kitti2015`, `middlebury`).
        adapter: Folder of a ready adapter. It is measured in the row that it fits, and nothing is trained.
    """

    weights: Path
    data: Path | None = None
    tests: Mapping[str, Path]
    adapter: Path | None = None

    def checkpoint(self, row: Row) -> Path:
        """Return the path of a row's checkpoint."""
        return self.weights if self.adapter is not None and self.weights.is_file() else self.weights / row.weights


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run.

    Attributes:
        seeds: Seeds of the training runs; rows are printed with mean and spread over them.
        training: Training settings that replace those of the recipes, for all rows.
        device: Torch device of training and measurement.
        ensemble: True to also measure the self-ensemble.
        memory_mb: Upper bound of the memory that inference takes, in MB; None for no bound.
        jobs: Number of cells that run at a time, or that are submitted and not finished; None for 1, or for all on a
            Slurm cluster. On this machine the CPU's threads are divided among them.
        cluster: Where cells run as jobs of submitit; None for processes of this one. `device` may then be "auto".
    """

    seeds: Sequence[int] = (0,)
    training: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    ensemble: bool = False
    memory_mb: float | None = None
    jobs: int | None = None
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            LowpeftError: There are no seeds, or `memory_mb` or `jobs` is out of range; all are listed.
        """
        problems = checks.whole("the number of seeds", len(self.seeds), least=1)
        problems += [] if self.jobs is None else checks.whole("jobs", self.jobs, least=1)
        problems += [] if self.memory_mb is None else checks.number("memory_mb", self.memory_mb, least=0)
        if problems:
            raise LowpeftError("the settings of the run do not work:", problems=problems)

    @property
    def at_a_time(self) -> int:
        """Number of cells that run, or are submitted, at a time."""
        if self.jobs is not None:
            return self.jobs
        return MOST_SUBMITTED if self.cluster is not None and self.cluster.place == "slurm" else 1


def reproduce(
    experiment: Experiment,
    sources: Sources,
    out: str | Path,
    *,
    settings: Settings | None = None,
    note: str = "",
    report: Callable[[str], None] = lambda note: None,
) -> Table:
    """Run the unfinished cells of an experiment, and write its table.

    A cell is a row with a seed, or a frozen network. Each cell is trained and measured in a separate process, so that
    its peak memory is its own, and writes a `result.json` that later runs reuse. An interrupted training is resumed.
    Every row is run with the first seed before any is run with the second.

    Args:
        experiment: Experiment with the rows to run.
        sources: Weights, training pairs and test sets.
        out: Output folder, for a folder of each row and seed, `table.json` and `table.md`.
        settings: Seeds, training settings, device, …; None for the defaults.
        note: First remark for readers of the table.
        report: Function that is called with a line of text before each cell.

    Returns:
        The table.

    Raises:
        LowpeftError: Files are missing (all are listed), settings do not fit, a ready adapter fits no row, results in
            `out` are from another run, or a row failed. Finished cells are kept.
    """
    settings = settings or Settings()
    if sources.adapter is not None:
        experiment = with_ready_row(experiment, sources.adapter)
        note = note or READY_NOTE.format(experiment.rows[0].name)
    jobs = list(_jobs(experiment, sources, settings))
    folder = make_folder(out)
    done = {job.folder: finished(job, folder / job.folder) for job in jobs}
    outcomes: list[Outcome] = []
    with _pool(settings, folder) as start:
        running = {job.folder: start(run_job, job, folder / job.folder) for job in jobs if not done[job.folder]}
        for number, job in enumerate(jobs, start=1):
            report(f"{number}/{len(jobs)}: {job.folder}")
            outcomes.append(done[job.folder] or running[job.folder].result())
    lines = _lines(experiment, outcomes)
    table = Table(experiment=experiment, lines=lines, note=note, made=tuple(_made(experiment, settings, lines)))
    write_json(folder / "table.json", table.as_dict())
    write_text(folder / "table.md", table.markdown())
    return table


def smoke(experiment: Experiment, out: str | Path, **keywords: Any) -> Table:
    """Run all rows of an experiment for a few steps, with tiny networks and synthetic scenes.

    Args:
        experiment: Experiment with the rows to run.
        out: Output folder, as for `reproduce`; also gets the weights and scenes.
        keywords: Further arguments of `reproduce`.

    Raises:
        LowpeftError: There is no tiny network for a row, or `reproduce` raises.
    """
    folder = make_folder(out)
    small = smoke_experiment(experiment)
    write_smoke_weights(small, folder / "weights")
    data, tests = write_smoke_scenes(folder / "scenes", small.test_sets or ("flickr1024",))
    sources = Sources(weights=folder / "weights", data=data, tests=tests)
    return reproduce(small, sources, folder, note=SMOKE_NOTE, **keywords)


@contextmanager
def _pool(settings: Settings, folder: Path) -> Iterator[Callable[..., Future[Outcome]]]:
    """Yield a function that starts a call in a new process, here or as a job of submitit, and returns its future."""
    if settings.cluster is not None:
        with submitter(settings.cluster, folder / "jobs", settings.at_a_time) as jobs:
            yield jobs.submit
        return
    with ProcessPoolExecutor(
        max_workers=settings.at_a_time,
        mp_context=get_context("spawn"),
        max_tasks_per_child=1,
        initializer=torch.set_num_threads,
        initargs=(max(1, torch.get_num_threads() // settings.at_a_time),),
    ) as pool:
        try:
            yield pool.submit
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _jobs(experiment: Experiment, sources: Sources, settings: Settings) -> Iterator[Job]:
    """Yield the job of each cell: the frozen networks, then each row with each seed or with the ready adapter."""
    rows = [row.trained_with(settings.training) for row in experiment.rows]
    frozen = _frozen(rows)
    if missing := _missing(sources, frozen.values()):
        raise LowpeftError(f"experiment {experiment.name!r} cannot be run:", problems=missing)

    def job(name: str, row: Row, **changes: Any) -> Job:
        return Job(
            row=name,
            weights=sources.checkpoint(row),
            network=row.network,
            scale=row.scale,
            tests=tuple(sources.tests.items()),
            protocol=experiment.protocol,
            device=settings.device,
            ensemble=settings.ensemble,
            memory_mb=settings.memory_mb,
            **changes,
        )

    yield from (job(name, row) for name, row in frozen.items())
    if sources.adapter is not None:
        yield from (job(row.name, row, adapter=sources.adapter) for row in rows)
        return
    for seed in settings.seeds:
        for row in rows:
            yield job(row.name, row, recipe=row.trained_with({"seed": seed}).recipe, seed=seed, data=sources.data)


def _frozen(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the first row with each checkpoint, by the name of the frozen network's line, e.g. `frozen, x4`."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.weights, row)
    return {FROZEN if len(first) == 1 else f"{FROZEN}, {row.name}": row for row in first.values()}


def _missing(sources: Sources, networks: Iterable[Row]) -> list[str]:
    """List missing folders, checkpoints and test sets, one line each."""
    ready = sources.adapter is not None
    folders: dict[str, Path | None] = {} if ready and sources.weights.is_file() else {"weights": sources.weights}
    folders |= {} if ready else {"training pairs": sources.data}
    folders |= {f"test set {name}": path for name, path in sources.tests.items()}
    missing = [f"no folder of {what} at {path}" for what, path in folders.items() if path is None or not path.is_dir()]
    missing += [
        f"no checkpoint {row.weights} in {sources.weights} (row {row.name})"
        for row in networks
        if sources.weights.is_dir() and not sources.checkpoint(row).is_file()
    ]
    return missing if sources.tests else [*missing, "no test set"]


def _lines(experiment: Experiment, outcomes: Sequence[Outcome]) -> tuple[Line, ...]:
    """Return the table's lines: the frozen networks, then the rows, with their outcomes and the paper's figures."""
    lines = [
        Line(row=name, summary="the network alone", printed=row.paper.frozen)
        for name, row in _frozen(experiment.rows).items()
    ]
    lines += [
        Line(row=row.name, summary=row.summary, printed=row.paper.adapted, ensemble=row.paper.ensemble)
        for row in experiment.rows
    ]
    return tuple(replace(line, outcomes=tuple(o for o in outcomes if o.row == line.row)) for line in lines)


def _made(experiment: Experiment, settings: Settings, lines: Sequence[Line]) -> Iterator[str]:
    """Yield a line each for protocol, changed settings, and notes and sizes of the networks."""
    yield f"Measured by the protocol `{experiment.protocol}`: {PROTOCOLS[experiment.protocol].summary}."
    if settings.training:
        changed = ", ".join(f"{name} = {value}" for name, value in settings.training.items())
        yield f"Settings that differ from the recipes', in all rows: {changed}."
    for line in lines:
        for text in dict.fromkeys(note for outcome in line.outcomes for note in outcome.notes):
            yield f"{line.row}: {text}."
        if line.row.startswith(FROZEN):
            yield f"{line.row}: {line.outcomes[0].frozen:,} parameters."
