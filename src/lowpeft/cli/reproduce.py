"""`lowpeft reproduce`: a table of the paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import LowpeftError
from ..experiments import bundled_experiments, load_experiment
from .common import add_device, device, new_command, overrides


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "reproduce",
        run,
        "train and measure every row of an experiment, beside the paper's figures",
        "lowpeft reproduce finetuning --weights weights --data Flickr1024/Train --test flickr1024=Flickr1024/Test "
        "--out runs/finetuning",
    )
    known = ", ".join(bundled_experiments())
    sub.add_argument("experiment", help=f"a bundled experiment ({known}) or a path to a .toml experiment")
    sub.add_argument(
        "--smoke", action="store_true", help="tiny networks and made-up scenes instead of weights and data"
    )
    sub.add_argument(
        "--weights",
        metavar="DIR",
        help="folder with the checkpoints, named as their authors named them; with --adapter also one checkpoint file",
    )
    sub.add_argument("--data", metavar="DIR", help="folder of training pairs")
    sub.add_argument(
        "--adapter", metavar="DIR", help="measure this ready adapter in the row that it fits, and train nothing"
    )
    sub.add_argument(
        "--test", action="append", default=[], metavar="NAME=DIR", help="a test set: kitti2015=DIR; may be repeated"
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for runs, results and the table")
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="how many seeds each row gets (default: 1)")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="how many cells are run at a time (default: 1)")
    sub.add_argument("--ensemble", action="store_true", help="also measure the self-ensemble")
    sub.add_argument("--memory-mb", type=int, metavar="N", help="bound of the memory that inference takes")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a training setting of all rows: steps=1000, batch=2, learning_rate=1e-3; may be repeated",
    )
    add_device(sub)


def run(options: argparse.Namespace) -> None:
    """Run what is not finished, print and write the table."""
    from ..reproduce import Settings, reproduce, smoke

    experiment = load_experiment(options.experiment)
    if options.seeds < 1:
        raise LowpeftError(f"--seeds must be at least 1, not {options.seeds}")
    settings = Settings(
        seeds=range(options.seeds),
        training=overrides(options.set),
        device=str(device(options.device)),
        ensemble=options.ensemble,
        memory_mb=options.memory_mb,
        jobs=options.jobs,
    )
    if options.adapter:
        _refuse_training(options)
    if options.smoke:
        table = smoke(experiment, options.out, settings=settings, report=print)
    else:
        table = reproduce(experiment, _sources(options), options.out, settings=settings, report=print)
    print(f"\n{table}\n\ntable written to {Path(options.out) / 'table.md'}")


def _refuse_training(options: argparse.Namespace) -> None:
    """Refuse options that are about training beside a ready adapter."""
    given = {"smoke": options.smoke, "data": options.data, "set": options.set, "seeds": options.seeds != 1}
    if asked := [f"--{name}" for name, value in given.items() if value]:
        raise LowpeftError(f"--adapter measures a ready adapter, and nothing is trained: leave out {', '.join(asked)}")


def _sources(options: argparse.Namespace) -> Any:
    from ..reproduce import Sources

    needed = ("weights", "test") if options.adapter else ("weights", "data", "test")
    missing = [f"--{name}" for name in needed if not getattr(options, name)]
    if missing:
        what = "measuring an adapter needs" if options.adapter else "an experiment needs"
        raise LowpeftError(f"{what} {', '.join(missing)}" + ("" if options.adapter else ", or --smoke"))
    tests = dict(text.partition("=")[::2] for text in options.test)
    if bad := [text for text in options.test if not all(text.partition("="))]:
        raise LowpeftError(f"--test {bad[0]!r} is not NAME=DIR, as in --test kitti2015=KITTI2015")
    return Sources(
        weights=Path(options.weights),
        data=Path(options.data) if options.data else None,
        tests={name: Path(path) for name, path in tests.items()},
        adapter=Path(options.adapter) if options.adapter else None,
    )
