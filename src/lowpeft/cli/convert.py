"""`lowpeft convert`: convert networks from the checkpoint formats of other code."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from ..backbones.asteisr import convert_asteisr
from ..backbones.checkpoints import Choice
from ..core.files.reading import read_adapter
from ..families.hat import MASKS
from .common import add_raw_weights, new_command
from .help import option_group
from .output import emit


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "convert",
        run,
        "take a network in the layout of other code apart: the frozen network's weights, and an adapter",
        "lowpeft convert asteisr ASteISR_x4.pth --out asteisr-x4",
        "lowpeft convert asteisr ASteISR_x4.pth --out asteisr-x4 --mask published",
    )
    sub.add_argument("layout", choices=("asteisr",), help="asteisr: as ASteISR's authors publish their networks")
    sub.add_argument("file", metavar="NETWORK", help="the network's file (.pth, .safetensors)")
    option_group(sub, "output").add_argument(
        "--out", required=True, metavar="DIR", help="folder for the two, new or empty"
    )
    sub.add_argument(
        "--mask",
        default="hat",
        choices=tuple(MASKS),
        help="where blocks use the attention mask while the adapter is on: in shifted ones, as HAT does (hat, the "
        "default), or in all, as the authors' code does (published)",
    )
    add_raw_weights(sub)


def run(options: argparse.Namespace) -> None:
    """Convert the network, and print commands that measure the result."""
    choice: Choice = "raw" if options.raw_weights else "ema"
    written = convert_asteisr(options.file, options.out, mask=options.mask, weights=choice)
    adapter = read_adapter(written.adapter)
    count = sum(site.parameters for site in adapter.sites)
    weights, folder = shlex.quote(str(written.weights)), shlex.quote(str(written.adapter))
    both = f"--weights {weights} --adapter {folder}"
    print(f"{written.weights}: {adapter.network}, {adapter.base.parameters:,} parameters")
    print(f"{written.adapter}: {count:,} parameters on {len(adapter.sites)} sites, attention mask: {options.mask}")
    if "weights" in adapter.facts:
        print(f"weights: {adapter.facts['weights']}")
    if options.mask == "hat":
        print("the authors' networks were trained with the other mask: --mask published gives what they compute")
    print("\nto measure it on a test set, or beside the figures of the paper:")
    print(f"  lowpeft evaluate {both} --data KITTI2015 --out measured")
    print(f"  lowpeft reproduce table1 {both} --test kitti2015=KITTI2015 --out runs/table1")
    figures = {
        "weights": written.weights,
        "adapter": written.adapter,
        "network": adapter.base,
        "parameters": count,
        "sites": len(adapter.sites),
        "mask": options.mask,
    }
    emit(options, figures)
