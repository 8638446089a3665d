"""Options and steps of the commands that measure methods on scenes: `lowpeft evaluate` and `lowpeft compare`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.attachment.record import module_of
from ..errors import DataError, LowpeftError, TrainingError
from ..locking import locked
from ..ports.facts import Backbone
from ..restoration.data import Example, Loading, Scene, load_example
from ..restoration.images import image_header, make_folder
from ..restoration.inference.network import multi_view
from ..restoration.metrics import PROTOCOLS, Protocol, usual_protocol
from ..restoration.words import words
from ..version import version
from .common import (
    add_border,
    add_device,
    add_inference,
    add_optimize,
    add_white_level,
    device,
    optimised_facts,
    weights_facts,
)
from .help import option_group
from .networks import network_facts
from .output import emit
from .resuming import files_digest, journal_of, said_where_it_stopped, state_digest, with_images
from .sources import add_degrade, add_selection, find_clean, loading_of, say_reading

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ..restoration.evaluation import Method, Outcome, Report

MOST_PRINTED = 40
"""Number of scenes that are printed where files have all."""


def add_measuring(sub: argparse.ArgumentParser) -> None:
    """Add the options for scenes, protocol, inference and reports."""
    images = option_group(sub, "images")
    images.add_argument("--data", required=True, metavar="DIR", help="scenes, in any of the known layouts")
    images.add_argument("--lr", metavar="DIR", help="their LR or degraded images, instead of those that the layout has")
    add_degrade(sub)
    add_selection(sub, "--data")
    add_border(sub)
    add_white_level(sub)
    images.add_argument("--halve", action="store_true", help="shrink the HR files by 2 first, the rule for Middlebury")
    measuring = option_group(sub, "measuring")
    measuring.add_argument(
        "--protocol",
        metavar="NAME",
        help="literature (pairs: PSNR and SSIM of RGB; left view without 64 columns, and (L+R)/2), asteisr (pairs: as "
        "literature, but Left is the mean of both views), single-image (luma, without as many px at each edge as the "
        "scale), rgb (RGB, whole images: denoising, deblurring), derain (luma rounded to 8 bits, whole images); "
        "default: literature, or rgb for a network of scale 1",
    )
    measuring.add_argument(
        "--metrics",
        metavar="NAMES",
        default="",
        help="measure also these metrics of pyiqa, which you install: lpips,dists,niqe,…",
    )
    measuring.add_argument("--bicubic", action="store_true", help="also measure bicubic (at scale 1, the input)")
    measuring.add_argument("--scale", type=int, metavar="N", help="refuse a network of another scale")
    add_inference(sub)
    output = option_group(sub, "output")
    output.add_argument(
        "--out",
        metavar="DIR",
        help="folder for index.html, report.json, report.md, and every restored image; an earlier report there stays "
        "until the new one is complete",
    )
    output.add_argument(
        "--page-scenes",
        type=int,
        metavar="N",
        default=6,
        help="scenes that index.html shows in pictures, the worst and the best (default: 6)",
    )
    output.add_argument("--resume", action="store_true", help="go on with an interrupted measurement into --out")
    add_device(sub)
    add_optimize(sub, default="none")


def protocol_of(options: argparse.Namespace, scale: int) -> Protocol:
    """Return the protocol that `--protocol` and `--metrics` select for a network of this scale.

    Raises:
        LowpeftError: The protocol or a metric is unknown, or pyiqa is not installed.
    """
    from ..restoration.perceptual import with_perceptual

    given = options.protocol
    protocol = usual_protocol(scale, 1 if scale == 1 else 2) if given is None else PROTOCOLS.find(given)
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    return with_perceptual(protocol, names, device(options.device))


def check_measuring(options: argparse.Namespace) -> None:
    """Check options that need or exclude each other.

    Raises:
        LowpeftError: Degraded images are both named and made, there is nothing to resume, or a number is negative.
    """
    if options.lr and options.degrade:
        raise LowpeftError("--lr names degraded images, and --degrade makes them: give one of the two")
    if options.page_scenes < 0:
        raise LowpeftError(f"--page-scenes is a number of scenes, 0 or more, not {options.page_scenes}")
    if options.resume and options.out is None:
        raise LowpeftError("--resume goes on with a measurement into a folder: give --out")


def scenes_to_measure(options: argparse.Namespace, scale: int, protocol: Protocol) -> tuple[Scene, ...]:
    """Find the scenes, and say on standard error what is read.

    Raises:
        DataError: The folder has no scenes of so many views.
    """
    try:
        scenes = find_clean(options, options.data, scale, views=protocol.views or 1, lr=options.lr, selected=True)
    except DataError as error:
        if options.protocol is not None or protocol.views != 2:
            raise
        advice = f"{error.message} (single images: give --protocol single-image)"
        raise DataError(advice, problems=error.problems) from error
    say_reading(options, scenes, scale)
    return scenes


def check_views(models: Mapping[str, object], protocol: Protocol) -> None:
    """Check that models of several views are measured on scenes that have them.

    Args:
        models: Models by name.
        protocol: The protocol.

    Raises:
        DataError: A model takes another number of views than the protocol.
    """
    for name, model in models.items():
        together = multi_view(module_of(model))
        if together is not None and together.views != protocol.views:
            fitting = [each for each, row in PROTOCOLS.items() if row.views == together.views]
            raise DataError(
                f"{name} takes {together.views} views of a scene, but protocol {protocol.name} measures scenes of "
                f"{protocol.views}: give --protocol {' or '.join(fitting)}"
            )


def measured(
    options: argparse.Namespace,
    methods: Mapping[str, Method],
    scenes: Sequence[Scene],
    scale: int,
    *,
    facts: Mapping[str, object],
    models: Iterable[object],
    protocol: Protocol,
) -> dict[str, Report]:
    """Measure all methods scene by scene; with `--out`, write each scene's images and figures at once.

    Args:
        options: Options of `add_measuring`, and `channels` of the images.
        methods: Methods by name.
        scenes: The scenes.
        scale: HR sides divided by LR sides.
        facts: What is measured, by name, in JSON values.
        models: Networks that the methods run. `--resume` goes on only with a run of equal facts, methods, networks,
            protocol and images.
        protocol: The protocol.

    Raises:
        LowpeftError: A scene cannot be measured; a file cannot be written; the run to resume is another one.
    """
    from ..restoration.evaluation import measure_scene, reports_of, working_folder
    from ..restoration.evaluation.results import write_results
    from ..restoration.progress import progress

    loading = loading_of(options, options.channels)
    names = [scene.name for scene in scenes]
    journal, rows = None, {}
    if options.out is not None:
        how = {"protocol": protocol.name, "metrics": options.metrics, "measured": list(methods)}
        what = {"networks": state_digest(models), "images": files_digest(scenes)}
        run = {**facts, **how, **what}
        journal = journal_of(working_folder(Path(options.out)), run, names, go_on=options.resume)
        rows = with_images(journal, methods, scenes)
    if rows:
        print(f"{len(rows)} of {len(names)} scenes are measured already", file=sys.stderr)
    with (
        said_where_it_stopped(rows, len(names), journal),
        progress("measuring", len(names), before=len(rows)) as advance,
    ):
        for scene in (scene for scene in scenes if scene.name not in rows):
            example = load_example(scene, scale, loading=loading)
            results, rows[scene.name] = measure_scene(methods, example, scale=scale)
            if journal is not None:
                write_results(journal.folder, example, results)
                journal.add(scene.name, rows[scene.name])
            advance(scene.name)
    return reports_of(methods, {name: rows[name] for name in names}, channels=options.channels)


def report(
    options: argparse.Namespace,
    outcome: Outcome,
    scenes: Sequence[Scene],
    scale: int,
    adapters: Mapping[str, str],
    *,
    attended: Callable[[Example], Picture | None] | None = None,
) -> None:
    """Print what was measured; with `--out`, write the reports, and last the page.

    Args:
        options: Options of `add_measuring`, and `channels` of the images.
        outcome: What was measured.
        scenes: The scenes.
        scale: HR sides divided by LR sides.
        adapters: Adapters by method; the page shows how those in folders were trained.
        attended: As for `ScenePictures`.

    Raises:
        LowpeftError: A file cannot be written, or an image of the page cannot be read again.
    """
    from ..restoration.evaluation import Origin, ScenePictures, finish, working_folder, write_outcome_page

    if options.out is None:
        emit(options, outcome.as_dict(), outcome)
        return
    out, by_name = Path(options.out), {scene.name: scene for scene in scenes}
    loading, working = loading_of(options, options.channels), working_folder(out)
    paths = outcome.write(working)
    pictures = ScenePictures(
        load=lambda name: load_example(by_name[name], scale, loading=loading),
        scale=scale,
        scenes=options.page_scenes,
        attended=attended,
    )
    origin = Origin(command=options.command_line, training=_training(adapters))
    page = write_outcome_page(outcome, working, pictures, origin=origin)
    finish(out)
    written = [out / path.name for path in (*paths, page)]
    text = "\n".join(map(str, (outcome.as_text(most=MOST_PRINTED), *written)))
    emit(options, {**outcome.as_dict(), "written": written}, text)


def _training(adapters: Mapping[str, str]) -> dict[str, Picture | str]:
    """Return the curves of the adapters whose folders have a log of training, or why a log cannot be shown."""
    from ..restoration.training.log import plot_curves

    found: dict[str, Picture | str] = {}
    for name, folder in adapters.items():
        try:
            plotted = plot_curves(Path(folder))
        except TrainingError as error:
            found[name] = error.message
        else:
            found |= {} if plotted is None else {name: plotted}
    return found


def measuring_facts(
    options: argparse.Namespace, scenes: Sequence[Scene], scale: int, base: Backbone | None
) -> dict[str, object]:
    """Return the facts of the run that its report files begin with."""
    named = words(scale)
    if options.degrade is not None:
        how = f"made by {options.degrade}"
    else:
        how = "files" if all(scene.lr for scene in scenes) else f"made by MATLAB's bicubic, {options.border} border"
    deep = sum(any(image_header(path).bits > 8 for path in scene.hr) for scene in scenes)
    facts: dict[str, object] = {
        "lowpeft": version(),
        "torch": torch.__version__,
        "data": Path(options.data).resolve().name,
        f"{named.clean} images": ("halved" if options.halve else "as they are")
        + (f"; {deep} of {len(scenes)} scenes of 16 bits, read as float" if deep else ""),
        f"{named.degraded} images": how,
        "scale": scale,
    }
    if options.white_level != Loading().white_level:
        facts["white level"] = options.white_level
    if base is not None:
        facts |= weights_facts(options, base) | network_facts(options)
        facts["device"] = str(device(options.device))
    facts |= optimised_facts(options)
    names = ("task", "allow_half", "ensemble", "memory_mb")
    return facts | {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False)}


@contextmanager
def into_folder(options: argparse.Namespace) -> Iterator[None]:
    """Make the folder that `--out` names, and keep other runs out of it within the block; nothing without that option.

    Raises:
        DataError: The folder cannot be made, or another run is writing into it.
    """
    if options.out is None:
        yield
        return
    with locked(make_folder(options.out), DataError):
        yield
