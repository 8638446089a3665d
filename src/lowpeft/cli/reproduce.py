"""`lowpeft reproduce`: show or reproduce a table of the paper, or measure the speed of its rows."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LowpeftError, did_you_mean
from ..paper.experiments import Experiment, bundled_experiments, load_experiment
from ..paper.experiments.show import shown
from ..restoration.images import make_folder
from .cluster import add_cluster, cluster_of
from .common import add_device, add_set, device, new_command
from .help import option_group
from .networks import overrides
from .output import emit

if TYPE_CHECKING:
    from ..paper.reproduce import Sources


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "reproduce",
        run,
        "train and measure every row of an experiment, next to the paper's figures; or print these; or measure speed",
        "lowpeft reproduce finetuning --weights weights --data Flickr1024/Train --test flickr1024=Flickr1024/Test "
        "--out runs/finetuning",
        "lowpeft reproduce table1 --show",
        "lowpeft reproduce table1 --smoke --out runs/smoke",
    )
    known = ", ".join(bundled_experiments())
    sub.add_argument("experiment", help=f"a bundled experiment ({known}) or a path to a .toml experiment")
    sub.add_argument(
        "--row", action="append", default=[], metavar="NAME", help="run this row alone; may be repeated (default: all)"
    )
    sub.add_argument("--show", action="store_true", help="print the paper's table, and run nothing")
    sub.add_argument(
        "--speed",
        action="store_true",
        help="instead of training, measure time and memory of a forward of every row, on one network of the published "
        "size with random weights; writes speed.json into --out, if one is given",
    )
    sub.add_argument(
        "--smoke", action="store_true", help="tiny networks and made-up scenes instead of weights and data"
    )
    _add_sources(sub)
    option_group(sub, "output").add_argument("--out", metavar="DIR", help="folder for runs, results and the table")
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="how many seeds each row gets (default: 1)")
    add_cluster(sub)
    sub.add_argument("--ensemble", action="store_true", help="also measure the self-ensemble")
    sub.add_argument("--memory-mb", type=float, metavar="N", help="bound of the memory that inference takes")
    add_set(sub, "change a training setting of all rows: steps=1000, batch=2, learning_rate=1e-3; may be repeated")
    sub.add_argument(
        "--size", type=_size, metavar="HxW", help="with --speed: LR px of each view (default: the crop of the recipe)"
    )
    text = "with --speed: rounds in which the rows take turns (default: 5)"
    sub.add_argument("--repeats", type=int, default=5, metavar="N", help=text)
    add_device(sub)
    sub.set_defaults(defaults={action.dest: action.default for action in sub._actions})


def _add_sources(sub: argparse.ArgumentParser) -> None:
    """Add the options for the files of a run."""
    group = option_group(sub, "files of a run")
    group.add_argument(
        "--weights",
        metavar="DIR",
        help="folder with the checkpoints, named as their authors named them; with --adapter also one checkpoint file",
    )
    group.add_argument("--data", metavar="DIR", help="folder of training pairs")
    group.add_argument(
        "--adapter", metavar="DIR", help="measure this ready adapter in the row that it fits, and train nothing"
    )
    group.add_argument(
        "--test", action="append", default=[], metavar="NAME=DIR", help="a test set: kitti2015=DIR; may be repeated"
    )


def run(options: argparse.Namespace) -> None:
    """Show the paper's table, measure speed, or run the unfinished parts and print and write our table."""
    experiment = load_experiment(options.experiment)
    if options.show:
        unused = [*_OF_RUNS, *_OF_SPEED, "speed", "smoke", "out", "row"]
        _refuse(options, unused, "--show prints the paper's table")
        emit(options, {"experiment": experiment}, shown(experiment))
    elif options.speed:
        _refuse(options, _OF_RUNS, "--speed measures one network with random weights")
        _speed(_chosen(experiment, options.row), options)
    else:
        _refuse(options, _OF_SPEED, "--size and --repeats are options of --speed")
        _reproduce(_chosen(experiment, options.row), options)


def _chosen(experiment: Experiment, names: Sequence[str]) -> Experiment:
    """Return the experiment with only the named rows, or with all rows if no name is given.

    Raises:
        LowpeftError: A row name is unknown.
    """
    known = [row.name for row in experiment.rows]
    if unknown := [name for name in names if name not in known]:
        near = did_you_mean(unknown[0], known)
        raise LowpeftError(f"{experiment.name!r} has no row {unknown[0]!r}{near}; its rows are {', '.join(known)}")
    return experiment.with_rows([row for row in experiment.rows if row.name in names]) if names else experiment


_OF_RUNS = ("weights", "data", "adapter", "test", "seeds", "jobs", "submit", "slurm", "ensemble", "memory_mb", "set")
_OF_SPEED = ("size", "repeats")


def _refuse(options: argparse.Namespace, unused: Iterable[str], why: str) -> None:
    """Raise for options that would be ignored.

    Raises:
        LowpeftError: Such an option differs from its default; all are named.
    """
    given = [name for name in unused if getattr(options, name) != options.defaults[name]]
    if given:
        raise LowpeftError(f"{why}: leave out {', '.join('--' + name.replace('_', '-') for name in given)}")


def _speed(experiment: Experiment, options: argparse.Namespace) -> None:
    from ..paper.reproduce.speed import measure_speed, write_speed

    if options.out:
        make_folder(options.out)  # fail before measuring if the result could not be saved
    chosen = {"size_px": options.size, "repeats": options.repeats, "device": str(device(options.device))}
    speed = measure_speed(experiment, **chosen, smoke=options.smoke, report=print)
    emit(options, speed.as_dict(), f"\n{speed}")
    if options.out:
        size = "x".join(map(str, speed.size_px))
        command = f"lowpeft reproduce {options.experiment} --speed --size {size} --repeats {options.repeats}"
        command += "".join(f" --row {shlex.quote(name)}" for name in options.row)
        command += f" --device {chosen['device']}" + " --smoke" * options.smoke
        print(f"\nwritten to {write_speed(speed, options.out, command=command)}")


def _size(text: str) -> tuple[int, int]:
    """Parse `HxW` into two numbers."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, as in 32x80")
    return int(height), int(width)


def _reproduce(experiment: Experiment, options: argparse.Namespace) -> None:
    from ..paper.reproduce import Settings, reproduce, smoke

    if not options.out:
        raise LowpeftError("runs need a folder: give --out DIR")
    cluster = cluster_of(options)
    settings = Settings(
        seeds=range(options.seeds),
        training=overrides(options.set),
        device=str(device(options.device)) if cluster is None else options.device,
        ensemble=options.ensemble,
        memory_mb=options.memory_mb,
        jobs=options.jobs,
        cluster=cluster,
    )
    if options.adapter:
        _refuse(options, ("smoke", "data", "set", "seeds"), "--adapter measures a ready adapter, and trains nothing")
    if options.smoke:
        _refuse(options, ("weights", "data", "test"), "--smoke makes its own tiny networks and scenes")
        table = smoke(experiment, options.out, settings=settings, report=print)
    else:
        table = reproduce(experiment, _sources(options), options.out, settings=settings, report=print)
    written = Path(options.out) / "table.md"
    emit(options, {**table.as_dict(), "written": written}, f"\n{table}\n\ntable written to {written}")


def _sources(options: argparse.Namespace) -> Sources:
    """Return the files of a run.

    Raises:
        LowpeftError: An option is missing, or a `--test` is not NAME=DIR or has the name of another one.
    """
    from ..paper.reproduce import Sources

    needed = ("weights", "test") if options.adapter else ("weights", "data", "test")
    if missing := [f"--{name}" for name in needed if not getattr(options, name)]:
        instead = "" if options.adapter else ", or --smoke"
        raise LowpeftError(f"the run needs {', '.join(missing)}{instead}")
    tests: dict[str, Path] = {}
    for text in options.test:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise LowpeftError(f"--test {text!r} is not NAME=DIR, as in --test kitti2015=KITTI2015")
        if name in tests:
            raise LowpeftError(f"--test {name}=… was given more than once; give each test set another name")
        tests[name] = Path(folder)
    return Sources(
        weights=Path(options.weights),
        data=Path(options.data) if options.data else None,
        tests=tests,
        adapter=Path(options.adapter) if options.adapter else None,
    )
