"""Pre-train the small HAT that `lowpeft demo` ships, on ordinary single photographs.

    python benchmarks/pretrain_demo_network.py --train BSDS500/train BSDS500/test --validate Kodak24 --out runs/demo-hat

The network is a HAT x2 of 0.48 M parameters (spandrel's implementation, trained from scratch), the loss L1, the LR
images Pillow's antialiased bicubic. The run resumes from its last checkpoint. The result is
`OUT/demo_hat_x2.safetensors` (EMA weights) with its facts in the file's metadata, and `OUT/record.json` with the
command, versions, time and PSNR.
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
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.HAT import HAT

from lowpeft.metrics import psnr

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
SCALE = 2
PATCH_LR_PX = 32
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


def crop_pair(image: Image.Image, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """A random LR/HR patch pair; half of the time from a version of the photograph reduced to 50..100 %."""
    hr_px = PATCH_LR_PX * SCALE
    if rng.random() < 0.5:
        factor = rng.uniform(0.5, 1.0)
        size = tuple(max(hr_px, round(s * factor)) for s in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
    x, y = rng.randint(0, image.width - hr_px), rng.randint(0, image.height - hr_px)
    hr = image.crop((x, y, x + hr_px, y + hr_px))
    operation = rng.choice([None, *Image.Transpose])
    hr = hr if operation is None else hr.transpose(operation)
    lr = hr.resize((PATCH_LR_PX, PATCH_LR_PX), Image.Resampling.BICUBIC)
    return tensor(lr), tensor(hr)


@torch.inference_mode()
def validate(model: HAT, images: list[Image.Image]) -> dict[str, float]:
    """Mean PSNR-Y of the network and of bicubic upsampling."""
    ours, bicubic = [], []
    for image in images:
        image = image.crop((0, 0, image.width // 16 * 16, image.height // 16 * 16))
        lr = image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.BICUBIC)
        hr = tensor(image)
        ours.append(psnr(model(tensor(lr)[None])[0], hr, border_px=SCALE, channels="y"))
        bicubic.append(psnr(tensor(lr.resize(image.size, Image.Resampling.BICUBIC)), hr, border_px=SCALE, channels="y"))
    return {"network_db": sum(ours) / len(ours), "bicubic_db": sum(bicubic) / len(bicubic)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--validate", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = HAT(**CONFIG)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.99))
    step, seconds = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]

    train_images, validation_images = read_images(args.train), read_images(args.validate)
    print(f"{len(train_images)} photographs, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    started, running = time.monotonic() - seconds, 0.0
    while step < args.steps:
        rng = random.Random(f"{args.seed}-{step}")
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        rate = PEAK_LR * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pairs = [crop_pair(rng.choice(train_images), rng) for _ in range(BATCH)]
        lr, hr = (torch.stack(t) for t in zip(*pairs, strict=True))
        loss = (model(lr) - hr).abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        for shadow, parameter in zip(ema.parameters(), model.parameters(), strict=True):
            shadow.lerp_(parameter.detach(), 1 - decay)
        step, running = step + 1, running + loss.item()
        if step % LOG_EVERY_STEPS == 0 or step == args.steps:
            seconds = time.monotonic() - started
            state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "seconds": seconds}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            first = validate(ema, validation_images[:4])
            print(f"step {step}/{args.steps} L1 {running / LOG_EVERY_STEPS:.5f} {seconds:.0f} s {first}", flush=True)
            running = 0.0

    record = {
        "command": "python benchmarks/pretrain_demo_network.py " + " ".join(sys.argv[1:]),
        "data": {"train_images": len(train_images), "validation_images": len(validation_images)},
        "steps": step,
        "batch": BATCH,
        "patch_lr_px": PATCH_LR_PX,
        "seed": args.seed,
        "seconds": round(seconds),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "psnr_y_validation": validate(ema, validation_images),
    }
    parameters = {k: v.contiguous() for k, v in ema.named_parameters()}
    save_file(parameters, args.out / "demo_hat_x2.safetensors", {"hat_config": json.dumps(CONFIG)})
    (args.out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
