"""The server of `examples/serve.py` under load: every answer equals that of a server that does one thing at a time.

The slow tier runs for as many minutes as `LOWPEFT_SOAK_MINUTES` says.
"""

from __future__ import annotations

import os
import runpy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import LoRAConfig, PlanError, SpatialConfig

pytestmark = pytest.mark.usefixtures("no_figures")

MINUTES = float(os.environ.get("LOWPEFT_SOAK_MINUTES", "2"))
SERVE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "serve.py"), run_name="serve")
CONFIGS = {
    "weights": LoRAConfig(target="**", rank=2),
    "features": SpatialConfig(target="0", reduction=2),
    "other": LoRAConfig(target="2", rank=1),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for number, (name, config) in enumerate(CONFIGS.items()):
        model = lowpeft.adapt(network(), config)
        with torch.no_grad():
            for _, parameter in lowpeft.adapter_parameters(model):
                parameter.normal_(generator=torch.Generator().manual_seed(number))
        found[name] = lowpeft.save_adapter(model, tmp_path_factory.mktemp(name))
    return found


@pytest.fixture
def server(folders: dict[str, Path]) -> Iterator[Any]:
    found = SERVE["Server"](network(), threads=4)
    for name, folder in folders.items():
        found.load(name, folder)
    yield found
    found.pool.shutdown()


def soak(server: Any, folders: dict[str, Path], seconds: float) -> tuple[int, list[str]]:
    """Answer requests in threads while adapters are replaced; return their number, and those that were wrong."""
    images = [torch.rand(3, 8 + 4 * n, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    names = [*folders, SERVE["BASE"]]
    serial = {(n, name): server.enhance(image, name) for n, image in enumerate(images) for name in names}
    end, wrong, done = time.monotonic() + seconds, [], [0] * 4
    stop = threading.Event()

    def ask(thread: int) -> None:
        while time.monotonic() < end:
            n, name = done[thread] % len(images), names[(done[thread] + thread) % len(names)]
            result: Tensor = server.enhance(images[n], name)
            if not torch.equal(result, serial[n, name]):
                wrong.append(f"{name}, image {n}")
            done[thread] += 1

    def swap() -> None:
        while not stop.is_set():
            for name, folder in folders.items():
                server.load(name, folder)

    with ThreadPoolExecutor(5) as pool:
        swapping = pool.submit(swap)
        try:
            for each in [pool.submit(ask, thread) for thread in range(4)]:
                each.result()
        finally:
            stop.set()
        swapping.result()
    return sum(done), wrong


def test_answers_beside_swaps_are_those_of_one_at_a_time(server: Any, folders: dict[str, Path]) -> None:
    done, wrong = soak(server, folders, 1)
    assert wrong == []
    assert done > 20
    assert len(lowpeft.list_adapters(server.network)) == len(folders)


@pytest.mark.slow
def test_a_soak_gives_the_serial_results(server: Any, folders: dict[str, Path]) -> None:
    _, wrong = soak(server, folders, 60 * MINUTES)
    assert wrong == []


def test_an_adapter_that_is_not_there_is_said(server: Any) -> None:
    with pytest.raises(PlanError):
        server.enhance(torch.rand(3, 8, 8), "nothing")
