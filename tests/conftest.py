"""What holds for every test: fixed seeds, one thread per worker, no network. Warnings are errors (pyproject.toml)."""

from __future__ import annotations

import gc
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Read at import time by the libraries they steer, so they are set before anything else is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)
os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers with all cores each would only get in each other's way
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

import local_hub
from lowpeft.registry import Registry

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Every run tries the same examples: a failure in CI is a failure on the next machine. No deadline, because the first
# call of many torch operations is slow.
settings.register_profile("lowpeft", derandomize=True, deadline=None, max_examples=50, print_blob=True)
settings.load_profile("lowpeft")

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def pytest_configure(config: pytest.Config) -> None:
    """Point the Hub cache at an empty folder, so that no test depends on what this machine has downloaded."""
    folder = tempfile.TemporaryDirectory(prefix="lowpeft-tests-")
    os.environ["HF_HOME"] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one worker, which makes what they share, such as trained networks, once.

    A `--dist` of the command line's own counts.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there before the first test, and look for cycles more seldom.

    There are thousands of cases and imported modules, and a network is thousands of objects that live as long as it.
    """
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True)
def _repeatable(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same random numbers and, on the CPU, the same order of additions in every run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # On CUDA several operations of image networks have no deterministic form and would raise.
    torch.use_deterministic_algorithms(request.node.get_closest_marker("gpu") is None)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def no_trial_of_the_batch() -> Iterator[None]:
    """Plans for two views do not run the base to see whether it mixes its batch; tests/core/test_probe.py has that.

    Of the module, as the next two: what its fixtures make is made in the same way as what its tests make.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowpeft.core.planning.plan.mixes_images", lambda trial, sites: False)
        yield


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Adapters are saved without figures of what their base computes; tests/core/test_base_checks.py has those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowpeft.core.files.saving.figures_of", lambda root, facts: None)
        yield


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local_hub.Hub]:
    """A Hub on this machine, which is asked in place of the real one, with its cache in a folder of the test."""
    monkeypatch.setattr("lowpeft.core.files.hub.pulling.WAITS_S", (0.0, 0.0))
    no_waits = SimpleNamespace(sleep=lambda seconds: None)  # between retries
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", no_waits)
    with local_hub.in_place_of_the_hub(tmp_path / "cache") as found:
        yield found


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """Runs of training draw no curves, which takes as long as the run; tests/restoration/test_train.py has those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowpeft.restoration.training.loop.draw_curves", lambda *arguments: None)
        yield


@pytest.fixture
def registries() -> Iterator[None]:
    """Put back what a test or an example registers, so that the next test sees lowpeft's own tables."""
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == "lowpeft"]
    tables = {id(v): v for m in modules for v in vars(m).values() if isinstance(v, Registry)}
    saved = [(table, set(table)) for table in tables.values()]
    yield
    for table, names in saved:
        for name in set(table) - names:
            table.unregister(name)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Make every attempt to reach another machine fail, look-ups of names included."""
    real = {"connect": socket.socket.connect, "connect_ex": socket.socket.connect_ex}
    getaddrinfo = socket.getaddrinfo

    def guarded(method: str) -> Callable[[socket.socket, object], object]:
        def call(self: socket.socket, address: object) -> object:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_unless_loopback(address[0])
            return real[method](self, address)

        return call

    def guarded_getaddrinfo(host: object, *args: object, **kwargs: object) -> object:
        _refuse_unless_loopback(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for method in real:
            patch.setattr(socket.socket, method, guarded(method))
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


def _refuse_unless_loopback(host: object) -> None:
    if host not in _LOOPBACK:
        raise RuntimeError(f"a test tried to reach {host!r}: tests run offline")


@pytest.fixture
def data_root() -> Path:
    """The folder with real images and weights, for tests marked `real_data`; the test is skipped without it.

    It is the one that LOWPEFT_DATA names, or `shared/data` beside the repository.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("LOWPEFT_DATA") or beside)
    if not root.is_dir():
        pytest.skip("set LOWPEFT_DATA to the folder with real images and weights to run this test")
    return root
