"""`lowpeft enhance`: restore or super-resolve image files with a network, adapted or not."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..core.attachment.record import module_of
from ..errors import and_more, printable
from ..restoration.data import spread
from ..restoration.enhancing import (
    FORMATS,
    PRECISIONS,
    SIDES_BY_SIDE,
    Enhanced,
    Existing,
    FileSettings,
    FileWork,
    plan_files,
    run_files,
)
from .common import (
    adapted,
    add_adapter,
    add_device,
    add_inference,
    add_optimize,
    add_weights,
    add_white_level,
    backbone,
    device,
    network_scale,
    new_command,
    optimized,
    refuse_without_adapter,
    say_depth,
)
from .help import option_group
from .output import emit


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "enhance",
        run,
        "restore or super-resolve images, or stereo pairs, with a network, adapted or not",
        "lowpeft enhance photos --weights denoiser.safetensors --adapter noise-25 --out results",
        "lowpeft enhance left.png right.png --weights CRAFT_x4.pth --adapter my-adapter --out results",
        "lowpeft enhance 'shots/*.png' --weights HAT_SRx4.pth --format jpg --skip-existing --out results",
    )
    sub.add_argument(
        "input",
        nargs="+",
        help="image files, folders, and patterns ('shots/*.png', quoted); for a stereo model two files, left and "
        "right, folders or patterns of files named in pairs, or files that contain both views (MPO, JPS)",
    )
    group = option_group(sub, "images")
    group.add_argument(
        "--recursive", action="store_true", help="take the images in subfolders too, and keep the folders"
    )
    group.add_argument(
        "--side-by-side",
        choices=SIDES_BY_SIDE,
        metavar="ORDER",
        help=f"each file contains both views side by side: {' or '.join(SIDES_BY_SIDE)}",
    )
    add_white_level(sub)
    add_weights(sub)
    add_adapter(sub)
    _add_results(sub)
    add_inference(sub, without_limit=" (default: images that need more memory than is free)")
    option_group(sub, "speed and memory").add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="bf16 or fp16: run the network under autocast, faster on GPUs; results change (default: %(default)s)",
    )
    add_optimize(sub, default="none")
    add_device(sub, mps=True)


def _add_results(sub: argparse.ArgumentParser) -> None:
    """Add the options that say where results go and how they are written."""
    group = option_group(sub, "output")
    group.add_argument(
        "--out",
        default=".",
        metavar="DIR",
        help="folder for NAME_x4.png (of a network that keeps the size, NAME_restored.png); default: the current one",
    )
    group.add_argument("--scale", type=int, help="refuse a network of another scale")
    group.add_argument(
        "--format", choices=FORMATS, help="of the results (default: that of each input if it loses nothing, else png)"
    )
    group.add_argument(
        "--bits", type=int, choices=(8, 16), help="per sample of the results (default: as in each input)"
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--skip-existing", action="store_true", help="write only results that do not exist")
    existing.add_argument("--overwrite", action="store_true", help="replace results that exist, never inputs")


def run(options: argparse.Namespace) -> int:
    """Find the images, enhance them, and write and print the results."""
    from ..restoration.progress import progress

    refuse_without_adapter(options)
    settings = _settings(options)
    base = backbone(options)
    network_scale(options, base)
    model = base if options.adapter is None else adapted(options, base)
    module_of(model).to(device(options.device, mps=True))
    optimized(options, model)
    work = plan_files(model, options.input, options.out, settings)
    say_depth(options, spread([path for job in work.jobs for path in job.files]))
    with progress("enhancing", len(work.jobs)) as advance:
        outcome = run_files(model, work, settings, say=_say, advance=lambda name: advance(printable(name)))
    return _report(options, work, outcome)


def _settings(options: argparse.Namespace) -> FileSettings:
    existing: Existing = "skip" if options.skip_existing else "overwrite" if options.overwrite else "refuse"
    names = ("recursive", "side_by_side", "format", "bits", "white_level", "ensemble", "memory_mb", "precision")
    return FileSettings(existing=existing, **{name: getattr(options, name) for name in names})


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _report(options: argparse.Namespace, work: FileWork, outcome: Enhanced) -> int:
    """Print what was written, skipped and not done, and return the exit code."""
    for path in outcome.written:
        print(printable(path))
    if outcome.skipped:
        _say(f"results that exist and were skipped: {len(outcome.skipped)}")
    if outcome.left_out:
        shown = and_more([printable(path) for path in outcome.left_out], most=3)
        _say(f"left out, because they are named as the results of others: {len(outcome.left_out)} ({shown})")
    if outcome.failures:
        _say(f"lowpeft enhance: not enhanced: {len(outcome.failures)}")
    for line in outcome.failures:
        _say(f"  - {printable(line)}")
    files = {"written": outcome.written, "skipped": outcome.skipped, "left_out": outcome.left_out}
    figures: dict[str, object] = {what: [printable(path) for path in paths] for what, paths in files.items()}
    images = [
        {"files": list(map(printable, job.files)), "results": list(map(printable, job.targets))}
        for job in work.jobs
        if set(job.targets) & set(outcome.written)
    ]
    emit(options, {"images": images, **figures, "failures": [printable(line) for line in outcome.failures]})
    return 1 if outcome.failures else 0
