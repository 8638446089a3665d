"""What planning costs: time against one forward, memory against the weights, and a live network beside it.

    python benchmarks/probing.py --out benchmarks/results/probing.json

Needs the extra `spandrel`; Restormer is the tests' own network with its layout, at the published width. Each network is
measured in a process of its own, with random weights, and is planned as one of its family, and as one of no family (its
family is not looked for). `forward_s` is one forward of two images of 32x48 px. What torch loads by itself, once in a
process, when operations are followed for the first time (150 MB; training needs it too) is loaded before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo
from torch import nn

import lowpeft
from common import options_of, peak_memory_bytes, provenance, write
from large import Wide, hat_l

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from official_layouts import Restormer

RECIPES = ("stereo", "spatial", "lora")
SIZE_PX = (32, 48)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "HAT-L x4": hat_l,
    "Restormer": lambda: Restormer(dim=48, depth=5),
    "120 M convolutions": Wide,
}


def peak_mb() -> float:
    return peak_memory_bytes() / 2**20


def measure(name: str, family: bool) -> dict[str, object]:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    images = torch.rand(2, 3, *SIZE_PX)
    with torch.no_grad():
        network(images)
        start = time.perf_counter()
        network(images)
        forward_s = time.perf_counter() - start
    before = peak_mb()
    weights_mb = sum(p.nbytes for p in network.parameters()) / 2**20
    known = mock.patch("lowpeft.core.planning.sites.recognise", return_value=None)
    row: dict[str, object] = {
        "network": name,
        "planned as": "its family" if family else "no family",
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_s": round(forward_s, 2),
    }
    for recipe in RECIPES:
        start = time.perf_counter()
        try:
            if family:
                plan = lowpeft.plan(network, recipe)
            else:
                with known:
                    plan = lowpeft.plan(network, recipe)
            row[f"{recipe}: sites"] = len(plan.sites)
        except lowpeft.LowpeftError as error:
            row[f"{recipe}: sites"] = str(error).partition("\n")[0]
        row[f"{recipe}: of a forward"] = round((time.perf_counter() - start) / forward_s, 1)
    row["peak above the forward, of the weights"] = round((peak_mb() - before) / weights_mb, 2)
    return row


def beside_a_running_network() -> dict[str, int]:
    """Forwards of a live network while another thread plans on it: how many, and how many differ by a bit."""
    torch.manual_seed(0)
    network, images = Restormer(dim=8, depth=2).eval(), torch.rand(2, 3, *SIZE_PX)
    with torch.no_grad():
        expected = network(images)
    plans, done = [], threading.Event()

    def planning() -> None:
        for _ in range(5):
            plans.extend(lowpeft.plan(network, recipe) for recipe in RECIPES)
        done.set()

    thread = threading.Thread(target=planning)
    thread.start()
    forwards = differ = 0
    while not done.is_set():
        with torch.no_grad():
            forwards, differ = forwards + 1, differ + (not torch.equal(network(images), expected))
    thread.join()
    return {"plans": len(plans), "forwards": forwards, "that differ": differ}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--only", nargs=2, metavar=("NETWORK", "FAMILY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.only:
        print(json.dumps(measure(options.only[0], options.only[1] == "True")))
        return
    rows = []
    for name in NETWORKS:
        for family in (True, False) if name != "120 M convolutions" else (False,):
            command = [sys.executable, __file__, "--only", name, str(family)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(found.stdout))
            print(rows[-1], flush=True)
    live = beside_a_running_network()
    results = provenance("python benchmarks/probing.py --out benchmarks/results/probing.json", "spandrel")
    write({**results, "networks": rows, "beside a running network": live}, options.out)


if __name__ == "__main__":
    main()
