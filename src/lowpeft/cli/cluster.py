"""Options of the commands and benchmarks that can run their cells as jobs of submitit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import LowpeftError
from .help import option_group
from .networks import overrides

if TYPE_CHECKING:
    from ..paper.reproduce import Cluster


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options `--jobs`, `--submit` and `--slurm`."""
    group = option_group(parser, "jobs")
    group.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="how many cells are run, or submitted, at a time (default: 1; with --submit slurm, all)",
    )
    group.add_argument(
        "--submit",
        choices=("slurm", "local"),
        help="run the cells as jobs of submitit, on a Slurm cluster or on this machine, instead of as processes of "
        "this command; needs the extra cluster",
    )
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --submit: option of the jobs: partition=gpu, time=600 (minutes until a job is queued again and "
        "resumed), gpus=1, cpus_per_task=8, mem_gb=32, account=…, qos=…, constraint=…; may be repeated",
    )


def cluster_of(options: argparse.Namespace) -> Cluster | None:
    """Return where the options of `add_cluster` run jobs; None for processes of this command.

    Raises:
        LowpeftError: `--slurm` was given without `--submit`, or an option is not KEY=VALUE or not possible.
    """
    if options.submit is None:
        if options.slurm:
            raise LowpeftError(
                f"--slurm {options.slurm[0]} is an option of jobs: give --submit slurm or --submit local"
            )
        return None
    from ..paper.reproduce import Cluster

    return Cluster(place=options.submit, options=overrides(options.slurm, option="--slurm partition=gpu"))
