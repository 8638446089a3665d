"""`lowpeft evaluate`: PSNR and SSIM on whole scenes, by the protocols of the literature."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.attachment.record import is_adapted, module_of, recipes_of
from ..core.files.adapter_files import load_adapter, read_adapter
from ..core.observation.describe import image_facts
from ..errors import LowpeftError
from ..ports.facts import Backbone
from ..restoration.data import EachViewTwice, Example, Scene, load_example
from ..restoration.images import image_header, make_folder, to_float, write_picture
from ..restoration.inference import DEFAULT_WINDOW_PX, Tiling, local_pooling, strips_remark
from ..restoration.inference.network import Views, multi_view
from ..restoration.inference.whole import WHOLE
from ..restoration.metrics import LITERATURE, PROTOCOLS, WHOLE_RGB
from ..restoration.words import words
from ..version import version
from .common import (
    adapted,
    add_adapter,
    add_border,
    add_device,
    add_inference,
    add_optimize,
    add_weights,
    add_white_level,
    backbone,
    device,
    image_channels,
    network_scale,
    new_command,
    optimised_facts,
    optimized,
    refuse_without_adapter,
    tiling,
    warn_of_pairs,
    weights_facts,
)
from .networks import has_network, network_facts
from .sources import add_degrade, add_selection, find_clean, loading_of, say_reading

if TYPE_CHECKING:
    from ..restoration.evaluation import OtherView, Report, ReportRow
    from ..restoration.evaluation.measure import Seen

NEED_WEIGHTS = ("adapter", "ensemble", "memory_mb", "local_pooling", "task", "raw_weights", "allow_half")
NEED_ADAPTER = ("control", "no_other_view")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "evaluate",
        run,
        "measure a network, with or without an adapter, on stereo pairs or single images",
        "lowpeft evaluate --weights CRAFT_x4.pth --adapter my-adapter --data KITTI2015 --bicubic --out measured",
    )
    add_weights(sub)
    add_adapter(sub)
    sub.add_argument("--data", required=True, metavar="DIR", help="scenes, in any of the known layouts")
    sub.add_argument("--lr", metavar="DIR", help="their LR or degraded images, instead of those that the layout has")
    add_degrade(sub)
    add_selection(sub, "--data")
    _add_controls(sub)
    add_border(sub)
    add_white_level(sub)
    sub.add_argument("--halve", action="store_true", help="shrink the HR files by 2 first, the rule for Middlebury")
    sub.add_argument(
        "--protocol",
        metavar="NAME",
        help=f"{', '.join(PROTOCOLS)} (default: literature; rgb for a network of scale 1); see docs/evaluation.md",
    )
    sub.add_argument(
        "--bicubic",
        action="store_true",
        help="also measure bicubic (at scale 1, the input); with --scale it needs no --weights",
    )
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
    add_optimize(sub, default="none")


def _add_controls(sub: argparse.ArgumentParser) -> None:
    """Add the options that say how an adapter of two views is compared with itself without the other view."""
    sub.add_argument(
        "--control",
        metavar="DIR",
        help="folder of a control of a two-view adapter (train --each-view-twice): what the other view gives is the "
        "difference to it",
    )
    sub.add_argument(
        "--no-other-view",
        action="store_true",
        help="do not measure what a two-view adapter gains from the other view, which takes two more runs per scene",
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print and write the reports."""
    from ..restoration.evaluation import by_bicubic, measure, overview, write_reports

    remarks = _check(options)
    base = backbone(options) if has_network(options) else None
    scale = _scale(options, base)
    options.channels = 3 if base is None else image_channels(base)
    options.protocol = options.protocol or ("rgb" if scale == 1 else LITERATURE.name)
    protocol = PROTOCOLS.find(options.protocol)
    scenes = find_clean(options, options.data, scale, views=protocol.views or 1, lr=options.lr, selected=True)
    say_reading(options, scenes, scale)
    models = None if base is None else _models(options, base)
    out = make_folder(options.out) if options.out else None
    reports, other_view = [], None
    if options.bicubic:
        seen = partial(_draw, out, scale, None) if out is not None and models is None else None
        bicubic = partial(measure, by_bicubic(scale), scale=scale, protocol=protocol)
        reports.append(_measured(bicubic, words(scale).baseline, options, scenes, scale, seen))
    if models is not None:
        if multi_view(module_of(models[0])) is not None:
            adapters = [config for recipe in recipes_of(models[0]) for config in recipe.adapters]
            warn_of_pairs(scenes, scale, loading=loading_of(options, options.channels), adapters=adapters)
        report, other_view = _measured_network(*models, remarks, options, scenes, scale, out)
        reports.append(report)
    written: tuple[Path, ...] = ()
    if out is not None:
        written = write_reports(reports, out, facts=_facts(options, scenes, scale, base), other_view=other_view)
    print(reports[-1])
    if len(reports) > 1:
        print(f"\n{overview(reports)}")
    if other_view is not None:
        print(f"\n{other_view}")
    for path in written:
        print(path)


def _models(options: argparse.Namespace, base: Backbone) -> tuple[object, object | None]:
    """Return the network to measure, adapted or not, and the control, if one was given.

    Raises:
        LowpeftError: The control does not fit the adapter.
    """
    from ..restoration.evaluation import check_control

    model = adapted(options, base) if options.adapter else base
    module_of(model).to(device(options.device))
    optimized(options, model)
    if options.control is None:
        return model, None
    control = load_adapter(backbone(options, quiet=True), Path(options.control), force=options.force)
    control.to(device(options.device))
    check_control(model, control)
    return model, optimized(options, control)


def _check(options: argparse.Namespace) -> list[str]:
    """Check the options about an adapter before anything is loaded, and return remarks on the control.

    Raises:
        LowpeftError: Options exclude each other, or the control was not trained as one.
    """
    refuse_without_adapter(options)
    if options.lr and options.degrade:
        raise LowpeftError("--lr names degraded images, and --degrade makes them: give one of the two")
    given = [f"--{name.replace('_', '-')}" for name in NEED_ADAPTER if getattr(options, name)]
    if given and not options.adapter:
        raise LowpeftError(f"{given[0]} needs an adapter of two views: give --adapter")
    if len(given) > 1:
        raise LowpeftError(f"{' and '.join(given)} exclude each other: give one of them")
    mark = EachViewTwice.facts.items()
    facts = read_adapter(options.adapter).facts if options.adapter and Path(options.adapter).is_dir() else {}
    if options.control is None:
        twice = "this adapter is a control: it was trained with each view given twice, so the difference is no gain"
        return [twice] if mark <= facts.items() else []
    of_control = read_adapter(options.control).facts
    if mark - of_control.items():
        raise LowpeftError(f"{options.control} is not a control: train it with lowpeft train --each-view-twice")
    if mark <= facts.items():
        raise LowpeftError(f"--adapter {options.adapter} is a control itself: give the adapter that learned from pairs")
    data, data_of_control = (each.get("training data") for each in (facts, of_control))
    if data and data_of_control and data != data_of_control:
        return [f"the control was trained on other data: {data_of_control}, not {data}"]
    return []


def _measured_network(
    model: object,
    control: object | None,
    remarks: list[str],
    options: argparse.Namespace,
    scenes: tuple[Scene, ...],
    scale: int,
    out: Path | None,
) -> tuple[Report, OtherView | None]:
    """Measure a network, and what it takes from the other view if it takes several.

    The latter is measured on whole views, whatever the protocol compares.
    """
    from ..restoration.evaluation import (
        CONTROL,
        SAME_VIEW,
        OtherView,
        Report,
        by_network_alone,
        evaluate,
        measure,
        measured_row,
        trained_otherwise,
    )

    settings: dict[str, Any] = {"ensemble": options.ensemble, "tiling": tiling(options)}
    whole: list[ReportRow] = []

    def seen(example: Example, results: Views) -> None:
        whole.append(measured_row(example, results, scale, WHOLE_RGB))
        if out is not None:
            _draw(out, scale, model, example, results, tiling=tiling(options))

    with ExitStack() as pools:
        for each in (model, control) if options.local_pooling is not None else ():
            if each is not None:
                pools.enter_context(local_pooling(each, _window_px(options)))
        if options.memory_mb is not None and (remark := strips_remark(model)):
            print(remark, file=sys.stderr)
        network = partial(evaluate, model, protocol=options.protocol, **settings)
        report = _measured(network, _name(model), options, scenes, scale, seen)
        controls = {}
        for method, alone in ((SAME_VIEW, model), (CONTROL, control)):
            if alone is not None and multi_view(module_of(alone)) is not None and not options.no_other_view:
                enhance = by_network_alone(alone, **settings)
                call = partial(measure, enhance, scale=scale, protocol=WHOLE_RGB)
                controls[method] = _measured(call, method, options, scenes, scale)
    on_whole_views = Report(method=report.method, protocol=WHOLE_RGB, rows=tuple(whole))
    if not controls:
        return report, None
    differing = () if control is None else trained_otherwise(model, control)
    return report, OtherView(adapted=on_whole_views, controls=controls, remarks=(*remarks, *differing))


def _name(model: object) -> str:
    return "adapted" if is_adapted(model) else "frozen"


def _draw(
    out: Path, scale: int, model: object | None, example: Example, results: Views, tiling: Tiling = WHOLE
) -> None:
    """Draw a scene, and where a model of two views looks; without a model, bicubic alone."""
    from ..restoration.evaluation import attended_disparity, most_confident
    from ..restoration.evaluation.pictures import draw_attended, draw_scene

    shown = {} if model is None else {_name(model): results[0]}
    draw_scene(out / "pictures" / f"{example.name}.png", example, shown, scale=scale)
    together = None if model is None else multi_view(module_of(model))
    # A network that takes crops of one size looks along crops, not along rows of the scene.
    if together is None or together.views != 2 or image_facts(model).fixed_px is not None:
        return
    left, right = map(to_float, example.lr)
    if found := attended_disparity(model, left, right, tiling=tiling):
        write_picture(draw_attended(example, most_confident(found)), out / "pictures" / f"{example.name}-disparity.png")


def _scale(options: argparse.Namespace, base: Backbone | None) -> int:
    if base is None:
        for option in NEED_WEIGHTS:
            if getattr(options, option) not in (None, False):
                raise LowpeftError(f"--{option.replace('_', '-')} needs a network: give --weights or --network")
        if not options.bicubic or options.scale is None:
            raise LowpeftError("give --weights or --network, or --bicubic with --scale to measure bicubic alone")
        return int(options.scale)
    return network_scale(options, base)


def _measured(
    call: Callable[..., Report],
    method: str,
    options: argparse.Namespace,
    scenes: tuple[Scene, ...],
    scale: int,
    seen: Seen | None = None,
) -> Report:
    """Measure the scenes with a progress bar; `seen` is called with each and its results."""
    from ..restoration.progress import progress

    loading = loading_of(options, options.channels)
    examples = (load_example(scene, scale, loading=loading) for scene in scenes)
    with progress(method, len(scenes)) as advance:

        def after(example: Example, results: Views) -> None:
            if seen is not None:
                seen(example, results)
            advance(example.name)

        return replace(call(examples, seen=after), method=method)


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
    named = words(scale)
    if options.degrade is not None:
        made = f"made by {options.degrade}"
    else:
        made = "files" if all(scene.lr for scene in scenes) else f"made by MATLAB's bicubic, {options.border} border"
    deep = sum(any(image_header(path).bits > 8 for path in scene.hr) for scene in scenes)
    facts: dict[str, object] = {
        "lowpeft": version(),
        "torch": torch.__version__,
        "data": Path(options.data).resolve().name,
        f"{named.clean} images": ("halved" if options.halve else "as they are")
        + (f"; {deep} of {len(scenes)} scenes of 16 bits, read as float" if deep else ""),
        f"{named.degraded} images": made,
        "scale": scale,
    }
    if base is not None:
        facts |= weights_facts(options, base) | network_facts(options)
        facts["device"] = str(device(options.device))
        if options.local_pooling is not None:
            facts["local_pooling"] = list(_window_px(options))
    facts |= optimised_facts(options)
    names = ("task", "allow_half", "adapter", "control", "revision", "force", "ensemble", "memory_mb")
    return facts | {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False)}
