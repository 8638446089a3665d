"""`lowpeft evaluate`: PSNR and SSIM on whole scenes, by the protocols of the literature."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.attachment.record import module_of
from ..errors import LowpeftError
from ..ports.facts import Backbone
from ..restoration.data import Example, Scene, find_scenes, load_example
from ..restoration.images import make_folder
from ..restoration.inference import DEFAULT_WINDOW_PX, local_pooling
from ..restoration.inference.network import multi_view
from ..restoration.metrics import PROTOCOLS
from ..version import version
from .common import (
    adapted,
    add_adapter,
    add_border,
    add_device,
    add_inference,
    add_weights,
    backbone,
    device,
    network_scale,
    new_command,
    refuse_without_adapter,
    tiling,
    warn_of_pairs,
    weights_facts,
)

if TYPE_CHECKING:
    from ..restoration.evaluation import Report


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "evaluate",
        run,
        "measure a network, with or without an adapter, on stereo pairs or single images",
        "lowpeft evaluate --weights CRAFT_x4.pth --adapter my-adapter --data KITTI2015 --bicubic --out measured",
    )
    add_weights(sub, required=False)
    add_adapter(sub)
    sub.add_argument("--data", required=True, metavar="DIR", help="scenes, in any of the known layouts")
    sub.add_argument("--lr", metavar="DIR", help="their LR views, instead of those that the layout has")
    add_border(sub)
    sub.add_argument("--halve", action="store_true", help="shrink the HR files by 2 first, the rule for Middlebury")
    sub.add_argument(
        "--protocol",
        default="literature",
        metavar="NAME",
        help=f"{', '.join(PROTOCOLS)} (default: %(default)s); see docs/evaluation.md",
    )
    sub.add_argument("--bicubic", action="store_true", help="also measure bicubic; with --scale it needs no --weights")
    sub.add_argument("--scale", type=int, metavar="N", help="of bicubic alone; refuse a network of another scale")
    add_inference(sub)
    sub.add_argument(
        "--local-pooling",
        type=int,
        nargs="*",
        metavar="PX",
        help="local instead of global average pools (TLC): side, or height and width, of the window in LR px; without "
        f"numbers {DEFAULT_WINDOW_PX[0]} {DEFAULT_WINDOW_PX[1]}, 1.5 times the crops of ASteISR",
    )
    sub.add_argument("--out", metavar="DIR", help="folder for report.json, report.md and a picture of each scene")
    add_device(sub)


def run(options: argparse.Namespace) -> None:
    """Measure, print and write the reports."""
    from ..restoration.evaluation import by_bicubic, evaluate, measure, overview, write_reports

    protocol = PROTOCOLS.find(options.protocol)
    base = backbone(options) if options.weights else None
    scale = _scale(options, base)
    scenes = find_scenes(options.data, scale=scale, lr_folder=options.lr, views=protocol.views or 1)
    out = make_folder(options.out) if options.out else None
    reports = []
    if options.bicubic:
        bicubic = partial(measure, by_bicubic(scale), scale=scale, protocol=protocol)
        reports.append(_measured(bicubic, "bicubic", options, scenes, scale, None if base else out))
    if base is not None:
        model = adapted(options, base) if options.adapter else base
        module_of(model).to(device(options.device))
        if multi_view(module_of(model)) is not None:
            warn_of_pairs(scenes, scale, border=options.border, halve=options.halve)
        network = partial(evaluate, model, protocol=protocol.name, ensemble=options.ensemble, tiling=tiling(options))
        with nullcontext() if options.local_pooling is None else local_pooling(model, _window_px(options)):
            name = "adapted" if options.adapter else "frozen"
            reports.append(_measured(network, name, options, scenes, scale, out))
    print(reports[-1])
    if len(reports) > 1:
        print(f"\n{overview(reports)}")
    if out is not None:
        for path in write_reports(reports, out, facts=_facts(options, scenes, scale, base)):
            print(path)


def _scale(options: argparse.Namespace, base: Backbone | None) -> int:
    refuse_without_adapter(options)
    if base is None:
        for option in ("adapter", "ensemble", "memory_mb", "local_pooling", "task", "raw_weights", "allow_half"):
            if getattr(options, option) not in (None, False):
                raise LowpeftError(f"--{option.replace('_', '-')} needs a network: give --weights")
        if not options.bicubic or options.scale is None:
            raise LowpeftError("give --weights, or --bicubic with --scale to measure bicubic alone")
        return int(options.scale)
    return network_scale(options, base)


def _measured(
    call: Callable[..., Report],
    method: str,
    options: argparse.Namespace,
    scenes: tuple[Scene, ...],
    scale: int,
    out: Path | None,
) -> Report:
    """Measure the scenes with a progress bar; with `out`, also draw a picture of each."""
    from ..restoration.evaluation.pictures import draw_scene
    from ..restoration.progress import progress

    examples = (load_example(s, scale, border=options.border, halve=options.halve) for s in scenes)
    with progress(method, len(scenes)) as advance:

        def seen(example: Example, results: tuple[Tensor, ...]) -> None:
            if out is not None:
                shown = {} if method == "bicubic" else {method: results[0]}
                draw_scene(out / "pictures" / f"{example.name}.png", example, shown, scale=scale)
            advance(example.name)

        return replace(call(examples, seen=seen), method=method)


def _window_px(options: argparse.Namespace) -> tuple[int, int]:
    """Return height and width of the window that `--local-pooling` selects."""
    numbers: list[int] = options.local_pooling
    if len(numbers) > 2:
        raise LowpeftError(f"--local-pooling takes a side, or height and width, not {len(numbers)} numbers")
    return (numbers[0], numbers[-1]) if numbers else DEFAULT_WINDOW_PX


def _facts(
    options: argparse.Namespace, scenes: tuple[Scene, ...], scale: int, base: Backbone | None
) -> dict[str, object]:
    """Return the facts of the run that its report files begin with."""
    facts: dict[str, object] = {
        "lowpeft": version(),
        "torch": torch.__version__,
        "data": Path(options.data).resolve().name,
        "HR images": "halved" if options.halve else "as they are",
        "LR images": (
            "files" if all(scene.lr for scene in scenes) else f"made by MATLAB's bicubic, {options.border} border"
        ),
        "scale": scale,
    }
    if base is not None:
        facts |= weights_facts(options, base)
        facts["device"] = str(device(options.device))
        if options.local_pooling is not None:
            facts["local_pooling"] = list(_window_px(options))
    names = ("task", "allow_half", "adapter", "revision", "force", "ensemble", "memory_mb")
    return facts | {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False)}
