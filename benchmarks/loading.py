"""Whether loading holds training back: starts on large data sets, and crops per second beside training steps.

    python benchmarks/loading.py --out benchmarks/results/loading.json

Needs the extra `demo` and 1.5 GB of disk for images of noise, which it makes in a temporary folder. `start` is the time
that `find_scenes` and `Crops` take with many small files: the first time (files just written, so in the page cache, but
no index), and again with the index. `crops` is crops per second of a DataLoader, once with every image decoded for each
crop (`memory_mb=0`), once from the cache of decoded images. `steps` is the images per second that training consumes.
All on the CPU; what a faster device consumes must be compared with crops per second of that machine.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
import tracemalloc
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import lowpeft
from common import options_of, peak_memory_bytes, provenance, write
from lowpeft.restoration.data import Crops, find_scenes
from lowpeft.restoration.images import write_image

CROP_PX = (128, 128)
IMAGE_PX = (480, 640)
IMAGES = 24
CROPS = 96
BATCH = 8
STEPS = 4


def photo(height: int, width: int, seed: int) -> torch.Tensor:
    """Smooth noise that compresses about as a photograph does: 8-bit, (3,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    return (smooth + 0.02 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)


def starts(folder: Path, count: int) -> dict[str, object]:
    """Seconds of two starts on `count` PNG files of 24x24 px, and the memory of the scenes."""
    contents = []
    for seed in range(16):
        write_image(photo(24, 24, seed), folder / "one.png")
        contents.append((folder / "one.png").read_bytes())
    (folder / "one.png").unlink()
    data = folder / "many"
    data.mkdir()
    for number in range(count):
        (data / f"{number:06d}.png").write_bytes(contents[number % len(contents)])
    figures: dict[str, object] = {"files": count}
    for start in ("first", "again"):
        began = time.perf_counter()
        scenes = find_scenes(data, views=1)
        found = time.perf_counter()
        crops = Crops(scenes, 2, crop_px=(16, 16))
        ready = time.perf_counter()
        figures[start] = {"find_scenes_s": round(found - began, 2), "crops_s": round(ready - found, 2)}
    figures["pickled_mb"] = round(len(pickle.dumps(crops)) / 1e6, 1)
    tracemalloc.start()
    kept = find_scenes(data, views=1)
    figures["bytes_per_scene"] = round(tracemalloc.get_traced_memory()[0] / len(kept))
    tracemalloc.stop()
    figures["peak_process_mb"] = round(peak_memory_bytes() / 1e6)
    return figures


def crops_per_second(folder: Path, suffix: str) -> dict[str, float]:
    """Crops per second by workers and cache, of 640x480 px images."""
    folder = folder / suffix
    folder.mkdir()
    for seed in range(IMAGES):
        write_image(photo(*IMAGE_PX, seed), folder / f"{seed}.{suffix}")
    figures = {}
    for cache, memory_mb in (("decoded anew", 0), ("cached", 4096)):
        for workers in (0, 1, 2):
            crops = Crops(find_scenes(folder, views=1), 2, crop_px=CROP_PX, memory_mb=memory_mb)
            if memory_mb:
                _ = [crops[i] for i in range(IMAGES)]  # a forked worker inherits what is decoded
            loader = DataLoader(crops, batch_size=BATCH, sampler=range(CROPS), num_workers=workers)
            began = time.perf_counter()
            assert sum(len(lr) for lr, _ in loader) == CROPS
            figures[f"{cache}, {workers} workers"] = round(CROPS / (time.perf_counter() - began), 1)
    return figures


def images_per_second() -> float:
    """Images per second of training steps: spandrel's NAFNet of width 16 with LoRA, crops of 128x128 px."""
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(0)
    module = NAFNet(width=16, middle_blk_num=1, enc_blk_nums=[1, 1, 1, 1], dec_blk_nums=[1, 1, 1, 1])
    adapted = lowpeft.adapt(lowpeft.describe(module, scale=1), "lora")
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    lr = torch.rand(BATCH, 3, *CROP_PX)
    times = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        (adapted(lr) - lr).abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return round(BATCH / min(times[1:]), 1)


def main() -> None:
    """Measure and write."""
    parser = options_of(__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="of the large data set (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        results = {
            **provenance("python benchmarks/loading.py", "pillow", "spandrel"),
            "start": starts(Path(name), options.files),
            "steps": {"images_per_s": images_per_second()},
            "crops_per_s": {suffix: crops_per_second(Path(name), suffix) for suffix in ("png", "jpg")},
        }
    write(results, options.out)


if __name__ == "__main__":
    main()
