"""`lowpeft evaluate`: did it help? PSNR and SSIM on whole scenes, adapted beside frozen."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.attachment.record import is_adapted, module_of, recipes_of
from ..core.files.contents import tensors_digest
from ..core.files.loading import load_adapter
from ..core.files.reading import read_adapter
from ..core.files.results import DIGEST
from ..core.observation.describe import image_facts
from ..core.operations.state import adapter_state_dict
from ..errors import LowpeftError
from ..ports.facts import Backbone
from ..restoration.data import EachViewTwice, Example
from ..restoration.images import to_float
from ..restoration.inference import DEFAULT_WINDOW_PX, Tiling, local_pooling
from ..restoration.inference.network import multi_view
from ..restoration.metrics import WHOLE_RGB, Protocol
from ..restoration.words import words
from .common import (
    adapted,
    add_adapter,
    add_weights,
    backbone,
    device,
    image_channels,
    network_scale,
    new_command,
    optimized,
    refuse_without_adapter,
    say_strips,
    tiling,
    warn_of_pairs,
)
from .help import option_group
from .measuring import (
    add_measuring,
    check_measuring,
    check_views,
    into_folder,
    measured,
    measuring_facts,
    protocol_of,
    report,
    scenes_to_measure,
)
from .networks import has_network
from .sources import loading_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ..restoration.evaluation import Method, OtherView, Report

NEED_WEIGHTS = ("adapter", "ensemble", "memory_mb", "local_pooling", "task", "raw_weights", "allow_half")
NEED_ADAPTER = ("no_frozen", "control", "no_other_view")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "evaluate",
        run,
        "did it help? Measure a network, and an adapter beside it, on stereo pairs or single images",
        "lowpeft evaluate --weights CRAFT_x4.pth --adapter my-adapter --data KITTI2015 --bicubic --out measured",
        "lowpeft evaluate --weights denoiser.safetensors --adapter noise-25 --data kodak --degrade noise:25",
        "lowpeft evaluate --bicubic --scale 4 --data KITTI2015 --json",
    )
    add_weights(sub)
    add_adapter(sub)
    option_group(sub, "adapter").add_argument(
        "--no-frozen", action="store_true", help="measure the adapter alone, without the frozen network"
    )
    _add_controls(sub)
    add_measuring(sub)
    option_group(sub, "measuring").add_argument(
        "--local-pooling",
        type=int,
        nargs="*",
        metavar="PX",
        help="local instead of global average pools (TLC): side, or height and width, of the window in LR px; without "
        f"numbers {DEFAULT_WINDOW_PX[0]} {DEFAULT_WINDOW_PX[1]}, 1.5 times the crops of ASteISR",
    )


def _add_controls(sub: argparse.ArgumentParser) -> None:
    """Add the options that say how an adapter of two views is compared with itself without the other view."""
    group = option_group(sub, "adapter")
    group.add_argument(
        "--control",
        metavar="DIR",
        help="folder of a control of a two-view adapter (train --each-view-twice): what the other view gives is the "
        "difference to it",
    )
    group.add_argument(
        "--no-other-view",
        action="store_true",
        help="do not measure what a two-view adapter gains from the other view, which takes two more runs per scene",
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print and write the reports."""
    from ..restoration.evaluation import Outcome, gain

    remarks = _check(options)
    base = backbone(options) if has_network(options) or options.adapter else None
    scale = _scale(options, base)
    options.channels = 3 if base is None else image_channels(base)
    protocol = protocol_of(options, scale)
    scenes = scenes_to_measure(options, scale, protocol)
    model, control = (None, None) if base is None else _models(options, base)
    models = {name: each for name, each in (("the adapter", model), ("the control", control)) if each is not None}
    check_views(models, protocol)
    methods = _methods(options, model, control, scale, protocol)
    if model is not None and multi_view(module_of(model)) is not None:
        adapters = [config for recipe in recipes_of(model) for config in recipe.adapters]
        warn_of_pairs(scenes, scale, loading=loading_of(options, options.channels), adapters=adapters)
    facts = _facts(options, measuring_facts(options, scenes, scale, base)) | _measured_adapter(model)
    with ExitStack() as stack:
        stack.enter_context(into_folder(options))
        for each in models.values() if options.local_pooling is not None else ():
            stack.enter_context(local_pooling(each, _window_px(options)))
        say_strips(options, models.values())
        found = measured(options, methods, scenes, scale, facts=facts, models=models.values(), protocol=protocol)
        reports, other_view = _parted(found, protocol, options.channels, remarks, model, control)
        gains = [gain(reports[-1], reports[-2])] if "frozen" in found and "adapted" in found else []
        outcome = Outcome(reports=reports, facts=facts, gains=gains, other_view=other_view)
        trained = {"adapted": options.adapter} if options.adapter else {}
        attended = partial(_attended, model, tiling=tiling(options))
        report(options, outcome, scenes, scale, trained, attended=attended)


def _models(options: argparse.Namespace, base: Backbone) -> tuple[object, object | None]:
    """Return the network to measure, adapted or not, and the control, if one was given."""
    model = adapted(options, base) if options.adapter else base
    module_of(model).to(device(options.device))
    optimized(options, model)
    if options.control is None:
        return model, None
    control = load_adapter(backbone(options, quiet=True), Path(options.control), force=options.force)
    control.to(device(options.device))
    return model, optimized(options, control)


def _methods(
    options: argparse.Namespace, model: object | None, control: object | None, scale: int, protocol: Protocol
) -> dict[str, Method]:
    """Return the methods to measure, in the order of the table.

    The part of the other view is measured on whole views, whatever the protocol compares; so are the figures that it is
    a part of, beside those of the protocol.

    Raises:
        LowpeftError: The control does not fit the adapter.
    """
    from ..restoration.evaluation import CONTROL, SAME_VIEW, Method, by_bicubic, methods

    baseline = words(scale).baseline
    if model is None:
        return {baseline: Method(by_bicubic(scale), protocol)}
    found = methods(model, control=control, ensemble=options.ensemble, tiling=tiling(options))
    if not is_adapted(model):
        found["frozen"] = found.pop("trained")
    dropped = {baseline: not options.bicubic, "frozen": options.no_frozen, SAME_VIEW: options.no_other_view}
    kept = {name: enhance for name, enhance in found.items() if not dropped.get(name, False)}
    alone = {SAME_VIEW, CONTROL} & kept.keys()
    by = dict.fromkeys(alone, WHOLE_RGB)
    if alone:
        by["adapted"] = replace(protocol, columns=(*protocol.columns, *WHOLE_RGB.columns))
    return {name: Method(enhance, by.get(name, protocol)) for name, enhance in kept.items()}


def _parted(
    found: Mapping[str, Report],
    protocol: Protocol,
    channels: int,
    remarks: list[str],
    model: object | None,
    control: object | None,
) -> tuple[list[Report], OtherView | None]:
    """Return the reports by the protocol, and what the model takes from the other view if that was measured."""
    from ..restoration.evaluation import CONTROL, SAME_VIEW, OtherView, trained_otherwise

    named = protocol.of_channels(channels)
    controls = {name: found[name] for name in (SAME_VIEW, CONTROL) if name in found}
    reports = [report.part(named, 0) for name, report in found.items() if name not in controls]
    if not controls:
        return reports, None
    on_whole_views = found["adapted"].part(WHOLE_RGB, len(protocol.columns))
    differing = () if control is None else trained_otherwise(model, control)
    return reports, OtherView(adapted=on_whole_views, controls=controls, remarks=(*remarks, *differing))


def _check(options: argparse.Namespace) -> list[str]:
    """Check the options about an adapter before anything is loaded, and return remarks on the control.

    Raises:
        LowpeftError: Options exclude each other, or the control was not trained as one.
    """
    refuse_without_adapter(options)
    check_measuring(options)
    given = [f"--{name.replace('_', '-')}" for name in NEED_ADAPTER if getattr(options, name)]
    if given and not options.adapter:
        raise LowpeftError(f"{given[0]} is about an adapter: give --adapter")
    if options.control and options.no_other_view:
        raise LowpeftError("--control and --no-other-view exclude each other: give one of them")
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


def _attended(model: object | None, example: Example, *, tiling: Tiling) -> Picture | None:
    """Draw where a model of two views looks; return None for others."""
    from ..restoration.evaluation import attended_disparity, most_confident
    from ..restoration.evaluation.pictures import draw_attended

    together = None if model is None else multi_view(module_of(model))
    # A network that takes crops of one size looks along crops, not along rows of the scene.
    if together is None or together.views != 2 or image_facts(model).fixed_px is not None:
        return None
    found = attended_disparity(model, *map(to_float, example.lr), tiling=tiling)
    return draw_attended(example, most_confident(found)) if found else None


def _scale(options: argparse.Namespace, base: Backbone | None) -> int:
    if base is None:
        for option in NEED_WEIGHTS:
            if getattr(options, option) not in (None, False):
                raise LowpeftError(f"--{option.replace('_', '-')} needs a network: give --weights or --network")
        if not options.bicubic or options.scale is None:
            raise LowpeftError("give --weights or --network, or --bicubic with --scale to measure bicubic alone")
        return int(options.scale)
    return network_scale(options, base)


def _measured_adapter(model: object | None) -> dict[str, object]:
    """Return the checksum of the adapter that is measured; nothing without one."""
    if model is None or not is_adapted(model):
        return {}
    return {DIGEST: tensors_digest({key: tensor.cpu() for key, tensor in adapter_state_dict(model).items()})}


def _window_px(options: argparse.Namespace) -> tuple[int, int]:
    """Return height and width of the window that `--local-pooling` selects."""
    numbers: list[int] = options.local_pooling
    if len(numbers) > 2:
        raise LowpeftError(f"--local-pooling takes a side, or height and width, not {len(numbers)} numbers")
    return (numbers[0], numbers[-1]) if numbers else DEFAULT_WINDOW_PX


def _facts(options: argparse.Namespace, facts: dict[str, object]) -> dict[str, object]:
    """Return the facts of the run with those of this command's own options."""
    if options.local_pooling is not None:
        facts["local_pooling"] = list(_window_px(options))
    names = ("adapter", "control", "revision", "subfolder", "force")
    return facts | {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False)}
