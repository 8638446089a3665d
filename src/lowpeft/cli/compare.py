"""`lowpeft compare`: several adapters or networks on the same scenes."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbones.opening import load_backbone
from ..core.attachment.record import module_of
from ..core.files.loading import load_adapter
from ..core.observation.describe import image_facts
from ..errors import LowpeftError
from ..ports.facts import Backbone
from ..restoration.metrics import Protocol
from ..restoration.words import words
from .common import (
    add_weights,
    backbone,
    device,
    image_channels,
    network_scale,
    new_command,
    optimized,
    say_strips,
    tiling,
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

if TYPE_CHECKING:
    from ..restoration.evaluation import Method

WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "compare",
        run,
        "measure several adapters, or networks, on the same scenes, beside the frozen network",
        "lowpeft compare lora=runs/lora full=runs/full --weights denoiser.safetensors --data kodak --degrade noise:25 "
        "--out compared",
        "lowpeft compare small=rank-4 large=rank-16 --weights CRAFT_x4.pth --data KITTI2015 --json",
    )
    sub.add_argument(
        "methods",
        nargs="+",
        metavar="[NAME=]METHOD",
        help="an adapter folder, a Hub repository owner/name, or a checkpoint of another network of the same scale; "
        "NAME stands in the tables, by default the folder's or file's name",
    )
    add_weights(sub)
    option_group(sub, "adapter").add_argument(
        "--force", action="store_true", help="attach adapters though they were made for another base"
    )
    add_measuring(sub)


def run(options: argparse.Namespace) -> None:
    """Measure all methods, print and write the reports."""
    from ..restoration.evaluation import Outcome, gain

    check_measuring(options)
    named = _named(options.methods)
    base = backbone(options)
    scale = network_scale(options, base)
    options.channels = image_channels(base)
    protocol = protocol_of(options, scale)
    scenes = scenes_to_measure(options, scale, protocol)
    models = {"frozen": base} | {name: _model(options, what, scale) for name, what in named.items()}
    for model in models.values():
        optimized(options, model)
        module_of(model).to(device(options.device))
    check_views(models, protocol)
    methods = _methods(options, models, scale, protocol)
    facts = measuring_facts(options, scenes, scale, base) | {"methods": named}
    say_strips(options, [base])
    with into_folder(options):
        found = measured(options, methods, scenes, scale, facts=facts, models=models.values(), protocol=protocol)
        gains = [gain(found[name], found["frozen"]) for name in named]
        between = [gain(found[second], found[first]) for first, second in itertools.combinations(named, 2)]
        outcome = Outcome(reports=list(found.values()), facts=facts, gains=gains, between=between)
        report(options, outcome, scenes, scale, named)


def _named(texts: Iterable[str]) -> dict[str, str]:
    """Return what to measure by its name in the tables.

    Raises:
        LowpeftError: Two have the same name, or one has that of a method that is always measured.
    """
    from ..restoration.evaluation.results import folder_name

    found: dict[str, str] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals:
            path = Path(text).resolve()
            name, what = path.stem if _is_weights(text) else path.name, text
        if not what or not name.strip(" .") or {"/", "\\"} & {*name}:
            raise LowpeftError(f"cannot read {text!r}: give an adapter or a checkpoint, or NAME=ADAPTER")
        if folder_name(name) in map(folder_name, (*found, "frozen", "bicubic", "input", "truth")):
            raise LowpeftError(f"two methods would be called {name}: give one of them another name, as NAME={what}")
        found[name] = what
    return found


def _is_weights(text: str) -> bool:
    return Path(text).suffix in WEIGHTS


def _model(options: argparse.Namespace, what: str, scale: int) -> object:
    """Return a network of its own with the adapter, or the network of the checkpoint.

    Raises:
        LowpeftError: It cannot be loaded, or is of another scale.
    """
    if not _is_weights(what):
        return load_adapter(backbone(options, quiet=True), what, force=options.force)
    other: Backbone = load_backbone(what, allow_half=options.allow_half)
    if (found := image_facts(other).scale) != scale:
        raise LowpeftError(f"{what} is a x{found} network, but the one of --weights is x{scale}: measure them apart")
    return other


def _methods(
    options: argparse.Namespace, models: dict[str, object], scale: int, protocol: Protocol
) -> dict[str, Method]:
    """Return the methods to measure, in the order of the table."""
    from ..restoration.evaluation import Method, by_bicubic, by_network

    settings: dict[str, Any] = {"ensemble": options.ensemble, "tiling": tiling(options)}
    found = {words(scale).baseline: Method(by_bicubic(scale), protocol)} if options.bicubic else {}
    return found | {name: Method(by_network(model, **settings), protocol) for name, model in models.items()}
