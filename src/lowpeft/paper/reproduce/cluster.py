"""Cells as jobs of submitit: on a Slurm cluster, or on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import torch

from ... import checks
from ...errors import LowpeftError

Place = Literal["slurm", "local"]
Result = TypeVar("Result")

SHARED = {
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "gpus_per_node": "gpus_per_node",
    "cpus_per_task": "cpus_per_task",
    "mem_gb": "mem_gb",
    "name": "name",
}
"""Options that both places have, and submitit's names for them."""
ONE_PROCESS = ("nodes", "tasks_per_node", "ntasks_per_node")
MOST_TIMEOUTS = 20
"""Number of times that a job that reaches its time limit is queued again."""
LOCAL_MINUTES = 7 * 24 * 60
"""Time limit of a job on this machine, without another one."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where jobs run, and with what.

    Attributes:
        place: "slurm" for a Slurm cluster, whose `sbatch` is called here; "local" for processes on this machine.
        options: Slurm's options by name: `partition`, `account`, `qos`, `constraint`, …; and `time` (minutes until a
            job is queued again), `gpus`, `cpus_per_task`, `mem_gb` (GB) and `name`. On this machine only `time`,
            `gpus` and `name` count.
    """

    place: Place
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the place and the options that need no cluster to be checked.

        Raises:
            LowpeftError: The place is unknown, the time limit is missing or no number of minutes, or an option asks for
                several processes.
        """
        problems = checks.one_of("the place", self.place, get_args(Place))
        if "time" in self.options or self.place == "slurm":
            what = "time, the minutes until a job is queued again and resumed,"
            problems += checks.whole(what, self.options.get("time"), least=1)
        problems += [f"{name}: a job is one process" for name in ONE_PROCESS if name in self.options]
        if problems:
            raise LowpeftError("jobs cannot be submitted as asked:", problems=problems)

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of submitit's `AutoExecutor`."""
        limit = {} if self.place == "slurm" else {"time": LOCAL_MINUTES}
        return {SHARED.get(key, f"slurm_{key}"): value for key, value in {**limit, **self.options}.items()}


class Call(Generic[Result]):
    """A call that submitit runs, and queues again when its job reaches the time limit or is pre-empted."""

    def __init__(self, function: Callable[..., Result], arguments: tuple[Any, ...], threads: int | None) -> None:
        self.function, self.arguments, self.threads = function, arguments, threads

    def __call__(self) -> Result:
        """Run the call, on the given number of threads."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return self.function(*self.arguments)

    def checkpoint(self) -> Any:
        """Return what submitit queues in place of this call, which resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Submitter:
    """Jobs of one run; `submit` is that of `concurrent.futures.Executor`."""

    def __init__(self, cluster: Cluster, folder: Path, at_a_time: int) -> None:
        self._executor = _executor(cluster, folder)
        self._waiting = ThreadPoolExecutor(max_workers=at_a_time)
        self._jobs: list[Any] = []
        self._threads = max(1, torch.get_num_threads() // at_a_time) if cluster.place == "local" else None

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Submit a call as a job as soon as fewer than `at_a_time` others are submitted and not finished."""
        return self._waiting.submit(self._run, Call(function, arguments, self._threads))

    def _run(self, call: Call[Result]) -> Result:
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

        try:
            job = self._executor.submit(call)
            self._jobs.append(job)
            result: Result = job.result()
        except FailedSubmissionError as error:
            raise LowpeftError(f"a job cannot be submitted: {_last_line(error)}") from error
        except (FailedJobError, UncompletedJobError) as error:
            raise LowpeftError(f"job {job.job_id} failed: {_last_line(error)} (log: {job.paths.stderr})") from error
        return result

    def shutdown(self, *, cancel: bool = False) -> None:
        """Submit no more jobs and wait for those that run, or cancel them."""
        for job in self._jobs if cancel else ():
            job.cancel(check=False)
        self._waiting.shutdown(cancel_futures=True)


@contextmanager
def submitter(cluster: Cluster, folder: Path, at_a_time: int) -> Iterator[Submitter]:
    """Open a submitter: an error ends it once the running jobs have finished, an interruption cancels them.

    Args:
        cluster: Where the jobs run.
        folder: Folder for submitit's files and the jobs' logs; all machines must see it.
        at_a_time: Largest number of jobs that are submitted and not finished.

    Raises:
        LowpeftError: submitit is not installed, there is no such cluster here, or it refuses an option.
    """
    jobs = Submitter(cluster, folder, at_a_time)
    try:
        yield jobs
    except Exception:
        jobs.shutdown()
        raise
    except BaseException:
        jobs.shutdown(cancel=True)
        raise
    jobs.shutdown()


def _executor(cluster: Cluster, folder: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise LowpeftError("jobs are submitted by submitit: pip install 'lowpeft[cluster]'") from error
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster.place, slurm_max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**cluster.parameters)
    except (RuntimeError, NameError, AssertionError) as error:
        raise LowpeftError(f"jobs cannot be submitted to {cluster.place}: {str(error).splitlines()[0]}") from error
    return executor


def _last_line(error: Exception) -> str:
    """Return the error of a job, without its traceback and submitit's advice."""
    text = str(error).partition("\nYou can check full logs")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip(" -=")]
    return lines[-1] if lines else type(error).__name__
