"""Work that is killed again and again leaves what was there before or what should be there, and can be finished.

The slow tier kills each kind of work `LOWPEFT_KILLS` times, 100 by default; training runs, which are killed 100 times
too, are in `tests/restoration/test_train_resume.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import kills
import lowpeft

KILLS = int(os.environ.get("LOWPEFT_KILLS", "100"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def report(what: str, times: int, folder: Path) -> tuple[list[str], int]:
    command = [sys.executable, "-W", "ignore", kills.__file__, what, str(times), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    return found["problems"], found["killed at work"]


def test_a_save_that_is_killed_leaves_a_whole_adapter(tmp_path: Path) -> None:
    problems, _ = report("save", 3, tmp_path)
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("what", kills.WORK)
def test_work_that_is_killed_many_times_leaves_nothing_half_done(what: str, tmp_path: Path) -> None:
    problems, at_work = report(what, KILLS, tmp_path)
    assert problems == []
    assert at_work > KILLS / 2


@pytest.mark.slow
def test_two_savers_and_a_reader_meet_whole_adapters(tmp_path: Path) -> None:
    """200 saves each of two processes into one folder; every read gives one of them."""
    out = tmp_path / "out"
    lowpeft.save_adapter(kills.filled(0.0), out, facts={"value": 0.0})

    def save(first: int) -> None:
        for value in range(first, first + 200):
            lowpeft.save_adapter(kills.filled(float(value)), out, facts={"value": float(value)})

    ends: list[int] = []
    savers = [
        threading.Thread(target=lambda pid: ends.append(os.waitpid(pid, 0)[1]), args=(pid,))
        for pid in [kills.forked(lambda first=first: save(first)) for first in (1000, 2000)]
    ]  # type: ignore[misc]
    for saver in savers:
        saver.start()
    found = []
    while any(saver.is_alive() for saver in savers):
        found.append(kills.value_of(out))
    assert ends == [0, 0]
    assert [each for each in found if not isinstance(each, float)] == []
    assert len({*found}) > 10
    assert kills.value_of(out) in (1199.0, 2199.0)
    assert {path.name for path in out.iterdir()} <= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        ".saving.lock",
    }
