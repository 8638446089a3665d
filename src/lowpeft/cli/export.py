"""`lowpeft export`: write a network, with or without an adapter, for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import LowpeftError
from .common import adapted, add_adapter, add_weights, backbone, new_command, refuse_without_adapter
from .help import option_group
from .output import emit


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "export",
        run,
        "write a network with its adapter for other programs: weights for spandrel and chaiNNer, or an ONNX graph",
        "lowpeft export --weights denoiser.safetensors --adapter noise-25 --torch merged.safetensors",
        "lowpeft export --weights denoiser.safetensors --adapter noise-25 --onnx merged.onnx --half",
        "lowpeft export --weights CRAFT_x4.pth --onnx craft.onnx --fixed 256x384",
    )
    add_weights(sub)
    add_adapter(sub, more="; without one, the network as it is")
    group = option_group(sub, "files to write")
    group.add_argument(
        "--torch",
        metavar="FILE",
        help="write the weights with the adapter merged, in the network's own names (.safetensors, .pth, .pt)",
    )
    group.add_argument(
        "--onnx",
        metavar="FILE",
        help="write a graph (.onnx) from images 0..1 to images 0..1, of any size; what cannot be merged is part of it",
    )
    group.add_argument("--half", action="store_true", help="in half precision (float16): half the size, rounded")
    group.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: 17)")
    group.add_argument(
        "--fixed", type=_size, metavar="HxW", help="only size of the ONNX graph's images in pixels, e.g. 256x384"
    )


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and a width in pixels, such as 256x384")
    return int(height), int(width)


def run(options: argparse.Namespace) -> None:
    """Export the network, and print what was written and compared."""
    from ..restoration.exporting import OPSET, Exported, check_onnx, export_onnx, export_state_dict

    if problems := _problems(options):
        raise LowpeftError("the network cannot be exported as asked:", problems=problems)
    refuse_without_adapter(options)
    base = backbone(options)
    model = base if options.adapter is None else adapted(options, base)
    opset = OPSET if options.opset is None else options.opset
    if options.onnx is not None:
        check_onnx(model, options.onnx, opset=opset, fixed=options.fixed)
    written: list[Exported] = []
    if options.torch is not None:  # first, because it may refuse an adapter
        anew = None if base.making is None else base.making.anew
        written.append(export_state_dict(model, options.torch, half=options.half, anew=anew))
    if options.onnx is not None:
        try:
            written.append(export_onnx(model, options.onnx, half=options.half, opset=opset, fixed=options.fixed))
        except LowpeftError as error:
            done = "".join(f"{file.path} was written, but " for file in written)
            raise LowpeftError(done + error.message, problems=error.problems) from error
    emit(options, {"files": [file.figures() for file in written]}, "\n".join(map(str, written)))


def _problems(options: argparse.Namespace) -> list[str]:
    """Describe options that are missing, cannot be combined, or name files that cannot be written."""
    from ..restoration.exporting import SUFFIXES, checked_path

    problems = []
    files = {"torch": options.torch, "onnx": options.onnx}
    if not any(files.values()):
        problems.append("no file to write: give --torch FILE, --onnx FILE, or both")
    if options.onnx is None:
        given = [f"--{name}" for name in ("opset", "fixed") if getattr(options, name) is not None]
        problems += [f"{' and '.join(given)} is about ONNX graphs: give --onnx FILE"] if given else []
    weights = Path(options.weights).expanduser().resolve() if options.weights else None
    for name, suffixes in (("torch", SUFFIXES), ("onnx", (".onnx",))):
        if (file := files[name]) is None:
            continue
        try:
            path = checked_path(file, suffixes)
        except LowpeftError as error:
            problems.append(f"--{name}: {error}")
            continue
        if weights is not None and _same(path, weights):
            problems.append(f"--{name} {file} would replace the frozen network's own file: give another name")
    return problems


def _same(path: Path, other: Path) -> bool:
    """Return whether two paths are one file, also where the file system takes no notice of capitals."""
    return path.exists() and other.exists() and path.samefile(other)
