"""Processes that are killed at random moments, and what they leave.

python kills.py WHAT TIMES FOLDER      prints what was wrong afterwards, as a JSON list; WHAT is a name of `WORK`

Each task is done by forked processes, which have everything imported, so that the kills fall into the work. Afterwards
the task is done once without a kill, and the result must be that of a folder where nobody was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import lowpeft
from lowpeft.cli import main
from lowpeft.demo import demo_backbone, write_scenes
from lowpeft.errors import LowpeftError

HERE = "owner/name"


@dataclass
class Task:
    """Work that is killed.

    Attributes:
        work: The work; a process may end it.
        wrong: Function that looks at what is there after a kill, and says what is wrong with it; None if nothing is.
        end: Function that does the work to its end, and says what is wrong with the result.
    """

    work: Callable[[], object]
    wrong: Callable[[], str | None]
    end: Callable[[], str | None]


def forked(work: Callable[[], object]) -> int:
    """A process that does the work, and says nothing."""
    pid = os.fork()
    if not pid:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        try:
            work()
        finally:
            os._exit(0)
    return pid


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    os.waitpid(forked(work), 0)
    return time.monotonic() - begun


def killed(task: Task, times: int, name: str) -> tuple[list[str], int]:
    """Kill the work, each time at a moment of its own; return what was wrong, and how often it was still at work."""
    draw, problems, at_work = random.Random(name), [], 0
    seconds = min(seconds_of(task.work) for _ in range(3))
    for number in range(times):
        pid = forked(task.work)
        time.sleep(draw.uniform(0, 1.1 * seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        at_work += os.WIFSIGNALED(status)
        if problem := task.wrong():
            problems.append(f"after kill {number}: {problem}")
    if problem := task.end():
        problems.append(f"at the end: {problem}")
    return problems, at_work


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3)).eval()


def filled(value: float) -> nn.Module:
    """A small network with an adapter whose tensors all have one value."""
    model = lowpeft.adapt(small(), lowpeft.LoRAConfig(target="**", rank=2))
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.fill_(value)
    return model


def value_of(folder: Path) -> float | str:
    """The one value of a saved adapter, which its facts say too; what is wrong otherwise."""
    try:
        adapter = lowpeft.read_adapter(folder)
    except LowpeftError as error:
        return str(error)
    found = sorted({value for tensor in adapter.tensors.values() for value in tensor.flatten().tolist()})
    return found[0] if found == [adapter.facts["value"]] else f"tensors of {found}, facts of {adapter.facts['value']}"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without those that tell how the work goes on."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".") and "/." not in name}


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[Task]:
    out = folder / "out"
    lowpeft.save_adapter(filled(1.0), out, facts={"value": 1.0})

    def work() -> None:
        for value in (2.0, 3.0, 4.0):
            lowpeft.save_adapter(filled(value), out, facts={"value": value})

    def wrong() -> str | None:
        return None if isinstance(found := value_of(out), float) else found

    def end() -> str | None:
        lowpeft.save_adapter(filled(9.0), out, facts={"value": 9.0})
        return None if value_of(out) == 9.0 else str(value_of(out))

    yield Task(work, wrong, end)


@contextlib.contextmanager
def pulling(folder: Path) -> Iterator[Task]:
    """Pulls of two revisions into one folder, with a cache that is empty now and then."""
    import local_hub

    out, cache, turn = folder / "out", folder / "cache", iter(range(10**9))
    with local_hub.in_place_of_the_hub(cache) as hub:
        for revision in ("one", "two"):
            lowpeft.push_to_hub(filled(float(len(revision))), HERE, revision=revision, facts={"value": 3.0})

        def pull(revision: str) -> None:
            if main(["pull", HERE, "--revision", revision, "--out", str(out)]):
                raise AssertionError

        def work() -> None:
            if next(turn) % 3 == 0:
                shutil.rmtree(cache, ignore_errors=True)
            for revision in ("one", "two"):
                pull(revision)

        def wrong() -> str | None:
            next(turn)  # the child counted for itself alone
            if not (out / "adapter_model.safetensors").exists():
                return None
            return None if value_of(out) == 3.0 else str(value_of(out))

        def end() -> str | None:
            pull("two")
            sent = {name: data for name, data in hub.files(HERE, "two").items() if name != ".gitattributes"}
            return None if contents(out) == sent else "other files than those of the Hub"

        yield Task(work, wrong, end)


@contextlib.contextmanager
def preparing(folder: Path) -> Iterator[Task]:
    write_scenes(folder / "raw", range(6), size_px=(64, 128))
    command = ["prepare", str(folder / "raw"), "--scale", "4", "--out"]
    main([*command, str(folder / "whole")])
    out, whole = folder / "out", contents(folder / "whole")

    def wrong() -> str | None:
        there = contents(out) if out.exists() else {}
        other = [name for name, data in there.items() if whole.get(name) != data]
        return f"other files than of a whole run: {other}" if other else None

    def end() -> str | None:
        main([*command, str(out)])
        return None if contents(out) == whole else "another result"

    def work() -> None:
        shutil.rmtree(out / "hr", ignore_errors=True)
        main([*command, str(out)])

    yield Task(work, wrong, end)


@contextlib.contextmanager
def evaluating(folder: Path) -> Iterator[Task]:
    write_scenes(folder / "pairs", range(2), size_px=(64, 128))
    lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), "spatial"), folder / "adapter")
    command = ["evaluate", "--weights", "demo", "--adapter", str(folder / "adapter"), "--data", str(folder / "pairs")]
    command += ["--no-other-view", "--out"]
    main([*command, str(folder / "whole")])
    out = folder / "out"
    whole = (folder / "whole" / "report.json").read_bytes()
    out.mkdir()
    (out / "report.json").write_text('"old"')

    def wrong() -> str | None:
        return None if (out / "report.json").read_bytes() in (b'"old"', whole) else "a report that is not whole"

    def end() -> str | None:
        main([*command, str(out), "--resume"])
        pictures = [{k: v for k, v in contents(each).items() if k.endswith(".png")} for each in (out, folder / "whole")]
        if pictures[0] != pictures[1]:
            return "other images"
        return None if (out / "report.json").read_bytes() == whole else "another report"

    yield Task(lambda: main([*command, str(out), "--resume"]), wrong, end)


WORK = {"save": saving, "pull": pulling, "prepare": preparing, "evaluate": evaluating}

if __name__ == "__main__":
    torch.set_num_threads(1)
    what, times, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    with contextlib.redirect_stdout(io.StringIO()), WORK[what](place) as task:
        found, alive = killed(task, times, what)
    print(json.dumps({"problems": found, "killed at work": alive}))
