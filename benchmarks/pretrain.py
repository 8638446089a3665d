"""Pre-train a small network on ordinary single photographs: the HAT that `lowpeft demo` ships, the EDT of ablations.py.

    python benchmarks/pretrain.py --train BSDS500/train BSDS500/test --validate Kodak24 --out runs/demo_hat_x2

The loss is L1, LR images are Pillow's antialiased bicubic. The run resumes from its last checkpoint. Its result is a
`.safetensors` file in OUT, named as the folder (EMA weights; the HAT's shape is in its metadata), and `OUT/record.json`
with the command, versions, time and PSNR. The networks of `ablations.py pretraining` are made by

    python benchmarks/pretrain.py --network edt --train Kodak24 --validate Set5 --steps 1000 --out runs/edt_x4_kodak
    python benchmarks/pretrain.py --network edt --train BSDS500/train BSDS500/test --validate Set5 --steps 1000 \\
        --out runs/edt_x4_bsds
    python benchmarks/pretrain.py --network edt --train Kodak24 --validate Set5 --steps 300 \\
        --start runs/edt_x4_bsds/edt_x4_bsds.safetensors --out runs/edt_x4_bsds-kodak
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from spandrel.architectures.HAT import HAT
from torch import nn

from common import write
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.restoration.metrics import psnr

CONFIG = {
    "img_size": 32,
    "embed_dim": 40,
    "depths": [2, 2, 2, 2],
    "num_heads": [4, 4, 4, 4],
    "window_size": 8,
    "compress_ratio": 4,
    "squeeze_factor": 10,
    "conv_scale": 0.01,
    "overlap_ratio": 0.5,
    "mlp_ratio": 2.0,
    "upscale": 2,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
    "img_range": 1.0,
    "drop_path_rate": 0.0,
}
EDT_CONFIG = EDTConfig(tasks=("sr_x4",), features=8, dim=60, depths=(1,) * 6, heads=6, direct=True)


@dataclass(frozen=True)
class Network:
    """What is trained: how it is built, its scale, the side of its LR patches, its file's metadata."""

    build: Callable[[], nn.Module]
    scale: int
    patch_lr_px: int
    facts: dict[str, str]


NETWORKS = {
    "demo": Network(lambda: HAT(**CONFIG), 2, 32, {"hat_config": json.dumps(CONFIG)}),
    "edt": Network(lambda: EDT(EDT_CONFIG), 4, 24, {}),
}
BATCH = 8
PEAK_LR = 1e-3
WARMUP_STEPS = 200
EMA_DECAY = 0.998
LOG_EVERY_STEPS = 100


def read_images(folders: list[Path]) -> list[Image.Image]:
    """Every PNG and JPEG below the folders, as RGB images, in the order of their names."""
    paths = sorted(p for f in folders for p in f.rglob("*") if p.suffix.lower() in {".png", ".jpg"})
    if not paths:
        sys.exit(f"no PNG or JPEG below {', '.join(map(str, folders))}")
    return [Image.open(p).convert("RGB") for p in paths]


def tensor(image: Image.Image) -> torch.Tensor:
    """C,H,W float32 in 0..1."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def crop_pair(image: Image.Image, rng: random.Random, net: Network) -> tuple[torch.Tensor, torch.Tensor]:
    """A random LR/HR patch pair; half of the time from a version of the photograph reduced to 50..100 %."""
    hr_px = net.patch_lr_px * net.scale
    if rng.random() < 0.5:
        factor = rng.uniform(0.5, 1.0)
        size = tuple(max(hr_px, round(s * factor)) for s in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
    x, y = rng.randint(0, image.width - hr_px), rng.randint(0, image.height - hr_px)
    hr = image.crop((x, y, x + hr_px, y + hr_px))
    operation = rng.choice([None, *Image.Transpose])
    hr = hr if operation is None else hr.transpose(operation)
    lr = hr.resize((net.patch_lr_px, net.patch_lr_px), Image.Resampling.BICUBIC)
    return tensor(lr), tensor(hr)


@torch.inference_mode()
def validate(model: nn.Module, images: list[Image.Image], scale: int) -> dict[str, float]:
    """Mean PSNR-Y of the network and of bicubic upsampling."""
    ours, bicubic = [], []
    for image in images:
        image = image.crop((0, 0, image.width // 16 * 16, image.height // 16 * 16))
        lr = image.resize((image.width // scale, image.height // scale), Image.Resampling.BICUBIC)
        hr = tensor(image)
        ours.append(psnr(model(tensor(lr)[None])[0], hr, border_px=scale, channels="y"))
        bicubic.append(psnr(tensor(lr.resize(image.size, Image.Resampling.BICUBIC)), hr, border_px=scale, channels="y"))
    return {"network_db": sum(ours) / len(ours), "bicubic_db": sum(bicubic) / len(bicubic)}


class Training:
    """The network, its average, its optimiser, and how far it is; on disk after every `LOG_EVERY_STEPS`."""

    def __init__(self, net: Network, start: Path | None, checkpoint: Path) -> None:
        self.net, self.checkpoint = net, checkpoint
        self.model = net.build()
        if start:
            values = load_file(start)
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(values[name])
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=PEAK_LR, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            for name in ("model", "ema", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimizer")}
        new = self.checkpoint.with_suffix(".new")
        torch.save({**state, "step": self.step, "seconds": self.seconds}, new)
        new.replace(self.checkpoint)

    def take_step(self, images: list[Image.Image], steps: int, seed: int) -> float:
        """Train one step of `steps`; return its loss."""
        rng = random.Random(f"{seed}-{self.step}")
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        rate = PEAK_LR * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pairs = [crop_pair(rng.choice(images), rng, self.net) for _ in range(BATCH)]
        lr, hr = (torch.stack(t) for t in zip(*pairs, strict=True))
        loss = (self.model(lr) - hr).abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
        for shadow, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            shadow.lerp_(parameter.detach(), 1 - decay)
        self.step += 1
        return loss.item()

    def run(self, images: list[Image.Image], validation: list[Image.Image], steps: int, seed: int) -> None:
        started, running = time.monotonic() - self.seconds, 0.0
        while self.step < steps:
            running += self.take_step(images, steps, seed)
            if self.step % LOG_EVERY_STEPS == 0 or self.step == steps:
                self.seconds = time.monotonic() - started
                self.save()
                found = validate(self.ema, validation, self.net.scale)
                loss = running / LOG_EVERY_STEPS
                print(f"step {self.step}/{steps} L1 {loss:.5f} {self.seconds:.0f} s {found}", flush=True)
                running = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="demo")
    parser.add_argument("--start", type=Path, help="a result of this script, to be trained further")
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--validate", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    net = NETWORKS[args.network]
    training = Training(net, args.start, args.out / "checkpoint.pt")
    images, validation = read_images(args.train), read_images(args.validate)
    print(f"{len(images)} photographs, {sum(p.numel() for p in training.model.parameters()):,} parameters", flush=True)
    training.run(images, validation[:4], args.steps, args.seed)

    record = {
        "command": "python benchmarks/pretrain.py " + " ".join(sys.argv[1:]),
        "data": {"train_images": len(images), "validation_images": len(validation)},
        "steps": training.step,
        "batch": BATCH,
        "patch_lr_px": net.patch_lr_px,
        "seed": args.seed,
        "seconds": round(training.seconds),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "psnr_y_validation": validate(training.ema, validation, net.scale),
    }
    parameters = {k: v.contiguous() for k, v in training.ema.named_parameters()}
    save_file(parameters, args.out / f"{args.out.name}.safetensors", net.facts)
    write(record, args.out / "record.json")


if __name__ == "__main__":
    main()
