"""One network in memory, many adapters, many requests: threads, async tasks, and an adapter that is replaced meanwhile.

    pip install -e .
    python examples/serve.py

`Server` is all that a web framework needs to call: `await server.answer(image, "noise")`. Requests for different
adapters run at the same time on one copy of the weights; each chooses its adapter for itself by `lowpeft.using`.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

import lowpeft
from lowpeft.demo import demo_backbone

BASE = "base"
"""What requests name that want the frozen network."""


class Server:
    """A frozen network and its adapters, by name; adapters may be added and replaced while requests run."""

    def __init__(self, network: object, *, threads: int = 2) -> None:
        self.network, self.attached = network, dict[str, str]()
        self.versions, self.pool = itertools.count(1), ThreadPoolExecutor(threads)

    def load(self, name: str, source: str | Path) -> None:
        """Attach an adapter from a folder or the Hub under a name; one that has the name is replaced."""
        new, old = f"{name}_{next(self.versions)}", self.attached.get(name)
        lowpeft.load_adapter(self.network, source, name=new)  # requests that have begun end first
        self.attached[name] = new
        if old is not None:
            lowpeft.delete(self.network, old)

    def enhance(self, image: Tensor, name: str = BASE) -> Tensor:
        """Enhance an image (3,h,w), values 0..1, by the adapter of that name."""
        while True:
            attached = self.attached.get(name)
            strengths = {} if name == BASE else {attached: 1.0}
            try:
                with lowpeft.using(self.network, strengths):
                    return lowpeft.enhance(self.network, image)
            except lowpeft.PlanError:
                if name == BASE or self.attached.get(name) in (None, attached):
                    raise  # no such adapter; otherwise it was replaced between the look-up and the call

    async def answer(self, image: Tensor, name: str = BASE) -> Tensor:
        """Enhance an image in a thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.enhance, image, name)


def made_up_adapter(folder: Path, value: float) -> Path:
    """Save an adapter, as training would; `value` stands for what it has learned."""
    model = lowpeft.adapt(demo_backbone(), "spatial")
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            nn.init.constant_(parameter, value)
    return lowpeft.save_adapter(model, folder)


async def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = {name: made_up_adapter(Path(place) / name, value) for name, value in (("a", 0.01), ("b", 0.02))}
        server = Server(demo_backbone())
        for name, folder in folders.items():
            server.load(name, folder)
        image = torch.rand(3, 24, 32)
        expected = {name: server.enhance(image, name) for name in (BASE, *folders)}
        requests = [(name, server.answer(image, name)) for name in (*folders, BASE) * 4]
        swapping = asyncio.to_thread(server.load, "b", folders["b"])  # a new version, while requests run
        *results, _ = await asyncio.gather(*(answer for _, answer in requests), swapping)
    equal = [torch.equal(result, expected[name]) for (name, _), result in zip(requests, results, strict=True)]
    print(lowpeft.summary(server.network))
    print(f"{sum(equal)} of {len(equal)} answers equal those of one request at a time")
    if not all(equal):
        raise SystemExit(1)


if __name__ == "__main__":
    asyncio.run(main())
