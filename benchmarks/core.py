"""The core's figures: HAT-L x4 counts and times, file size, import time, memory of the stereo adapter on large rows.

    python benchmarks/core.py --out benchmarks/results/core.json

Needs the extra `spandrel`. Times are medians; memory is compared side by side in child processes of this one run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import large
import lowpeft
from common import median_seconds, options_of, peak_memory_bytes, provenance, write
from lowpeft.core.observation.fingerprint import digests
from lowpeft.kinds import Attachment, StereoAdapter, StereoConfig
from lowpeft.ports.layouts import Features, Layout

CHANNELS, HEIGHT, WIDTH = 60, 1080, 1920


def hat_l() -> dict[str, object]:
    """What the stereo recipe does to HAT-L x4."""
    model = large.hat_l()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        stereo = lowpeft.adapt(model, "stereo")
        seconds.append(time.perf_counter() - start)
        if len(seconds) < 5:
            lowpeft.restore(stereo)
    counts = lowpeft.summary(stereo)
    with tempfile.TemporaryDirectory() as folder:
        lowpeft.save_adapter(stereo, folder)
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
    same = lowpeft.restore(stereo) is model
    after = model.state_dict()
    return {
        "frozen": counts.frozen,
        "by_kind": counts.by_kind,
        "trained": counts.trainable,
        "share_percent": round(100 * counts.trainable / counts.frozen, 3),
        "adapt_seconds_median": round(statistics.median(seconds), 3),
        "adapter_folder_bytes": size,
        "restore_same_object": same,
        "restore_bit_equal": list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before),
    }


def files() -> dict[str, dict[str, float]]:
    """Seconds to know a base: the hash of its tensors, a first save (which takes figures of its output), a later one,
    and loading, beside a forward of one 64x64 image."""
    found = {}
    for name, network in (("HAT-L x4", large.hat_l()), ("120 M convolutions", large.Wide().eval())):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            adapted = lowpeft.adapt(network, "lora")
            calls: dict[str, Callable[[], object]] = {
                "hash": partial(digests, network),
                "first save": partial(lowpeft.save_adapter, adapted, folder),
                "later save": partial(lowpeft.save_adapter, adapted, folder),
                "load": partial(lowpeft.load_adapter, network, folder, name="loaded"),
                "forward": partial(network, torch.rand(1, 3, 64, 64)),
            }
            found[name] = {what: round(seconds, 2) for what, seconds in median_seconds(calls, 1).items()}
    return found


def import_seconds() -> dict[str, float]:
    """Median import time of torch and of lowpeft, each in fresh processes, in turn."""
    imports = {
        name: partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True)
        for name in ("torch", "lowpeft")
    }
    medians = {name: round(seconds, 3) for name, seconds in median_seconds(imports, 7).items()}
    return {**medians, "lowpeft_minus_torch": round(medians["lowpeft"] - medians["torch"], 3)}


def explicit(adapter: StereoAdapter, features: Tensor) -> Tensor:
    """The same formula with the attention maps of all rows written out: what the adapter avoids."""
    left, right = features.movedim(1, -1)[0::2], features.movedim(1, -1)[1::2]
    scores = adapter.query_left(adapter.norm_left(left)) @ adapter.query_right(adapter.norm_right(right)).mT
    to_left = (scores * adapter.scale).softmax(-1) @ adapter.value_right(right) * adapter.beta
    to_right = (scores.mT * adapter.scale).softmax(-1) @ adapter.value_left(left) * adapter.gamma
    return features + torch.stack((to_left, to_right), dim=1).flatten(0, 1).movedim(-1, 1)


class Stage(nn.Module):
    """Gives new features of one pair, as the last convolution of a group would."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features


def peak_bytes(way: str, height: int) -> int:
    """Peak memory above the features while one pair's rows are adapted; run in a process of its own."""
    torch.manual_seed(0)
    features = torch.rand(2, CHANNELS, height, WIDTH)
    adapter = StereoAdapter(CHANNELS, StereoConfig()).requires_grad_(False)
    nn.init.normal_(adapter.beta)
    adapter.attachment = Attachment(form="output", layout=Layout.NCHW, views=2)
    seen = Features(features, Layout.NCHW, (height, WIDTH), views=2)
    start = peak_memory_bytes()
    with torch.no_grad():
        if way == "lowpeft":
            from lowpeft.core.attachment.adding import _add_by_rows
            from lowpeft.core.attachment.slots import Acting

            _add_by_rows(nn.Identity(), [Acting(adapter, 1.0)], seen, [])
        elif way == "one call":
            features + adapter.delta(seen)
        else:
            explicit(adapter, features)
    return peak_memory_bytes() - start


def memory() -> dict[str, object]:
    """Peak bytes above the features of a 1920-px-wide pair, by three ways of computing the same."""
    rows: dict[str, object] = {"channels": CHANNELS, "width": WIDTH}
    for way, height in (("lowpeft", HEIGHT), ("one call", HEIGHT), ("lowpeft", 120), ("explicit maps", 120)):
        command = [sys.executable, __file__, "--peak", way, "--height", str(height)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows[f"{way}, {height} rows"] = int(found)
    rows["features, 1080 rows"] = 2 * CHANNELS * HEIGHT * WIDTH * 4
    return rows


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--height", type=int, default=HEIGHT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_bytes(options.peak, options.height))
        return
    results = {
        **provenance("python benchmarks/core.py", "spandrel"),
        "hat_l_x4": hat_l(),
        "files_seconds": files(),
        "import_seconds": import_seconds(),
        "stereo_memory_bytes_above_features": memory(),
    }
    write(results, options.out)


if __name__ == "__main__":
    main()
