"""`lowpeft demo`: the whole workflow on built-in data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .common import new_command
from .help import option_group
from .output import emit


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "demo",
        run,
        "adapt a small built-in network to stereo, train, measure, save, reload and draw; nothing is downloaded",
        "lowpeft demo --quick",
        "lowpeft demo --out lowpeft-demo",
        "lowpeft demo --data my-pairs --steps 50",
    )
    sub.add_argument(
        "--data", metavar="DIR", help="your own HR pairs, in any of the known layouts, instead of built-in ones"
    )
    option_group(sub, "output").add_argument(
        "--out", default="lowpeft-demo", metavar="DIR", help="folder for all results (default: %(default)s)"
    )
    sub.add_argument(
        "--quick", action="store_true", help="take the adapter that comes with lowpeft instead of training: seconds"
    )
    sub.add_argument("--steps", type=int, metavar="N", help="training steps instead of the demo's own number")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of new adapters and crops (default: 0)")


def run(options: argparse.Namespace) -> None:
    """Run the demo."""
    from ..demo.run import run_demo

    run_demo(out=options.out, data=options.data, steps=options.steps, seed=options.seed, quick=options.quick)
    figures = json.loads((Path(options.out) / "results.json").read_text(encoding="utf-8"))
    emit(options, {"out": options.out, **figures})
