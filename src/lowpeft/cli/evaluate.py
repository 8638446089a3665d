"""`lowpeft evaluate`: PSNR and SSIM on whole scenes, by the protocols of the literature."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.attachment.record import module_of
from ..core.observation.describe import image_facts
from ..errors import LowpeftError
from ..ports.facts import Backbone
from ..restoration.data import Example, Scene, find_scenes, load_example
from ..restoration.images import make_folder
from ..restoration.inference import DEFAULT_WINDOW_PX, local_pooling
from ..restoration.metrics import PROTOCOLS, Protocol
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
    new_command,
    refuse_without_adapter,
    tiling,
    weights_facts,
)

if TYPE_CHECKING:
    from ..restoration.evaluation import Report
    from ..restoration.inference.network import Views


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
    from ..restoration.evaluation import overview, write_reports

    protocol = PROTOCOLS.find(options.protocol)
    base = backbone(options) if options.weights else None
    scale = _scale(options, base)
    scenes = find_scenes(options.data, scale=scale, lr_folder=options.lr, views=protocol.views or 1)
    out = make_folder(options.out) if options.out else None
    reports = []
    if options.bicubic:
        reports.append(_bicubic(options, scenes, scale, protocol, None if base else out))
    if base is not None:
        reports.append(_network(options, scenes, base, scale, protocol, out))
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
                raise LowpeftError(f"--{option.replace('_', '-')} is about a network: give --weights")
        if not options.bicubic or options.scale is None:
            raise LowpeftError("give --weights, or --bicubic with --scale to measure bicubic alone")
        return int(options.scale)
    scale = image_facts(base).scale
    if options.scale not in (None, scale):
        raise LowpeftError(f"--scale {options.scale} was asked for, but {options.weights} is a x{scale} network")
    return scale


def _examples(options: argparse.Namespace, scenes: tuple[Scene, ...], scale: int) -> Iterator[Example]:
    return (load_example(s, scale, border=options.border, halve=options.halve) for s in scenes)


def _bicubic(
    options: argparse.Namespace, scenes: tuple[Scene, ...], scale: int, protocol: Protocol, out: Path | None
) -> Report:
    from ..restoration.evaluation import by_bicubic, measure
    from ..restoration.progress import progress

    with progress("bicubic", len(scenes)) as advance:

        def seen(example: Example, results: Views) -> None:
            _draw(out, example, {}, scale)
            advance(example.name)

        return measure(
            by_bicubic(scale),
            _examples(options, scenes, scale),
            scale=scale,
            protocol=protocol,
            method="bicubic",
            seen=seen,
        )


def _network(
    options: argparse.Namespace,
    scenes: tuple[Scene, ...],
    base: Backbone,
    scale: int,
    protocol: Protocol,
    out: Path | None,
) -> Report:
    from ..restoration.evaluation import evaluate
    from ..restoration.progress import progress

    model = adapted(options, base) if options.adapter else base
    module_of(model).to(device(options.device))
    name = "adapted" if options.adapter else "frozen"
    with progress(name, len(scenes)) as advance, _pools(model, options.local_pooling):

        def seen(example: Example, results: Views) -> None:
            _draw(out, example, {name: results[0]}, scale)
            advance(example.name)

        found = evaluate(
            model,
            _examples(options, scenes, scale),
            protocol=protocol.name,
            ensemble=options.ensemble,
            tiling=tiling(options),
            seen=seen,
        )
    return replace(found, method=name)


def _draw(out: Path | None, example: Example, results: dict[str, Tensor], scale: int) -> None:
    from ..restoration.evaluation.pictures import draw_scene

    if out is not None:
        draw_scene(out / "pictures" / f"{example.name}.png", example, results, scale=scale)


def _window_px(numbers: list[int]) -> tuple[int, int]:
    if len(numbers) > 2:
        raise LowpeftError(f"--local-pooling takes a side, or height and width, not {len(numbers)} numbers")
    return (numbers[0], numbers[-1]) if numbers else DEFAULT_WINDOW_PX


def _pools(model: object, numbers: list[int] | None) -> AbstractContextManager[object]:
    return nullcontext() if numbers is None else local_pooling(model, _window_px(numbers))


def _facts(
    options: argparse.Namespace, scenes: tuple[Scene, ...], scale: int, base: Backbone | None
) -> dict[str, object]:
    """Return the facts of the run that its report files begin with."""
    found = all(scene.lr for scene in scenes)
    facts: dict[str, object] = {
        "lowpeft": version(),
        "torch": torch.__version__,
        "data": Path(options.data).resolve().name,
        "HR images": "halved" if options.halve else "as they are",
        "LR images": "files" if found else f"made by MATLAB's bicubic, {options.border} border",
        "scale": scale,
    }
    if base is not None:
        facts |= weights_facts(options, base)
        facts["device"] = str(device(options.device))
        if options.local_pooling is not None:
            facts["local_pooling"] = list(_window_px(options.local_pooling))
    names = ("task", "allow_half", "adapter", "revision", "force", "ensemble", "memory_mb")
    return facts | {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False)}
