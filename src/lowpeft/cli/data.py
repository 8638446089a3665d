"""`lowpeft prepare`, `verify-lr` and `check-pair`: LR images by MATLAB's bicubic, and the alignment of pairs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import and_more
from ..kinds import ParallaxConfig
from ..restoration.data import (
    PairReport,
    check_pair,
    find_scenes,
    prepare,
    read_clean_crops,
    scenes_with_lr,
    verify_lr,
    without_lr,
)
from .common import add_border, new_command
from .help import option_group
from .output import emit
from .sources import add_degrade, add_selection, loading_of, say_reading


def add_to(commands: Any) -> None:
    """Add the commands to the parser."""
    sub = new_command(
        commands,
        "prepare",
        run_prepare,
        "write the HR and LR images of a data set, LR by MATLAB's bicubic, in the layout of the field's test sets",
        "lowpeft prepare Flickr1024/Test --out Flickr1024_TEST --scale 4 --border replicate",
        "lowpeft prepare kodak --out kodak-noisy --views 1 --scale 1 --degrade noise:25",
    )
    _add_source(sub)
    option_group(sub, "output").add_argument(
        "--out", required=True, metavar="DIR", help="folder to write; run again to go on after a stop"
    )
    add_border(sub)
    add_degrade(sub)
    sub = new_command(
        commands,
        "verify-lr",
        run_verify,
        "compare the LR images of a data set with those that MATLAB's bicubic makes of its HR images",
        "lowpeft verify-lr KITTI2015 --scale 4",
        "lowpeft verify-lr Set14/HR --lr Set14/LR_bicubic/X4 --views 1 --scale 4",
    )
    _add_source(sub)
    sub.add_argument("--lr", metavar="DIR", help="LR images, where they are not in DIR; HR images without are left out")
    sub = new_command(
        commands,
        "check-pair",
        run_check_pair,
        "measure vertical offset, gain and disparities of a stereo pair, and say what row-wise attention does not bear",
        "lowpeft check-pair left.png right.png",
        "lowpeft check-pair hr_left.png hr_right.png --scale 4",
    )
    sub.add_argument("left", metavar="LEFT", help="left view")
    sub.add_argument("right", metavar="RIGHT", help="right view, of the same size")
    sub.add_argument(
        "--scale", type=int, default=1, metavar="N", help="SR factor, if these are HR views: bounds are in LR px"
    )


def _add_source(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("data", metavar="DIR", help="a data set in any of the known layouts")
    sub.add_argument("--scale", type=int, required=True, metavar="N", help="SR factor")
    sub.add_argument("--views", type=int, default=2, choices=(1, 2), help="2 for stereo pairs (default), 1 for images")
    add_selection(sub, "DIR")
    sub.add_argument(
        "--halve", action="store_true", help="halve the HR images first, as the field does with Middlebury"
    )


def run_prepare(options: argparse.Namespace) -> None:
    """Write the data set."""
    from ..restoration.progress import progress

    found = find_scenes(
        options.data, scale=options.scale, views=options.views, layout=options.layout, meta_info=options.meta_info
    )
    scenes = without_lr(found)  # LR images are always made
    say_reading(options, scenes, options.scale)
    clean = read_clean_crops(options.data, views=options.views)
    with progress("preparing", len(scenes)) as advance:
        written = prepare(
            scenes,
            options.out,
            options.scale,
            loading=loading_of(options),
            clean_crops=clean,
            advance=advance,
        )
    cut = sum(scene.name in clean for scene in scenes)
    count = len(scenes)
    text = f"{options.out}: {count} scene{'s' * (count > 1)} at x{options.scale}, {written} written now"
    if cut:
        text += (
            f"\nthe clean_crop of {Path(options.data) / 'manifest.json'} was applied to {cut} scene{'s' * (cut > 1)}"
        )
    figures = {"out": options.out, "scale": options.scale, "scenes": count, "written": written, "cropped": cut}
    emit(options, figures, text)


def run_verify(options: argparse.Namespace) -> int:
    """Compare, print the report, and return 1 if neither border reproduces every value, else 0."""
    from ..restoration.progress import progress

    scenes, without = scenes_with_lr(
        options.data,
        scale=options.scale,
        lr_folder=options.lr,
        views=options.views,
        layout=options.layout,
        meta_info=options.meta_info,
    )
    say_reading(options, scenes, options.scale)
    with progress("comparing", len(scenes)) as advance:
        report = verify_lr(scenes, options.scale, halve=options.halve, advance=advance)
    emit(options, {**report.as_dict(), "without LR files": without}, report)
    if without:
        print(f"not compared, because they have no LR files: {and_more(without)}", file=sys.stderr)
    return 0 if report.borders else 1


def run_check_pair(options: argparse.Namespace) -> int:
    """Measure, print, and return 1 if the pair is beyond a bound or could not be measured, else 0."""
    check = check_pair(options.left, options.right, scale=options.scale)
    beyond = PairReport({"": check}, searched=ParallaxConfig().disparities).beyond
    figures = {**vars(check), "faults": check.faults, "verdict": check.verdict, "beyond": beyond or None}
    emit(options, figures, f"{check}\n{beyond}".rstrip())
    return 0 if check.points and not check.faults else 1
